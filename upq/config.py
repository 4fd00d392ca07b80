"""Every setting of a run: frozen dataclasses, four presets, JSON with a version.

A field's help text, unit and range stand in its metadata: the app's advanced form, the docs and the checks
of a whole RunConfig all read that one place. Settings that the UPQ paper leaves open say so in their help.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from upq.errors import UserError

CONFIG_VERSION = 1
METHODS = ("upq", "rtn")
PRESETS = ("smoke", "quick", "standard", "paper")


def setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:  # noqa: A002
    """A dataclass field with its help text and, for numbers, the closed range of allowed values."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


def _check_fields(config: Any, prefix: str) -> None:
    """Check every field of a config and of the configs in it, so that a message has the whole dotted name."""
    hints = typing.get_type_hints(type(config))
    for spec in dataclasses.fields(config):
        name, value = f"{prefix}{spec.name}", getattr(config, spec.name)
        _check_type(name, value, hints[spec.name])
        if dataclasses.is_dataclass(value):
            _check_fields(value, f"{name}.")
        if not spec.metadata:
            continue
        low, high = spec.metadata["low"], spec.metadata["high"]
        if low is not None and not low <= value <= high:
            raise UserError("bad_config", f"{name} is {value}; expected {low:g} to {high:g}.")


def _check_type(name: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            choices = ", ".join(map(str, typing.get_args(hint)))
            raise UserError("bad_config", f"{name} is {value!r}; expected one of {choices}.")
        return
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and type(value) in (int, float):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError("bad_config", f"{name} is {value}; expected a finite number.")
    elif type(value) not in allowed:
        names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
        raise UserError("bad_config", f"{name} is {value!r}; expected {names}.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to quantize."""

    source: str = setting(
        "bundled", "`bundled`, a Hugging Face hub id, a local folder or a GGUF file"
    )
    revision: str | None = setting(None, "hub branch, tag or commit; empty: the default branch")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the training tokens come from and how many there are."""

    source: Literal["builtin", "hub", "file"] = setting(
        "builtin", "built-in prompts, a hub dataset or a local JSONL, Parquet or text file"
    )
    path: str = setting("", "hub dataset id or file path; unused for built-in prompts")
    split: str = setting("train", "split of the hub dataset, e.g. train or train[:5000]")
    prompt_column: str = setting("prompt", "column with the user message")
    answer_column: str = setting("", "column with the answer; empty: the teacher answers itself")
    messages_column: str = setting(
        "", "column with a list of chat messages; replaces the two above"
    )
    text_column: str = setting("", "column with plain text; the loss then counts every token")
    max_rows: int = setting(1000, "rows or prompts used for training at most", 1, 10_000_000)
    held_out: int = setting(
        32, "prompts or texts kept out of training to measure fidelity", 1, 1000
    )
    answer_tokens: int = setting(128, "longest answer that the teacher writes, tokens", 8, 4096)
    answers_per_prompt: int = setting(1, "different sampled answers per prompt", 1, 64)
    answer_temperature: float = setting(
        0.8, "temperature of the teacher's sampling for training answers", 0.0, 2.0
    )
    sequence_tokens: int = setting(
        256, "longest training sequence, prompt and answer together, tokens", 16, 131_072
    )


@dataclass(frozen=True, kw_only=True)
class BlockwiseConfig:
    """Block-wise reconstruction (UPQ stage 1; Block-AP in EfficientQAT). tokens 0 turns it off."""

    tokens: int = setting(
        24_000, "calibration tokens; 0: no training, scales by search only", 0, 10**9
    )
    epochs: int = setting(2, "passes over the calibration tokens per block", 1, 100)
    batch_tokens: int = setting(2048, "tokens per optimizer step", 16, 1_000_000)
    weight_lr: float = setting(
        0.005, "learning rate of the weights (AdamW), in units of the layer's mean step", 0.0, 1.0
    )
    scale_lr: float = setting(
        0.003, "learning rate of the scales, relative to their size", 0.0, 1.0
    )


@dataclass(frozen=True, kw_only=True)
class Int4Config:
    """Stage 1: FP16 -> INT4 on the zero-free odd grid."""

    group_size: int = setting(
        64, "inputs that share a scale; 0: one scale per output channel, as in the paper", 0, 65_536
    )
    scale_init: Literal["search", "absmax"] = setting(
        "search", "initial scale: least squared error by search, or the largest weight"
    )
    blockwise: BlockwiseConfig = field(default_factory=BlockwiseConfig)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distillation QAT against the frozen FP16 teacher (UPQ stage 2)."""

    tokens: int = setting(60_000, "training tokens in all, prompts included", 0, 10**12)
    batch_tokens: int = setting(512, "tokens per forward and backward pass", 16, 1_000_000)
    accumulation: int = setting(1, "passes per optimizer step", 1, 4096)
    beta: float = setting(
        0.5,
        "generalized JSD: 0 is KL(FP16 || INT2), 1 is KL(INT2 || FP16); not public in the paper",
        0.0,
        1.0,
    )
    temperature: float = setting(
        1.0, "softmax temperature of both models in the loss; not public in the paper", 0.05, 20.0
    )
    weight_lr: float = setting(
        3e-4, "peak learning rate of the weights, in units of the layer's mean step", 0.0, 1.0
    )
    scale_lr: float = setting(
        1e-3, "peak learning rate of the scales, relative to their size", 0.0, 1.0
    )
    weight_decay: float = setting(0.0, "AdamW weight decay", 0.0, 1.0)
    warmup_share: float = setting(0.05, "share of the steps with a rising learning rate", 0.0, 0.9)
    clip_norm: float = setting(1.0, "largest gradient norm; 0: no clipping", 0.0, 1000.0)
    checkpoint_seconds: float = setting(90.0, "time between resumable checkpoints", 0.0, 86_400.0)
    loss: Literal["jsd", "next_token"] = setting(
        "jsd", "jsd: towards FP16's distributions, as in UPQ; next_token: towards the text itself"
    )
    norm_lr: float = setting(
        0.0, "peak learning rate of the norms' weights; 0: they stay as they are", 0.0, 1.0
    )
    teacher: Literal["live", "cached", "int4"] = setting(
        "live",
        "live: FP16 in memory with the student; cached: its hidden states computed first and kept on disk; int4: "
        "the run's own INT4 model",
    )
    checkpointing: bool = setting(
        False, "compute each block's activations again in the backward pass: less memory, more time"
    )
    optimizer_bits: Literal[32, 8] = setting(
        32, "bits of each of the two moments that AdamW keeps per trained value"
    )


@dataclass(frozen=True, kw_only=True)
class Int2Config:
    """Stage 2: INT4 -> INT2 on the SEQ grid."""

    group_size: int = setting(
        64, "inputs that share a scale; 0: one scale per output channel, as in the paper", 0, 65_536
    )
    scale_init: Literal["search", "absmax"] = setting(
        "search", "initial scale on the INT4 weights: error search, or the largest weight (ParetoQ)"
    )
    warm_start: BlockwiseConfig = field(default_factory=BlockwiseConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What is measured at the end of a run."""

    baselines: bool = setting(True, "measure round-to-nearest INT4 and INT2 beside the artifacts")
    answer_tokens: int = setting(96, "longest held-out FP16 answer, tokens", 8, 4096)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One quantization run, complete: the same config and seed on a CPU give the same bits."""

    version: int = CONFIG_VERSION
    preset: str = setting("quick", "preset that the other fields started from")
    method: Literal["upq", "rtn"] = setting("upq", "UPQ, or the round-to-nearest baseline")
    seed: int = setting(0, "seed of every random draw", 0, 2**31 - 1)
    threads: int = setting(
        0, "CPU threads; 0: one per core. Part of what makes bits repeat", 0, 1024
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: the GPU where there is one")
    embedding_bits: Literal[16, 8] = setting(
        16,
        "bits of the input embedding and the output head; 8, rounded to nearest, saves half of them: 28 MB of "
        "the bundled model's 117 (INT4) or 90 (INT2)",
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    int4: Int4Config = field(default_factory=Int4Config)
    int2: Int2Config = field(default_factory=Int2Config)
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self) -> None:
        _check_fields(self, "")
        if self.version != CONFIG_VERSION:
            raise UserError(
                "bad_config",
                f"This config has version {self.version}; this program reads version {CONFIG_VERSION}.",
                "Use the version of UPQ Studio that wrote it.",
            )
        if self.preset not in PRESETS:
            raise UserError(
                "bad_config", f"preset is {self.preset!r}; expected one of {', '.join(PRESETS)}."
            )
        if self.data.source != "builtin" and not self.data.path:
            raise UserError(
                "bad_config", f"data.path is empty; data.source={self.data.source} needs one."
            )

    def to_json(self) -> str:
        """The config as one JSON object with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> RunConfig:
        """Read what to_json wrote. Raises UserError("bad_config")."""
        try:
            return _build(RunConfig, json.loads(text), "")
        except (ValueError, RecursionError) as error:
            raise UserError("bad_config", f"The config is not JSON: {error}.") from error


def _build(kind: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError("bad_config", f"{prefix or 'config'} is {values!r}; expected an object.")
    hints = typing.get_type_hints(kind)
    for unknown in sorted(set(values) - set(hints)):
        path = f"{prefix}{unknown}"
        raise UserError("bad_config", f"Unknown setting {path}.", _nearest(path))
    parts = {
        name: _build(hints[name], value, f"{prefix}{name}.")
        if dataclasses.is_dataclass(hints[name])
        else value
        for name, value in values.items()
    }
    return kind(**parts)


def _nearest(name: str) -> str:
    """A hint that names the most similar setting; one with the same last part goes first."""
    paths = [path for path, _ in settings()]
    leaf = name.rpartition(".")[2]
    same_leaf = [path for path in paths if path.rpartition(".")[2] == leaf]
    leaves = {path.rpartition(".")[2]: path for path in paths}
    alike = (
        difflib.get_close_matches(name, same_leaf, 1, 0.0)
        or difflib.get_close_matches(name, paths, 1, 0.7)
        or [leaves[one] for one in difflib.get_close_matches(leaf, leaves, 1, 0.7)]
    )
    return (
        f"Did you mean {alike[0]}?"
        if alike
        else "`python -m upq run --help-settings` lists them all."
    )


def settings(config: RunConfig | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Every setting as (dotted path, {value, type, help, low, high}), in the order of the dataclasses."""
    return list(_walk(config or RunConfig(), ""))


def _walk(config: Any, prefix: str) -> typing.Iterator[tuple[str, dict[str, Any]]]:
    hints = typing.get_type_hints(type(config))
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{spec.name}.")
        elif spec.metadata:
            yield (
                f"{prefix}{spec.name}",
                {"value": value, "type": hints[spec.name], **spec.metadata},
            )


def with_settings(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """A copy with dotted settings replaced; text values are parsed by the field's type.

    Raises UserError("bad_config") for an unknown name or a value of the wrong type or range.
    """
    values = dataclasses.asdict(config)
    known = dict(settings(config))
    for path, raw in changes.items():
        if path not in known:
            raise UserError("bad_config", f"Unknown setting {path}.", _nearest(path))
        *parents, leaf = path.split(".")
        target = values
        for parent in parents:
            target = target[parent]
        target[leaf] = _parse(path, raw, known[path]["type"])
    return _build(RunConfig, values, "")


def _parse(path: str, raw: Any, hint: Any) -> Any:
    if not isinstance(raw, str):
        return int(raw) if hint is int and isinstance(raw, float) and raw.is_integer() else raw
    text = raw.strip()
    if isinstance(hint, types.UnionType):
        return text or None
    if typing.get_origin(hint) is Literal:
        return {str(choice): choice for choice in typing.get_args(hint)}.get(text, text)
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text.replace("_", ""))
        except ValueError:
            raise UserError("bad_config", f"{path} is {raw!r}; expected a number.") from None
    return text
