"""How INT4 and INT2 are made: by the same steps, so with the same settings.

What the papers leave open says so in its help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from upq.settings import setting


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
        0.0, "learning rate of the zeros of grid integer_zero, in codes", 0.0, 1.0
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
        "peak learning rate of the weights, in units of the layer's mean step; 0: they stay as they are",
        0.0,
        1.0,
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
        64, "inputs that share a scale; 0: one scale per output channel", 0, 65_536
    )
    grid: Literal["odd", "integer_zero"] = setting(
        "odd",
        "odd: levels at odd multiples of half a step, none of them 0 (UPQ); integer_zero: a zero per group "
        "(EfficientQAT)",
    )
    scale_init: Literal["search", "absmax"] = setting(
        "search",
        "initial scale: least squared error by search, or from the largest weight (of integer_zero: its range)",
    )
    rotation: Literal["none", "input", "both"] = setting(
        "none",
        "random signs and a Hadamard transform on a layer's inputs, or on inputs and outputs as in UniSVQ; applied "
        "to the activations while chatting",
    )
    rotation_block: int = setting(
        64, "largest block of the Hadamard transform; the width's power of two bounds it", 2, 4096
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
