"""Which settings a method and a preset stand for: the method says how, the preset how much. And the way back: the
shell line that repeats a config.

Learning rates of weights count in steps of a layer's grid (upq.training.trainables), so they fit models of any size;
those of preset `paper` are the published ones at a step of 0.03, common from 1B on.
"""

from __future__ import annotations

import shlex
from typing import Any

from upq.config.precision import QUANTIZED, Precision
from upq.config.schema import (
    DEFAULT_METHOD,
    METHODS,
    PRESETS,
    RunConfig,
    settings,
    with_settings,
)
from upq.errors import UserError

Settings = dict[str, Any]
#: What each preset is for, in the words of the app, the command line and the documentation.
PRESET_WORDS = {
    "smoke": "a test of the machinery, a minute or two, not for use",
    "quick": "up to 12 minutes on 2 cores for the bundled model",
    "overnight": "up to 2 hours there, the quality that ships with the app",
    "standard": "about an hour on one GPU for 1B",
    "paper": "the published budget, on many GPUs",
}


def preset(name: str, method: str = DEFAULT_METHOD) -> RunConfig:
    """The RunConfig of a preset, one of PRESET_WORDS, and a method. Raises UserError("bad_config") for another name."""
    for what, given, known in (("preset", name, PRESETS), ("method", method, METHODS)):
        if given not in known:
            raise UserError(
                "bad_config", f"{what} is {given!r}; expected one of {', '.join(known)}."
            )
    chosen = COMMON[name] | BUDGET[name] | HOW[method] | AMOUNT.get((name, method), {})
    return with_settings(RunConfig(preset=name), {"method": method} | chosen)


def changes(config: RunConfig) -> dict[str, str]:
    """Dotted setting -> value as text, of the settings in which a config differs from its preset for its method.

    Model, method and preset are not among them. `with_settings` reads the texts back.
    """
    start = dict(settings(preset(config.preset, config.method)))
    named = {"model.source", "method", "preset"}
    return {
        path: as_text(setting["value"])
        for path, setting in settings(config)
        if path not in named and setting["value"] != start[path]["value"]
    }


def as_text(value: Any) -> str:
    """A setting's value as one writes it behind `--set NAME=`."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def command(config: RunConfig) -> str:
    """The shell line that repeats a run."""
    words = ["python", "-m", "upq", "run", "--model", config.model.source]
    words += ["--method", config.method, "--preset", config.preset]
    for path, value in changes(config).items():
        words += ["--set", f"{path}={value}"]
    return shlex.join(words)


def _of(precision: Precision, settings: Settings) -> Settings:
    return {f"{precision.key}.{path}": value for path, value in settings.items()}


def _int4(settings: Settings) -> Settings:
    return _of(Precision.INT4, settings)


def _int2(settings: Settings) -> Settings:
    return _of(Precision.INT2, settings)


def _both(settings: Settings) -> Settings:
    """The settings of one precision, for both of them."""
    return {
        path: value for precision in QUANTIZED for path, value in _of(precision, settings).items()
    }


_NO_TRAINING: Settings = {"blockwise.epochs": 0, "distill.tokens": 0}
_LDLQ: Settings = {"rounding": "ldlq", "blockwise.batch_tokens": 2048}

#: What a method does, whatever the budget.
HOW: dict[str, Settings] = {
    "rtn": _both({"blockwise.tokens": 0, "distill.tokens": 0}) | {"int2.start": "fp16"},
    "gptq": _both(_LDLQ | _NO_TRAINING) | {"int2.start": "fp16"},
    "upq": {"int2.start": "int4"},
    "efficientqat": _both(
        {
            "grid": "integer_zero",
            "scale_init": "absmax",
            "distill.loss": "next_token",
            "distill.weight_lr": 0.0,
        }
    )
    | {"int2.start": "fp16"},
    "unisvq": _both(
        _LDLQ
        | {
            "group_size": 0,
            "rotation": "both",
            "rotation_block": 128,
            "blockwise.inputs": "fp16",
            "blockwise.weight_lr": 0.0,
            "blockwise.scale_lr": 0.0,
            "distill.tokens": 0,
        }
    )
    | {"int2.start": "fp16"},
    "rotated_upq": _both({"rotation": "input", "rounding": "ldlq", "descent_passes": 1})
    | {"int2.start": "fp16", "int2.hessian": "normalized"},
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
    "standard": {
        "embedding_bits": 8,
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


_SMOKE = _blockwise(tokens=256, epochs=1, batch_tokens=256, weight_lr=0.01, scale_lr=0.005)
#: How much each preset trains unless its method says otherwise.
BUDGET: dict[str, Settings] = {
    "smoke": _int4(_SMOKE)
    | _int2(
        _SMOKE
        | _distill(
            tokens=512, batch_tokens=256, weight_lr=3e-4, scale_lr=1e-3, checkpoint_seconds=5.0
        )
    ),
    "quick": _int4(
        _blockwise(tokens=8000, epochs=1, batch_tokens=512, weight_lr=0.01, scale_lr=0.003)
    )
    | _int2(
        _blockwise(tokens=16_000, epochs=2, batch_tokens=512, weight_lr=0.03, scale_lr=0.01)
        | _distill(tokens=48_000, batch_tokens=512, weight_lr=3e-4, scale_lr=1e-3)
    ),
    "overnight": _int4(
        _blockwise(tokens=24_000, epochs=2, batch_tokens=512, weight_lr=0.01, scale_lr=0.003)
    )
    | _int2(
        _blockwise(tokens=48_000, epochs=2, batch_tokens=512, weight_lr=0.02, scale_lr=0.01)
        | _distill(tokens=500_000, batch_tokens=1024, weight_lr=3e-4, scale_lr=1e-3)
    ),
    "standard": _int4(
        _blockwise(tokens=262_144, epochs=2, batch_tokens=4096, weight_lr=0.003, scale_lr=0.001)
    )
    | _int2(
        _blockwise(tokens=262_144, epochs=2, batch_tokens=4096, weight_lr=0.01, scale_lr=0.005)
        | _distill(
            tokens=4_000_000,
            batch_tokens=8192,
            weight_lr=3e-4,
            scale_lr=1e-3,
            checkpoint_seconds=600.0,
        )
    ),
    "paper": _int4(
        _blockwise(tokens=2_000_000, epochs=2, batch_tokens=4096, weight_lr=1e-3, scale_lr=1e-3)
        | {"group_size": 0}
    )
    | _int2(
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
_UNISVQ_RATES = {"vector_lr": 5e-4, "norm_lr": 5e-5}

#: Where a method needs other amounts than its preset's.
AMOUNT: dict[tuple[str, str], Settings] = {
    ("smoke", "efficientqat"): _int4(
        _distill(tokens=256, batch_tokens=256, weight_lr=0.0, scale_lr=1e-3)
    ),
    ("smoke", "unisvq"): _both({"blockwise.batch_tokens": 256, "blockwise.vector_lr": 5e-3}),
    ("smoke", "rotated_upq"): _both(
        _blockwise(tokens=256, epochs=1, batch_tokens=256, **_ROTATED_TRAINING)
    ),
    ("quick", "gptq"): _both({"blockwise.tokens": 24_000}),
    ("quick", "efficientqat"): _int4(
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
    | _int2(
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
    ("quick", "unisvq"): _both(
        _blockwise(
            tokens=24_000, epochs=1, batch_tokens=512, weight_lr=0.0, scale_lr=0.0, **_UNISVQ_RATES
        )
        | {"blockwise.vector_lr": 3e-3, "descent_passes": 5}
    ),
    ("quick", "rotated_upq"): _int4(
        _blockwise(tokens=8000, epochs=1, batch_tokens=512, **_ROTATED_TRAINING)
    )
    | _int2(
        _blockwise(tokens=12_000, epochs=1, batch_tokens=256, **_ROTATED_TRAINING)
        | _distill(tokens=40_000, batch_tokens=512, weight_lr=1e-3, scale_lr=3e-3)
    ),
    ("overnight", "gptq"): _both({"blockwise.tokens": 65_536}),
    ("overnight", "efficientqat"): _both(
        {"blockwise.zero_lr": 0.01, "blockwise.norm_lr": 0.001, "distill.scale_lr": 1e-3}
    )
    | {"int2.blockwise.weight_lr": 0.01, "int2.blockwise.scale_lr": 0.003}
    | {"int4.distill.tokens": 60_000},
    ("overnight", "unisvq"): _both(
        _blockwise(
            tokens=48_000, epochs=2, batch_tokens=512, weight_lr=0.0, scale_lr=0.0, **_UNISVQ_RATES
        )
        | {"blockwise.vector_lr": 2e-3, "descent_passes": 10}
    ),
    ("overnight", "rotated_upq"): _both(
        _blockwise(tokens=24_000, epochs=2, batch_tokens=256, **_ROTATED_TRAINING)
    )
    | _int4({"descent_passes": 2})
    | _int2(_distill(tokens=480_000, batch_tokens=512, weight_lr=1e-3, scale_lr=3e-3)),
    ("standard", "gptq"): _both({"blockwise.tokens": 262_144, "blockwise.batch_tokens": 8192}),
    ("standard", "efficientqat"): _both(
        {"blockwise.zero_lr": 0.005, "blockwise.norm_lr": 0.001, "distill.scale_lr": 1e-3}
    )
    | {"int4.distill.tokens": 1_000_000},
    ("standard", "unisvq"): _both(
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
    ("standard", "rotated_upq"): _both(
        _blockwise(tokens=262_144, epochs=2, batch_tokens=2048, **_ROTATED_TRAINING)
        | {"descent_passes": 3}
    )
    | _int2(
        _distill(
            tokens=4_000_000,
            batch_tokens=8192,
            weight_lr=3e-4,
            scale_lr=1e-3,
            norm_lr=1e-3,
            checkpoint_seconds=600.0,
        )
    ),
    ("paper", "gptq"): _both({"blockwise.tokens": 262_144, "group_size": 128}),
    ("paper", "efficientqat"): _both({"group_size": 64, "scale_init": "absmax"})
    | _int4(
        _blockwise(
            tokens=8_388_608,
            epochs=2,
            batch_tokens=4096,
            weight_lr=3e-4,
            scale_lr=3e-3,
            zero_lr=1e-4,
            norm_lr=1e-5,
        )
        | _distill(
            tokens=16_777_216,
            batch_tokens=16_384,
            weight_lr=0.0,
            scale_lr=3e-4,
            accumulation=8,
            warmup_share=0.03,
            clip_norm=0.3,
        )
    )
    | _int2(
        _blockwise(
            tokens=8_388_608,
            epochs=2,
            batch_tokens=4096,
            weight_lr=7e-4,
            scale_lr=3e-3,
            zero_lr=1e-4,
            norm_lr=2e-5,
        )
        | _distill(
            tokens=16_777_216,
            batch_tokens=16_384,
            weight_lr=0.0,
            scale_lr=7e-4,
            accumulation=8,
            warmup_share=0.03,
            clip_norm=0.3,
        )
    ),
    ("paper", "unisvq"): _both(
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
    ("paper", "rotated_upq"): _both(
        {"scale_init": "search"}
        | _blockwise(tokens=2_000_000, epochs=2, batch_tokens=2048, **_ROTATED_TRAINING)
    )
    | {"int2.distill.norm_lr": 1e-3},
}
