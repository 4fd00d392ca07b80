"""Every setting of a run: frozen dataclasses, JSON with a version. A method is a name for a choice of settings
(upq.config.presets).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from upq.config.conflicts import GGUF_BLOCK, TWO_LEVEL_GROUP, check_bases, check_precision
from upq.config.fields import build, check_fields, nearest, parse, setting, walk
from upq.config.older import CONFIG_VERSION, upgraded
from upq.config.precision import QUANTIZED, Precision
from upq.errors import UserError, shown

Method = Literal["rotated_upq", "portable_upq", "upq", "efficientqat", "unisvq", "gptq", "rtn"]
METHODS: tuple[Method, ...] = get_args(Method)
#: The method of a run for which nobody chooses one.
DEFAULT_METHOD: Method = "rotated_upq"
#: The method whose settings are the defaults of the fields below, so a stored config that names no method is of it.
METHOD_OF_FIELDS: Method = "upq"
#: What an absorbed rotation is: drawn uniformly, a whole Hadamard matrix, or one in blocks, each behind random signs.
RotationKind = Literal["orthogonal", "hadamard", "block_hadamard"]
PRESETS = ("smoke", "quick", "overnight", "lease", "standard", "paper")


@dataclass(frozen=True, kw_only=True)
class BlockwiseConfig:
    """Block-wise reconstruction (UPQ stage 1; Block-AP in EfficientQAT). A learning rate of 0 trains nothing."""

    tokens: int = setting(
        24_000,
        "calibration tokens, for statistics and training; 0: none, scales by search only",
        0,
        10**9,
    )
    epochs: int = setting(
        2, "passes over the calibration tokens per block; 0: statistics only, no training", 0, 100
    )
    batch_tokens: int = setting(2048, "tokens per optimizer step", 16, 1_000_000)
    inputs: Literal["quantized", "fp16"] = setting(
        "quantized",
        "what a block reads: the quantized blocks' outputs, or FP16's, as in UniSVQ's code",
    )
    weight_lr: float = setting(
        0.005, "learning rate of the weights (AdamW), in units of the layer's mean step", 0.0, 1.0
    )
    scale_lr: float = setting(
        0.003, "learning rate of the scales, relative to their size", 0.0, 1.0
    )
    zero_lr: float = setting(
        0.0, "learning rate of the zeros of grids integer_zero and q2_k, in codes", 0.0, 1.0
    )
    norm_lr: float = setting(
        0.0, "learning rate of the norms' weights, relative to their mean size", 0.0, 1.0
    )
    vector_lr: float = setting(
        0.0, "learning rate of the vectors around rotated weights (UniSVQ's SU and SV)", 0.0, 1.0
    )
    lattice_lr: float = setting(
        0.0, "learning rate of UniSVQ's lattice, A and B of codebook lattice", 0.0, 1.0
    )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """End-to-end training against the frozen FP16 teacher (UPQ stage 2; E2E-QP in EfficientQAT). tokens 0: none."""

    tokens: int = setting(60_000, "training tokens in all, prompts included", 0, 10**12)
    seconds: float = setting(
        0.0,
        "time to fill with training: rates fall with the time, and it ends when the time is up or after the tokens; "
        "0: the tokens decide, as they must for bits that repeat",
        0.0,
        10**7,
    )
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
        3e-4,
        "peak learning rate of the weights, in steps of their grid (weight_unit); 0: they stay as they are",
        0.0,
        1.0,
    )
    weight_unit: Literal["layer", "group"] = setting(
        "layer",
        "whose step weight_lr is counted in: the layer's mean step, or that of each weight's own group, which differ "
        "much where nothing is rotated",
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
class PrecisionConfig:
    """How one precision is made: grid, rotation, rounding, block-wise training, end-to-end training."""

    group_size: int = setting(
        64, "inputs that share a scale; 0: one scale per output channel; q2_k has 16", 0, 65_536
    )
    grid: Literal["odd", "signed", "q2_k", "gguf", "integer_zero"] = setting(
        "odd",
        "odd: levels at odd multiples of half a step, none of them 0 (UPQ); signed: 0 is a level, scales of either "
        "sign (GGUF's Q4_0 and Q2_0); q2_k: of INT2, groups of 16 with scale and minimum in few bits (GGUF's Q2_K); "
        "gguf: of INT2, q2_k where 256 divides a layer's inputs, as GGUF asks, else signed; "
        "integer_zero: a zero per group (EfficientQAT)",
    )
    scale_init: Literal["search", "absmax"] = setting(
        "search",
        "initial scale: least squared error by search, or from the largest weight (where groups have zeros: their "
        "range)",
    )
    rotation: Literal["none", "input", "both", "absorbed"] = setting(
        "none",
        "random signs and a Hadamard transform on a layer's inputs, or on inputs and outputs as in UniSVQ, applied to "
        "the activations while chatting; absorbed: rotations that are part of the weights, nothing is applied",
    )
    rotation_block: int = setting(
        64, "largest block of the Hadamard transform; the width's power of two bounds it", 2, 4096
    )
    absorbed_kind: RotationKind = setting(  # noqa: RUF009 - a field; ruff does not see that the alias is immutable
        "orthogonal",
        "of rotation absorbed. orthogonal: drawn uniformly; hadamard: a whole Hadamard matrix; block_hadamard: in "
        "blocks of rotation_block at most; both with random signs",
    )
    rounding: Literal["nearest", "ldlq"] = setting(
        "nearest",
        "nearest level, or LDLQ: errors are carried on to later inputs by the Hessian (GPTQ, UniSVQ)",
    )
    hessian: Literal["plain", "normalized"] = setting(
        "plain",
        "of LDLQ. plain: X^T X of the layer's inputs; normalized: every token's inputs at length 1, so that a few "
        "tokens with massive activations do not decide alone",
    )
    descent_passes: int = setting(
        0, "passes of coordinate descent over the codes after LDLQ, scales refitted in each", 0, 100
    )
    codebook: Literal["scalar", "lattice"] = setting(
        "scalar",
        "lattice: four codes z stand for A z + B, as in UniSVQ; its code has A = c I: scalar",
    )
    blockwise: BlockwiseConfig = field(default_factory=BlockwiseConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def form(self, columns: int) -> tuple[str, int]:
        """(grid, inputs of a group) of a layer with so many inputs."""
        if self.grid == "q2_k" or (self.grid == "gguf" and columns % GGUF_BLOCK == 0):
            return "q2_k", TWO_LEVEL_GROUP
        return "signed" if self.grid == "gguf" else self.grid, self.group_size

    @property
    def dividing_group(self) -> int:
        """Inputs that have to divide the width of every layer."""
        return TWO_LEVEL_GROUP if self.grid == "q2_k" else self.group_size

    @property
    def rotates_activations(self) -> bool:
        """Whether layers have a transform around them; an absorbed rotation leaves plain ones."""
        return self.rotation in ("input", "both")

    @property
    def basis(self) -> tuple[str, int] | None:
        """What decides, beside the seed, how the FP16 model is rewritten; None: it stays as it is."""
        if self.rotation != "absorbed":
            return None
        return self.absorbed_kind, self.rotation_block * (self.absorbed_kind == "block_hadamard")


@dataclass(frozen=True, kw_only=True)
class Int4Config(PrecisionConfig):
    """FP16 -> INT4."""

    distill: DistillConfig = field(default_factory=lambda: DistillConfig(tokens=0))


@dataclass(frozen=True, kw_only=True)
class Int2Config(PrecisionConfig):
    """FP16 or INT4 -> INT2."""

    start: Literal["int4", "fp16"] = setting(
        "int4", "weights that INT2 starts from: those of INT4 (UPQ's progressive step), or FP16's"
    )
    bits_target: float = setting(
        0.0,
        "bits per quantized weight to spend: the layers that hurt most keep INT4's form until that many are used, "
        "2.6 for instance; 0: no layer does",
        0.0,
        8.0,
    )


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
    method: Method = setting(  # noqa: RUF009 - a field; ruff does not see that the alias is immutable
        METHOD_OF_FIELDS, "the method whose defaults the settings below started from"
    )
    seed: int = setting(0, "seed of every random draw", 0, 2**31 - 1)
    threads: int = setting(
        0, "CPU threads; 0: one per core. Part of what makes bits repeat", 0, 1024
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: the GPU where there is one")
    save_memory: bool = setting(
        True,
        "for a model with 2 billion quantized weights or more: 8-bit moments, checkpointing and the INT4 teacher in "
        "distillations where nobody has set these; false: they stay as they are",
    )
    embedding_bits: Literal[16, 8, 4] = setting(
        16,
        "bits of the input embedding and the output head; 8, rounded to nearest, saves half of them: 28 MB of "
        "the bundled model's 117 (INT4) or 90 (INT2); 4: the embedding has 4, the head 8, and a matrix that is both 8",
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
        for precision in QUANTIZED:
            check_precision(precision.key, self.of(precision))
        check_bases(self.int4, self.int2)
        if self.preset not in PRESETS:
            raise UserError(
                "bad_config",
                f"preset is {shown(self.preset)}; expected one of {', '.join(PRESETS)}.",
            )
        if self.data.source != "builtin" and not self.data.path:
            raise UserError(
                "bad_config", f"data.path is empty; data.source={self.data.source} needs one."
            )

    def of(self, precision: Precision) -> Int4Config | Int2Config:
        """How one of QUANTIZED is made."""
        return {Precision.INT4: self.int4, Precision.INT2: self.int2}[precision]

    @property
    def reads_data(self) -> bool:
        """Whether any stage looks at training sequences."""
        return any(
            config.blockwise.tokens or config.distill.tokens for config in map(self.of, QUANTIZED)
        )

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
        return _read(upgraded(values))


def _read(values: Any) -> RunConfig:
    return build(RunConfig, values, "", [path for path, _ in settings()])


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
            raise UserError(
                "bad_config", f"Unknown setting {shown(path)[1:-1]}.", nearest(path, list(known))
            )
        *parents, leaf = path.split(".")
        target = values
        for parent in parents:
            target = target[parent]
        target[leaf] = parse(path, raw, known[path]["type"])
    return _read(values)
