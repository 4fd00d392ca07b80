"""What the parts of the app share: the store, the loaded models, the turns of a chat."""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
import torch

from ui.chat.render import Badge, Message
from ui.html.words import PRECISIONS, Precision
from upq.decode.generate import Decoding
from upq.errors import UserError
from upq.jobs.served import Models
from upq.jobs.supervisor import Supervisor
from upq.store.database import Store
from upq.store.run import Run

CPU_INFO = Path("/proc/cpuinfo")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(kw_only=True)
class Turn:
    """One message on its way to the columns: what they need, how they are told to stop, what they said.

    run_id: the run whose models answer, None for the bundled FP16 model; models: which model stands behind each
    column that answers; histories: the messages of each column, those of earlier turns included.
    """

    message: str
    system: str
    decoding: Decoding
    one_at_a_time: bool
    run_id: int | None
    models: Mapping[Precision, Hashable] = field(default_factory=dict)
    histories: dict[Precision, list[Message]] = field(default_factory=dict)
    stop: dict[Precision, threading.Event] = field(default_factory=lambda: _events())
    done: dict[Precision, threading.Event] = field(default_factory=lambda: _events())
    abandoned: bool = False
    _claimed: set[Precision] = field(default_factory=set)

    def claim(self, precision: Precision) -> bool:
        """Whether this column still has to answer; true only once."""
        is_new = precision not in self._claimed
        self._claimed.add(precision)
        return is_new

    def may_start(self, precision: Precision) -> bool:
        """One at a time: whether all columns to the left are done."""
        before = PRECISIONS[: PRECISIONS.index(precision)]
        return not self.one_at_a_time or all(self.done[name].is_set() for name in before)

    def stop_all(self) -> None:
        """Ask every column to stop."""
        for event in self.stop.values():
            event.set()

    def abandon(self) -> None:
        """Stop every column and show nothing more of the turn."""
        self.abandoned = True
        self.stop_all()

    def goes_on_with(self, models: Mapping[Precision, Hashable]) -> bool:
        """Whether every column that answers in this turn still has its model in `models`."""
        return all(models.get(precision) == model for precision, model in self.models.items())

    def occupies(self, precision: Precision) -> bool:
        """Whether the column shows this conversation: it spoke, or is about to."""
        answering = precision in self.models and not self.done[precision].is_set()
        return answering or bool(self.histories.get(precision))

    @property
    def is_over(self) -> bool:
        return all(event.is_set() for event in self.done.values())


def _events() -> dict[Precision, threading.Event]:
    return {precision: threading.Event() for precision in PRECISIONS}


@dataclass
class App:
    """One running app. export_dir: a private folder for the files that it offers for download;
    badges: the measured numbers of each model that has been loaded.
    """

    store: Store
    models: Models
    supervisor: Supervisor
    export_dir: Path
    badges: dict[tuple[object, ...], Badge] = field(default_factory=dict)
    timing_lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def device_line(self) -> str:
        """The machine that chat and runs compute on."""
        return device_line()

    def precisions(self, run_id: int) -> dict[str, int]:
        """The artifacts of a run: precision -> size in bytes."""
        return {row.precision: row.size_bytes for row in self.store.artifacts(run_id)}

    def context_run(self, run_id: int | None) -> Run | None:
        """The chosen run; without a choice, the quantization that is running now."""
        if not run_id:
            live = self.store.live_run()
            return live if live and live.kind == "quantize" else None
        try:
            return self.store.run(run_id)
        except UserError:
            return None  # deleted meanwhile


def device_line() -> str:
    """E.g. "CPU, 2 cores, AVX-512 VNNI" or a GPU's name and memory."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f"{device.name}, {device.total_memory / 1e9:.0f} GB"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = CPU_INFO.read_text(errors="replace") if CPU_INFO.exists() else ""
    kind = "AVX-512" if "avx512" in flags else "AVX2" if "avx2" in flags else ""
    vector = f"{kind} VNNI" if "avx512_vnni" in flags else kind
    return ", ".join(filter(None, ["CPU", f"{cores} cores", vector]))


def as_gradio_error(error: UserError) -> gr.Error:
    """A UserError for an API client. Gradio shows such a text as HTML, so it is escaped."""
    text = html.escape(f"{error.message} {error.hint}".strip(), quote=False)
    return gr.Error(text, print_exception=False)


def speaks_plainly(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a UserError of an API function into one sentence for the client."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise as_gradio_error(error) from error

    return call


#: Events between the page and its own server: not part of the public interface, no spinner.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
#: Private events that are handled one after the other, in the order in which they arrive: what is sent right after a
#: run was chosen goes to that run. For short handlers only.
IN_ORDER: dict[str, Any] = {**PRIVATE, "concurrency_id": "in order", "concurrency_limit": 1}
