"""Where a run was executed, as words: the same for a run that made models and for a check."""

from __future__ import annotations

from upq.store import Run
from upq.units import size


def machine_words(run: Run) -> str:
    """Describe the machine that the run was last executed on; "" for runs of before this was kept."""
    if not run.environments:
        return ""
    machine = run.environments[-1]["machine"]
    cores = f"{machine['cores']} cores"
    parts = [machine["processor"], cores, machine["instructions"], size(machine["memory_bytes"])]
    if machine["gpu"]:
        parts += [machine["gpu"], size(machine["gpu_bytes"])]
    return ", ".join(filter(None, parts))


def commit_words(run: Run) -> str:
    """Return the commit that the run was last executed at, else the version; "" if that was not kept."""
    if not run.environments:
        return ""
    last = run.environments[-1]
    return last["commit"] or f"version {last['versions']['upq']}"
