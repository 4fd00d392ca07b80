"""Where the figures of a check come from: the line that repeats it, the machine, the commit and the time it took."""

from __future__ import annotations

import shlex

from ui.html import Html, commit_words, duration, fact, machine_words, tag
from upq.config import CheckConfig
from upq.store import Run


def origin(run: Run) -> Html:
    """Draw the origin of a check, folded."""
    config = CheckConfig.from_values(run.config)
    facts = [
        ("commit", commit_words(run) or "not kept"),
        ("machine", machine_words(run) or "not kept"),
        ("time", duration(run.worked_s)),
        ("longest answer", f"{config.max_tokens} tokens" if _writes(config) else "no answers"),
    ]
    title = tag("summary", "Where these figures come from")
    command = tag("pre", command_of(config), class_="command")
    listed = tag("dl", *(fact(name, value) for name, value in facts), class_="facts")
    return tag("div", tag("details", title, command, listed), class_="origins")


def command_of(config: CheckConfig) -> str:
    """Return the line that does the same check again; without a run there is none, and FP16 was asked alone."""
    words = ["python", "-m", "upq", "check", str(config.run_id or "RUN"), "--suite", config.suite]
    if config.path:
        words += ["--path", config.path]
    if config.suite == "mmlu":
        words += ["--per-subject", str(config.per_subject), "--seed", str(config.seed)]
    else:
        words += ["--limit", str(config.limit)]
    if _writes(config):
        words += ["--max-tokens", str(config.max_tokens)]
    return shlex.join([*words, "--precision", ",".join(config.precisions)])


def _writes(config: CheckConfig) -> bool:
    return config.suite in ("builtin", "ifeval")
