"""What a run may ask of the world around it, and what the stages and series are called that it reports.

The algorithms report progress and ask whether to stop through this interface and never see the database:
the worker's implementation writes to SQLite (upq/jobs), the tests use one that keeps lists. The names are stored, so a
change of one hides the curves of older runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from upq.artifact import Artifact

#: Stages of a quantization run in order; the app draws its stepper from this.
STAGES = ("load", "data", "int4", "int4_distill", "int2", "int2_distill", "pack", "measure")
#: A series named after a stage and this counts the tokens that the stage was given, every pass over them.
TOKENS = "_tokens"
#: What the names of all errors of blocks have in common.
BLOCK = "_block_"
#: The precision whose curves over steps carry no key: the first version trained no other end to end.
UNNAMED = "int2"


@dataclass(frozen=True)
class SeriesNames:
    """The names of what a run reports of one precision. key: upq.config.Precision.key, which names its block-wise
    stage as well.
    """

    key: str

    @property
    def distill_stage(self) -> str:
        """The stage of its end-to-end training."""
        return f"{self.key}_distill"

    @property
    def block_before(self) -> str:
        """The series of its blocks' errors before their training, by block."""
        return f"{self.key}{BLOCK}before"

    @property
    def block_after(self) -> str:
        """The same after it."""
        return f"{self.key}{BLOCK}after"

    @property
    def held_out_kl(self) -> str:
        """The series of its KL on held-out answers, by step of the end-to-end training."""
        return f"held_out_kl_{self.key}"

    def over_steps(self, curve: str) -> str:
        """The series of a curve of its end-to-end training: that of the loss, by its name, grad_norm, lr, ..."""
        return curve if self.key == UNNAMED else f"{self.key}_{curve}"


def curve_of(series: str) -> tuple[str, str]:
    """(key of the precision, curve) that SeriesNames.over_steps makes a series of."""
    key, _, curve = series.partition("_")
    is_key = key != UNNAMED and SeriesNames(key).distill_stage in STAGES
    return (key, curve) if is_key else (UNNAMED, series)


def is_over_steps(series: str) -> bool:
    """Whether a series is a curve over the steps of a training, and neither goes over blocks nor counts tokens."""
    return BLOCK not in series and not series.endswith(TOKENS)


class RunContext(Protocol):
    """One run's view of its surroundings. Every method is cheap and may be called from the main thread only."""

    @property
    def checkpoint_dir(self) -> Path:
        """Folder for resumable state, private to this run; exists."""
        ...

    def check(self, *, kept: bool = False) -> None:
        """Raise Cancelled or Interrupted if the run has to stop; call between units of work of a second or two.

        kept: all work so far is in checkpoints, or will be when Interrupted is raised, so another run may go first.
        """
        ...

    def stage(self, name: str, total: int) -> None:
        """Enter a stage of STAGES that consists of `total` steps (0: unknown)."""
        ...

    def progress(self, step: int, *, tokens_per_s: float | None = None, detail: str = "") -> None:
        """`step` of the stage's total is done; detail is a short phrase such as "block 3 of 30"."""
        ...

    def metric(self, series: str, step: int, value: float) -> None:
        """Record one finite point of a curve, e.g. ("jsd", 12, 0.31). A second write of a point replaces it."""
        ...

    def log(self, message: str) -> None:
        """Add one line to the run's log."""
        ...

    def flush(self) -> None:
        """Write what is buffered; call before a checkpoint, so that the curves reach as far as it does."""
        ...

    def cached_answers(self, key: str) -> dict[str, list[int]]:
        """Teacher answers stored under `key`: prompt digest -> token ids."""
        ...

    def save_answers(self, key: str, answers: Mapping[str, list[int]]) -> None:
        """Store teacher answers under `key`; existing ones are kept."""
        ...

    def save_artifact(self, artifact: Artifact) -> None:
        """Store an artifact in one transaction; the same run and precision replaces nothing and is a no-op."""
        ...

    def save_measurements(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store fidelity rows: label ("INT4", "RTN INT2", ...), precision, kl, top1, ppl, tokens, ..."""
        ...


class SilentContext:
    """A RunContext outside a run's own process: it reports nothing, never stops and stores no results."""

    def __init__(
        self,
        checkpoint_dir: Path,
        cached_answers: Callable[[str], dict[str, list[int]]] = lambda _: {},
        save_answers: Callable[[str, Mapping[str, list[int]]], None] = lambda *_: None,
    ) -> None:
        self.checkpoint_dir = checkpoint_dir
        self._cached_answers, self._save_answers = cached_answers, save_answers

    def cached_answers(self, key: str) -> dict[str, list[int]]:
        return self._cached_answers(key)

    def save_answers(self, key: str, answers: Mapping[str, list[int]]) -> None:
        self._save_answers(key, answers)

    def check(self, *, kept: bool = False) -> None: ...
    def stage(self, name: str, total: int) -> None: ...
    def progress(
        self, step: int, *, tokens_per_s: float | None = None, detail: str = ""
    ) -> None: ...
    def metric(self, series: str, step: int, value: float) -> None: ...
    def log(self, message: str) -> None: ...
    def flush(self) -> None: ...
    def save_artifact(self, artifact: Artifact) -> None: ...
    def save_measurements(self, rows: Iterable[Mapping[str, Any]]) -> None: ...


def training_tokens(points: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Stage -> tokens that it really used, of the points that Store.metrics gives."""
    used: dict[str, int] = {}
    for point in points:
        if point["series"].endswith(TOKENS):
            stage = point["series"].removesuffix(TOKENS)
            used[stage] = used.get(stage, 0) + round(point["value"])
    return used
