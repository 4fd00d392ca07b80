"""What the parts of the app share: the store, the loaded models and what was measured of them."""

from __future__ import annotations

import html
import os
import platform
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import gradio as gr
import torch

from ui.shared import Shared
from upq.config import PRESETS, RunConfig
from upq.errors import UserError
from upq.files import clean_text
from upq.jobs import ModelKey, Models, Supervisor
from upq.jobs.ahead import Ahead
from upq.jobs.export_folder import Exports
from upq.quantize.ready import ready
from upq.store import Run, Store

CPU_INFO = Path("/proc/cpuinfo")


class Timing(TypedDict, total=False):
    """The speed of one answer: tokens/s after the first token, and seconds until the first one, where it is known."""

    tokens_per_s: float
    first_token_s: float


class Badge(TypedDict, total=False):
    """What the head of a column tells about its model; all of it was measured, nothing is guessed.

    fair is the last timing with the machine to itself, shared the last one while something else computed too.
    """

    size_bytes: int
    memory_bytes: int
    bits_per_weight: float
    backend: str
    load_s: float
    note: str
    fair: Timing
    shared: Timing


@dataclass(frozen=True)
class Offer:
    """What the forms of the page have to choose from.

    models: sources, or None for any; has_settings: those of a preset can be changed; suites: those of a check, or None
    for all; tokens: of the longest answer, or None where nobody sets a limit.
    """

    models: tuple[str, ...] | None = None
    presets: tuple[str, ...] = PRESETS
    has_settings: bool = True
    suites: tuple[str, ...] | None = None
    tokens: int | None = None

    def longest(self, usual: int) -> int:
        """The longest answer that a form offers which usually offers this one, tokens."""
        return usual if self.tokens is None else min(usual, self.tokens)


@dataclass
class App:
    """One running app.

    export_dir is a private folder for the tables and reports that the app offers for download; exports keeps the models
    that were made for other programs; may_publish tells whether whoever opens the page may send them to the hub;
    badges holds the measured numbers of each model that has been loaded; shared holds what is
    drawn once for all pages; measuring is held by who times the models; timed counts how often that gave a speed;
    unpacking is the process that adds the models which ship with the app; ahead makes the answers that
    are voted on.
    """

    store: Store
    models: Models
    supervisor: Supervisor
    export_dir: Path
    exports: Exports
    may_publish: bool = False
    badges: dict[ModelKey, Badge] = field(default_factory=dict)
    timing_lock: threading.Lock = field(default_factory=threading.Lock)
    shared: Shared = field(default_factory=Shared)
    measuring: threading.Lock = field(default_factory=threading.Lock)
    timed: int = 0
    unpacking: subprocess.Popen[bytes] | None = None
    ahead: Ahead = field(init=False)

    def __post_init__(self) -> None:
        self.ahead = Ahead(self.store, self.models, self.is_busy)

    @cached_property
    def device_line(self) -> str:
        """Describe the machine that chat and runs compute on."""
        return device_line()

    @property
    def unpack_state(self) -> Literal["", "busy", "failed"]:
        """Tell what becomes of the models that ship with the app; "" once they are there, or if there are none."""
        code = self.unpacking.poll() if self.unpacking else 0
        return "busy" if code is None else "failed" if code else ""

    def precisions(self, run_id: int) -> dict[str, int]:
        """Return the artifacts of a run: the size of each precision in bytes."""
        return {row.precision: row.size_bytes for row in self.store.artifacts(run_id)}

    @property
    def offer(self) -> Offer:
        """What can be had here."""
        return Offer()

    def admit_run(self, config: RunConfig) -> None:
        """Look at the settings of a run, but not at its model; whoever has this app to themselves may have any."""

    def ready(self, config: RunConfig, chosen: Collection[str] = ()) -> RunConfig:
        """The config of a run as it is queued. Raises the UserErrors of upq.quantize.ready."""
        return ready(config, chosen)

    def admit_check(self, suite: str, path: str, max_tokens: int) -> None:
        """Look at a check before its files are read; whoever has this app to themselves may have any."""

    def is_busy(self) -> bool:
        """Whether a run is at work."""
        return self.store.live_run() is not None

    def own_folder(self) -> Path:
        """Where tables and reports for download are written."""
        return self.export_dir

    @property
    def has_commands(self) -> bool:
        """Whether whoever is on the page can type commands on this machine."""
        return True

    @property
    def signs_in(self) -> bool:
        """Whether who is on the page publishes with an account of their own, and not with this machine's token."""
        return False

    @property
    def notice(self) -> tuple[str, str]:
        """What everybody is told at the top of the page, in a line and a smaller one; empty for nothing."""
        return "", ""

    @property
    def guards(self) -> list[Any]:
        """Middleware that looks at requests before the page does."""
        return []

    def context_run(self, run_id: int | None) -> Run | None:
        """Return the chosen run, or without a choice the quantization that is running now."""
        if not run_id:
            live = self.store.live_run()
            return live if live and live.kind == "quantize" else None
        try:
            return self.store.run(run_id)
        except UserError:
            return None  # deleted meanwhile


@dataclass
class Outputs:
    """Components that a handler fills. A dataclass of components names each and sets their order."""

    @property
    def outputs(self) -> list[Any]:
        """The components, as an event takes them for its `outputs`."""
        return list(vars(self).values())

    @classmethod
    def fill(cls, **values: Any) -> list[Any]:
        """Return what a handler returns for `outputs`: values for the named components; all others stay as they are.

        Raises TypeError for a name that no component has.
        """
        names = [component.name for component in fields(cls)]
        if strangers := values.keys() - set(names):
            raise TypeError(f"{cls.__name__} has no {', '.join(sorted(strangers))}")
        return [values[name] if name in values else gr.skip() for name in names]


def in_places(components: Sequence[Any], values: Mapping[Any, Any]) -> list[Any]:
    """Return what a handler returns for these outputs: the values of some of them; all others stay as they are."""
    return [values.get(component, gr.skip()) for component in components]


def device_line() -> str:
    """Describe this machine, e.g. as "CPU, 2 cores, AVX-512 VNNI" or by a GPU's name and memory."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f"{device.name}, {device.total_memory / 1e9:.0f} GB"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = CPU_INFO.read_text(errors="replace") if CPU_INFO.exists() else ""
    kind = "AVX-512" if "avx512" in flags else "AVX2" if "avx2" in flags else ""
    vector = f"{kind} VNNI" if "avx512_vnni" in flags else kind
    return ", ".join(filter(None, ["CPU", f"{cores} cores", vector]))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise a UserError as a client gets it, in one text. Gradio shows it as HTML, so it is escaped."""
    try:
        yield
    except UserError as error:
        text = html.escape(clean_text(f"{error.message} {error.hint}".strip()), quote=False)
        raise gr.Error(text, print_exception=False) from error


#: Events between the page and its own server: not part of the public interface, no spinner. That nothing is to show
#: their progress has to be said too: the page would write it into every output, hidden, at each step of each event.
PRIVATE: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "show_progress_on": [],
}
#: Private events that are handled one after the other, in the order in which they arrive: what is sent right after a
#: run was chosen goes to that run. For short handlers only.
IN_ORDER: dict[str, Any] = {**PRIVATE, "concurrency_id": "in order", "concurrency_limit": 1}


@cache
def this_machine() -> str:
    """Name this machine and what it computes with: a speed means nothing on another one."""
    return f"{platform.node()}, {device_line()}"


def speed_note(key: ModelKey) -> str:
    """Name the note of the store that holds the last fair timing of a model here, in tokens per second."""
    parts = [str(part) for part in key if part not in (None, "")]
    return f"chat speed on {this_machine()}: {' '.join(parts)}"
