"""Every setting of a run: frozen dataclasses, JSON with a version. A method is a name for a choice of settings
(upq.presets).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from upq.errors import UserError
from upq.precision_config import Int2Config, Int4Config, PrecisionConfig
from upq.settings import build, check_fields, nearest, parse, setting, walk

CONFIG_VERSION = 2
METHODS = ("rotated_upq", "upq", "efficientqat", "unisvq", "gptq", "rtn")
PRESETS = ("smoke", "quick", "overnight", "standard", "paper")


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
    own_prompts: int = setting(
        0,
        "prompts that the FP16 model writes itself, beside those of the source; each is answered like them",
        0,
        10_000_000,
    )
    own_prompt_temperature: float = setting(
        1.0,
        "temperature of the sampling of own prompts; lower ones repeat each other more",
        0.1,
        2.0,
    )
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
class MeasureConfig:
    """What is measured at the end of a run."""

    baselines: bool = setting(True, "measure round-to-nearest INT4 and INT2 beside the artifacts")
    answer_tokens: int = setting(96, "longest held-out FP16 answer, tokens", 8, 4096)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One quantization run, complete: the same config and seed on a CPU give the same bits."""

    version: int = CONFIG_VERSION
    preset: str = setting("quick", "preset that the other fields started from")
    method: Literal["rotated_upq", "upq", "efficientqat", "unisvq", "gptq", "rtn"] = setting(
        "upq", "the method whose defaults the settings below started from"
    )
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
        check_fields(self, "")
        if self.version != CONFIG_VERSION:
            raise UserError(
                "bad_config",
                f"This config has version {self.version}; this program reads version {CONFIG_VERSION}.",
                "Use the version of UPQ Studio that wrote it.",
            )
        for name, one in (("int4", self.int4), ("int2", self.int2)):
            _check_precision(name, one)
        if self.preset not in PRESETS:
            raise UserError(
                "bad_config", f"preset is {self.preset!r}; expected one of {', '.join(PRESETS)}."
            )
        if self.data.source != "builtin" and not self.data.path:
            raise UserError(
                "bad_config", f"data.path is empty; data.source={self.data.source} needs one."
            )

    @property
    def reads_data(self) -> bool:
        """Whether any stage looks at training sequences."""
        stages = (self.int4, self.int2)
        return any(one.blockwise.tokens or one.distill.tokens for one in stages)

    def to_json(self) -> str:
        """The config as one JSON object with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> RunConfig:
        """Read what to_json wrote. Raises UserError("bad_config")."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError("bad_config", f"The config is not JSON: {error}.") from error
        return RunConfig.from_values(values)

    @staticmethod
    def from_values(values: Any) -> RunConfig:
        """Build it from parsed JSON, of this version or an older one. Raises UserError("bad_config")."""
        return _read(_upgraded(values))


def _check_precision(name: str, config: PrecisionConfig) -> None:
    """Raise UserError("bad_config") for settings that exclude each other."""
    if config.rounding == "ldlq" and not config.blockwise.tokens:
        raise UserError(
            "bad_config",
            f"{name}.rounding is ldlq, which needs calibration tokens; {name}.blockwise.tokens is 0.",
        )
    if config.codebook == "lattice" and (config.rounding != "ldlq" or config.grid != "odd"):
        raise UserError(
            "bad_config",
            f"{name}.codebook is lattice; expected {name}.rounding=ldlq and {name}.grid=odd with it.",
        )


def _read(values: Any) -> RunConfig:
    return build(RunConfig, values, "", [path for path, _ in settings()])


def _upgraded(values: Any) -> Any:
    """Values of version 1, whose INT2 had its block-wise training under the name warm_start, as version 2."""
    if not isinstance(values, dict) or values.get("version") != 1:
        return values
    values = {**values, "version": CONFIG_VERSION}
    if "warm_start" in (int2 := values.get("int2", {})):
        values["int2"] = {name: one for name, one in int2.items() if name != "warm_start"}
        values["int2"]["blockwise"] = int2["warm_start"]
    if values.get("method") == "rtn":  # trained nothing, whatever its settings said
        for name in ("int4", "int2"):
            parts = {**values.get(name, {}), "blockwise": {"tokens": 0}, "distill": {"tokens": 0}}
            values[name] = parts
    return values


def settings(config: RunConfig | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Every setting as (dotted path, {value, type, help, low, high}), in the order of the dataclasses."""
    return list(walk(config or RunConfig()))


def with_settings(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """A copy with dotted settings replaced; text values are parsed by the field's type.

    Raises UserError("bad_config") for an unknown name or a value of the wrong type or range.
    """
    values = dataclasses.asdict(config)
    known = dict(settings(config))
    for path, raw in changes.items():
        if path not in known:
            raise UserError("bad_config", f"Unknown setting {path}.", nearest(path, list(known)))
        *parents, leaf = path.split(".")
        target = values
        for parent in parents:
            target = target[parent]
        target[leaf] = parse(path, raw, known[path]["type"])
    return _read(values)
