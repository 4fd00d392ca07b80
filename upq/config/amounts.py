"""How much each preset trains and reads, and where a method needs other amounts."""

from __future__ import annotations

from typing import Any

from upq.config.precision import QUANTIZED, Precision

Settings = dict[str, Any]


def _of(precision: Precision, settings: Settings) -> Settings:
    return {f"{precision.key}.{path}": value for path, value in settings.items()}


def for_int4(settings: Settings) -> Settings:
    """The settings of one precision, for INT4."""
    return _of(Precision.INT4, settings)


def for_int2(settings: Settings) -> Settings:
    """The settings of one precision, for INT2."""
    return _of(Precision.INT2, settings)


def for_both(settings: Settings) -> Settings:
    """The settings of one precision, for both of them."""
    return {
        path: value for precision in QUANTIZED for path, value in _of(precision, settings).items()
    }


#: Data and measurements.
COMMON: dict[str, Settings] = {
    "smoke": {
        "embedding_bits": 8,
        "data.max_rows": 8,
        "data.held_out": 4,
        "data.answer_tokens": 24,
        "data.sequence_tokens": 96,
        "measure.answer_tokens": 24,
    },
    "quick": {"embedding_bits": 8, "data.max_rows": 208},
    "overnight": {"embedding_bits": 8, "data.answers_per_prompt": 2, "data.answer_tokens": 192},
    "lease": {
        "embedding_bits": 8,
        "data.own_prompts": 3400,
        "data.answers_per_prompt": 3,
        "data.answer_tokens": 192,
        "measure.baselines": False,
    },
    "standard": {
        "embedding_bits": 8,
        "data.own_prompts": 6000,
        "data.answers_per_prompt": 4,
        "data.answer_tokens": 512,
        "data.sequence_tokens": 1024,
    },
    "paper": {
        "data.source": "hub",
        "data.path": "HuggingFaceTB/dclm-edu",
        "data.text_column": "text",
        "data.max_rows": 10_000_000,
        "data.sequence_tokens": 2048,
    },
}


def _blockwise(**values: float) -> Settings:
    """Settings of the block-wise training of a precision."""
    return {f"blockwise.{name}": value for name, value in values.items()}


def _distill(**values: float) -> Settings:
    """Settings of the end-to-end training of a precision."""
    return {f"distill.{name}": value for name, value in values.items()}


#: End-to-end training that fills a time on a GPU: the bundled model makes 80,000 to 120,000 tokens/s (docs/results.md),
#: so that the times end before the tokens do. A borrowed GPU that ends early is left early (upq.training.UNTIL).
_LEASE_INT4 = {
    "seconds": 90.0,
    "tokens": 80_000_000,
    "batch_tokens": 16_384,
    "checkpoint_seconds": 86_400.0,
}
_LEASE_INT2 = _LEASE_INT4 | {"seconds": 450.0}
_STANDARD_INT4 = {
    "seconds": 480.0,
    "tokens": 400_000_000,
    "batch_tokens": 16_384,
    "checkpoint_seconds": 600.0,
}
_STANDARD_INT2 = _STANDARD_INT4 | {"seconds": 2400.0}
#: What EfficientQAT's two stages have in common for both precisions.
_PAPER_BLOCK_AP = {
    "tokens": 8_388_608,
    "epochs": 2,
    "batch_tokens": 4096,
    "scale_lr": 3e-3,
    "zero_lr": 1e-4,
}
_PAPER_E2E_QP = {
    "tokens": 16_777_216,
    "batch_tokens": 16_384,
    "weight_lr": 0.0,
    "accumulation": 8,
    "warmup_share": 0.03,
    "clip_norm": 0.3,
}
_SMOKE = _blockwise(tokens=256, epochs=1, batch_tokens=256, weight_lr=0.01, scale_lr=0.005)
#: How much each preset trains unless its method says otherwise.
BUDGET: dict[str, Settings] = {
    "smoke": for_int4(_SMOKE)
    | for_int2(
        _SMOKE
        | _distill(
            tokens=512, batch_tokens=256, weight_lr=3e-4, scale_lr=1e-3, checkpoint_seconds=5.0
        )
    ),
    "quick": for_int4(
        _blockwise(tokens=8000, epochs=1, batch_tokens=512, weight_lr=0.01, scale_lr=0.003)
    )
    | for_int2(
        _blockwise(tokens=16_000, epochs=2, batch_tokens=512, weight_lr=0.03, scale_lr=0.01)
        | _distill(tokens=48_000, batch_tokens=512, weight_lr=3e-4, scale_lr=1e-3)
    ),
    "overnight": for_int4(
        _blockwise(tokens=24_000, epochs=2, batch_tokens=512, weight_lr=0.01, scale_lr=0.003)
    )
    | for_int2(
        _blockwise(tokens=48_000, epochs=2, batch_tokens=512, weight_lr=0.02, scale_lr=0.01)
        | _distill(tokens=500_000, batch_tokens=1024, weight_lr=3e-4, scale_lr=1e-3)
    ),
    "lease": for_int4(
        _blockwise(tokens=49_152, epochs=1, batch_tokens=2048, weight_lr=0.01, scale_lr=0.003)
    )
    | for_int2(
        _blockwise(tokens=65_536, epochs=1, batch_tokens=2048, weight_lr=0.02, scale_lr=0.01)
        | _distill(weight_lr=0.003, scale_lr=0.003, **_LEASE_INT2)
    ),
    "standard": for_int4(
        _blockwise(tokens=262_144, epochs=2, batch_tokens=2048, weight_lr=0.01, scale_lr=0.003)
    )
    | for_int2(
        _blockwise(tokens=262_144, epochs=2, batch_tokens=2048, weight_lr=0.02, scale_lr=0.01)
        | _distill(weight_lr=0.003, scale_lr=0.003, **_STANDARD_INT2)
    ),
    "paper": for_int4(
        _blockwise(tokens=2_000_000, epochs=2, batch_tokens=4096, weight_lr=1e-3, scale_lr=1e-3)
        | {"group_size": 0}
    )
    | for_int2(
        _blockwise(tokens=0, epochs=0, batch_tokens=4096, weight_lr=0.0, scale_lr=0.0)
        | {"group_size": 0, "scale_init": "absmax"}
        | _distill(
            tokens=30_000_000_000,
            batch_tokens=16_384,
            weight_lr=1e-3,  # ParetoQ's 2e-5
            scale_lr=1e-3,
            accumulation=16,
            warmup_share=0.0,
            checkpoint_seconds=1800.0,
        )
    ),
}
_ROTATED_TRAINING = {"weight_lr": 0.01, "scale_lr": 0.003, "norm_lr": 0.003}
#: On a CPU, where tokens are few, scales that learn alone end to end gain more than weights and scales together, which
#: noise moves away from what the blocks found (docs/results.md).
_SCALES_ALONE = {"weight_lr": 0.0, "scale_lr": 1e-3}
_UNISVQ_RATES = {"vector_lr": 5e-4, "norm_lr": 5e-5}

#: Where a method needs other amounts than its preset's.
AMOUNT: dict[tuple[str, str], Settings] = {
    ("smoke", "efficientqat"): for_int4(
        _distill(tokens=256, batch_tokens=256, weight_lr=0.0, scale_lr=1e-3)
    ),
    ("smoke", "unisvq"): for_both({"blockwise.batch_tokens": 256, "blockwise.vector_lr": 5e-3}),
    ("smoke", "rotated_upq"): for_both(
        _blockwise(tokens=256, epochs=1, batch_tokens=256, **_ROTATED_TRAINING)
    ),
    ("quick", "gptq"): for_both({"blockwise.tokens": 24_000}),
    ("quick", "efficientqat"): for_int4(
        _blockwise(
            tokens=8000,
            epochs=1,
            batch_tokens=512,
            weight_lr=0.01,
            scale_lr=0.003,
            zero_lr=0.01,
            norm_lr=0.001,
        )
        | _distill(tokens=8000, batch_tokens=512, weight_lr=0.0, scale_lr=1e-3)
    )
    | for_int2(
        _blockwise(
            tokens=20_000,
            epochs=2,
            batch_tokens=512,
            weight_lr=0.01,
            scale_lr=0.003,
            zero_lr=0.01,
            norm_lr=0.001,
        )
        | _distill(tokens=36_000, batch_tokens=512, weight_lr=0.0, scale_lr=2e-3)
    ),
    ("quick", "unisvq"): for_both(
        _blockwise(
            tokens=24_000, epochs=1, batch_tokens=512, weight_lr=0.0, scale_lr=0.0, **_UNISVQ_RATES
        )
        | {"blockwise.vector_lr": 3e-3, "descent_passes": 5}
    ),
    ("quick", "rotated_upq"): for_int4(
        _blockwise(tokens=8000, epochs=1, batch_tokens=512, **_ROTATED_TRAINING)
    )
    | for_int2(
        _blockwise(tokens=12_000, epochs=1, batch_tokens=256, **_ROTATED_TRAINING)
        | _distill(tokens=40_000, batch_tokens=512, **_SCALES_ALONE)
    ),
    ("overnight", "gptq"): for_both({"blockwise.tokens": 65_536}),
    ("overnight", "efficientqat"): for_both(
        {"blockwise.zero_lr": 0.01, "blockwise.norm_lr": 0.001, "distill.scale_lr": 1e-3}
    )
    | {"int2.blockwise.weight_lr": 0.01, "int2.blockwise.scale_lr": 0.003}
    | {"int4.distill.tokens": 60_000},
    ("overnight", "unisvq"): for_both(
        _blockwise(
            tokens=48_000, epochs=2, batch_tokens=512, weight_lr=0.0, scale_lr=0.0, **_UNISVQ_RATES
        )
        | {"blockwise.vector_lr": 2e-3, "descent_passes": 10}
    ),
    ("overnight", "rotated_upq"): for_int4(
        _blockwise(tokens=48_000, epochs=2, batch_tokens=256, **_ROTATED_TRAINING)
        | {"descent_passes": 2}
    )
    | for_int2(
        _blockwise(tokens=128_000, epochs=1, batch_tokens=256, **_ROTATED_TRAINING)
        | _distill(tokens=160_000, batch_tokens=512, **_SCALES_ALONE)
    ),
    ("lease", "gptq"): for_both({"blockwise.tokens": 65_536}),
    ("lease", "efficientqat"): for_both({"blockwise.zero_lr": 0.01, "blockwise.norm_lr": 0.001})
    | for_int4(_distill(weight_lr=0.0, scale_lr=1e-3, **_LEASE_INT4))
    | for_int2(
        {"blockwise.weight_lr": 0.01, "blockwise.scale_lr": 0.003, "distill.scale_lr": 1e-3}
    ),
    ("lease", "unisvq"): for_both(
        _blockwise(
            tokens=65_536, epochs=1, batch_tokens=2048, weight_lr=0.0, scale_lr=0.0, **_UNISVQ_RATES
        )
        | {"blockwise.vector_lr": 2e-3, "descent_passes": 10}
    ),
    ("lease", "rotated_upq"): for_int4(
        _blockwise(tokens=49_152, epochs=1, batch_tokens=2048, **_ROTATED_TRAINING)
        | _distill(weight_lr=0.002, scale_lr=0.002, norm_lr=0.001, **_LEASE_INT4)
        | {"descent_passes": 2}
    )
    | for_int2(
        _blockwise(tokens=65_536, epochs=1, batch_tokens=2048, **_ROTATED_TRAINING)
        | _distill(weight_lr=0.003, scale_lr=0.003, norm_lr=0.001, **_LEASE_INT2)
    ),
    ("standard", "gptq"): for_both({"blockwise.tokens": 262_144, "blockwise.batch_tokens": 8192}),
    ("standard", "efficientqat"): for_both({"blockwise.zero_lr": 0.01, "blockwise.norm_lr": 0.001})
    | for_int4(_distill(weight_lr=0.0, scale_lr=1e-3, **_STANDARD_INT4))
    | for_int2(
        {"blockwise.weight_lr": 0.01, "blockwise.scale_lr": 0.003, "distill.scale_lr": 1e-3}
    ),
    ("standard", "unisvq"): for_both(
        _blockwise(
            tokens=262_144,
            epochs=2,
            batch_tokens=4096,
            weight_lr=0.0,
            scale_lr=0.0,
            **_UNISVQ_RATES,
        )
        | {"descent_passes": 10}
    ),
    ("standard", "rotated_upq"): for_both(
        _blockwise(tokens=262_144, epochs=2, batch_tokens=2048, **_ROTATED_TRAINING)
        | {"descent_passes": 3}
    )
    | for_int4(_distill(weight_lr=0.002, scale_lr=0.002, norm_lr=0.001, **_STANDARD_INT4))
    | for_int2(_distill(weight_lr=0.003, scale_lr=0.003, norm_lr=0.001, **_STANDARD_INT2)),
    ("paper", "gptq"): for_both({"blockwise.tokens": 262_144, "group_size": 128}),
    ("paper", "efficientqat"): for_both({"group_size": 64, "scale_init": "absmax"})
    | for_int4(
        _blockwise(weight_lr=3e-4, norm_lr=1e-5, **_PAPER_BLOCK_AP)
        | _distill(scale_lr=3e-4, **_PAPER_E2E_QP)
    )
    | for_int2(
        _blockwise(weight_lr=7e-4, norm_lr=2e-5, **_PAPER_BLOCK_AP)
        | _distill(scale_lr=7e-4, **_PAPER_E2E_QP)
    ),
    ("paper", "unisvq"): for_both(
        _blockwise(
            tokens=4_194_304,
            epochs=1,
            batch_tokens=16_384,
            weight_lr=0.0,
            scale_lr=0.0,
            **_UNISVQ_RATES,
        )
        | {"descent_passes": 10}
    ),
    ("paper", "rotated_upq"): for_both(
        {"scale_init": "search"}
        | _blockwise(tokens=2_000_000, epochs=2, batch_tokens=2048, **_ROTATED_TRAINING)
    )
    | {"int2.distill.norm_lr": 1e-3},
}
#: Without a rotation steps differ so much within a layer that training its weights end to end by one rate costs more
#: than it gives (docs/results.md). Where there are many tokens each learns by the step of its own group.
_PORTABLE_SCALES = for_int2(_distill(**_SCALES_ALONE))
_PORTABLE_WEIGHTS = for_both({"distill.weight_unit": "group"})
_PORTABLE_BATCHES = _PORTABLE_WEIGHTS | for_both({"distill.batch_tokens": 32_768})
_PORTABLE = {
    "lease": _PORTABLE_BATCHES,
    "standard": _PORTABLE_BATCHES,
    "paper": _PORTABLE_WEIGHTS,
}
AMOUNT |= {
    (preset, "portable_upq"): AMOUNT[preset, "rotated_upq"]
    | _PORTABLE.get(preset, _PORTABLE_SCALES)
    for preset, method in list(AMOUNT)
    if method == "rotated_upq"
}
#: A test of the machinery does not pay for the search of the layers that keep more bits.
AMOUNT["smoke", "portable_upq"] = AMOUNT["smoke", "portable_upq"] | {"int2.bits_target": 0.0}
