"""Before a run is queued: what a large model needs is chosen, and what the GPU has no memory for is refused.

The form, the command line and the API all call `ready`, so the config that is recorded says what runs, and the line
that repeats a run names what was chosen for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from upq.config import (
    QUANTIZED,
    DistillConfig,
    Precision,
    RunConfig,
    as_text,
    with_settings,
)
from upq.context import SeriesNames
from upq.data import read_rows
from upq.errors import UserError
from upq.models import Shape
from upq.quantize.memory import gpu_bytes, gpu_needs, shape_of

Value = int | bool | str | float

#: From so many quantized weights on setting `save_memory` has something to choose.
LARGE = 2_000_000_000
#: The smallest batch that a refusal proposes, tokens.
SMALLEST_BATCH = 512


def ready(config: RunConfig, chosen: Collection[str] = (), gpu: int | None = None) -> RunConfig:
    """The config as it is to be queued: `with_savings`, of a model that can be quantized with the GPU that there is.

    chosen: dotted settings that a person has chosen. gpu: the GPU's bytes, 0 for none; None: those of `gpu_bytes`.
    Raises the UserErrors of upq.models.inspect and of upq.data.read_rows, and UserError("gpu_too_small").
    """
    config = with_savings(config, chosen)
    _look_at_data(config)
    shape, found = shape_of(config), gpu_bytes(config) if gpu is None else gpu
    stage, needed = _largest(config, shape, found)
    if not found or needed <= found:
        return config
    changes = _remedy(config, shape, found)
    wanted = " ".join(f"{path}={as_text(value)}" for path, value in changes.items())
    raise UserError(
        "gpu_too_small",
        f"Stage {stage} needs about {needed / 1e9:.1f} GB of GPU memory and the GPU has {found / 1e9:.1f} GB; "
        + (f"set {wanted}." if changes else "no setting saves as much."),
        "Or use a smaller model, a GPU with more memory, or device=cpu.",
    )


def _look_at_data(config: RunConfig) -> None:
    """Refuse data that are not named, or a file that does not hold what the settings say. The hub is not asked."""
    source, path = config.data.source, config.data.path
    if source != "builtin" and not path.strip():
        what = "hub dataset's id" if source == "hub" else "file's path"
        raise UserError("bad_config", f"data.path is empty; expected the {what}.")
    if source == "file":
        read_rows(config.data, config.seed)


def savings(config: RunConfig, chosen: Collection[str] = ()) -> dict[str, Value]:
    """The settings that `save_memory` changes: those of a large model's distillations that have their defaults, that
    nobody has `chosen`, and that save something.
    """
    if not config.save_memory or shape_of(config).quantized < LARGE:
        return {}
    return {path: value for path, value in _of_defaults(config).items() if path not in chosen}


def with_savings(config: RunConfig, chosen: Collection[str] = ()) -> RunConfig:
    """The config with its `savings`. Where a person has chosen one of their defaults, save_memory becomes false: the
    config then stays what it is, whoever runs it again.
    """
    changes = savings(config, chosen)
    if changes.keys() != savings(config).keys():
        changes["save_memory"] = False
    return with_settings(config, changes)


def _of_defaults(config: RunConfig) -> dict[str, Value]:
    """What would save memory in place of a default, by dotted setting."""
    plain = DistillConfig()
    return {
        f"{precision.key}.distill.{name}": value
        for precision in QUANTIZED
        for name, value in _smallest(precision, config.of(precision).distill).items()
        if getattr(config.of(precision).distill, name) == getattr(plain, name)
    }


def _smallest(precision: Precision, config: DistillConfig) -> dict[str, Value]:
    """Settings of a distillation with which it takes least memory and still does the same."""
    if not config.tokens:
        return {}
    found: dict[str, Value] = {"optimizer_bits": 8} if config.weight_lr else {}
    found["checkpointing"] = True
    # INT4 has no INT4 model to learn from yet.
    if precision is Precision.INT2 and config.loss == "jsd":
        found["teacher"] = "int4"
    return found


def _remedy(config: RunConfig, shape: Shape, found: int) -> dict[str, Value]:
    """Settings with which a run fits into the `found` bytes of a GPU, none of them in vain; {} where none do."""
    changes: dict[str, Value] = {}
    while not _fits(smaller := with_settings(config, changes), shape, found):
        stage, needed = _largest(smaller, shape, found)
        for path, value in _smaller(smaller, stage):
            tried = with_settings(smaller, {path: value})
            if gpu_needs(tried, shape, found)[stage] < needed:
                changes[path] = value
                break
        else:
            return {}
    for path in list(changes):
        others = {name: value for name, value in changes.items() if name != path}
        if _fits(with_settings(config, others), shape, found):
            changes = others
    return changes


def _fits(config: RunConfig, shape: Shape, found: int) -> bool:
    return _largest(config, shape, found)[1] <= found


def _smaller(config: RunConfig, stage: str) -> Iterator[tuple[str, Value]]:
    """Changes that may make a stage smaller, those that cost least first."""
    for precision in QUANTIZED:
        settings = config.of(precision)
        if stage == SeriesNames(precision.key).distill_stage:
            for name, value in _smallest(precision, settings.distill).items():
                yield f"{precision.key}.distill.{name}", value
            if settings.distill.loss == "jsd":
                yield f"{precision.key}.distill.teacher", "cached"
            if settings.distill.batch_tokens > SMALLEST_BATCH:
                yield f"{precision.key}.distill.batch_tokens", settings.distill.batch_tokens // 2
            yield f"{precision.key}.distill.weight_lr", 0.0
        elif stage == precision.key and settings.blockwise.batch_tokens > SMALLEST_BATCH:
            yield f"{precision.key}.blockwise.batch_tokens", settings.blockwise.batch_tokens // 2


def _largest(config: RunConfig, shape: Shape, gpu: int) -> tuple[str, int]:
    """The stage that needs most of a GPU's memory, and how many bytes."""
    needs = gpu_needs(config, shape, gpu)
    stage = max(needs, key=needs.__getitem__)
    return stage, needs[stage]
