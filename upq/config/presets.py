"""Which settings a method and a preset stand for: the method says how, the preset how much. And the way back: the
shell line that repeats a config.

Learning rates of weights count in steps of a layer's grid (upq.training.trainables), so they fit models of any size;
those of preset `paper` are the published ones at a step of 0.03, common from 1B on. The numbers are in
upq.config.amounts.
"""

from __future__ import annotations

import shlex
from typing import Any

from upq.config.amounts import AMOUNT, BUDGET, COMMON, Settings, for_both
from upq.config.schema import (
    DEFAULT_METHOD,
    METHODS,
    PRESETS,
    RunConfig,
    settings,
    with_settings,
)
from upq.errors import UserError, shown

#: What each preset is for, in the words of the app, the command line and the documentation.
PRESET_WORDS = {
    "smoke": "a test of the machinery, under 10 minutes on 2 cores with AVX2 for the bundled model, not for use",
    "quick": "12 minutes on 2 cores with AVX-512 for the bundled model, twice that with AVX2",
    "overnight": "up to 2 hours on 2 cores with AVX-512 for the bundled model, the best that a CPU gives",
    "lease": "what minutes of a borrowed GPU leave; whole, about 13 on an H200 for the bundled model",
    "standard": "about an hour on an H200 for the bundled model, by estimate",
    "paper": "the published budget, on many GPUs",
}


def preset(name: str, method: str = DEFAULT_METHOD) -> RunConfig:
    """The RunConfig of a preset, one of PRESET_WORDS, and a method. Raises UserError("bad_config") for another name."""
    for what, given, known in (("preset", name, PRESETS), ("method", method, METHODS)):
        if given not in known:
            raise UserError(
                "bad_config", f"{what} is {shown(given)}; expected one of {', '.join(known)}."
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


_NO_TRAINING: Settings = {"blockwise.epochs": 0, "distill.tokens": 0}
_LDLQ: Settings = {"rounding": "ldlq", "blockwise.batch_tokens": 2048}

#: Of both our methods: INT4 as GGUF's Q4_0 has it, INT2 from FP16.
_OURS: Settings = for_both({"rounding": "ldlq", "descent_passes": 1}) | {
    "int4.grid": "signed",
    "int4.group_size": 32,
    "int2.start": "fp16",
    "int2.hessian": "normalized",
}
#: What a method does, whatever the budget.
HOW: dict[str, Settings] = {
    "rtn": for_both({"blockwise.tokens": 0, "distill.tokens": 0}) | {"int2.start": "fp16"},
    "gptq": for_both(_LDLQ | _NO_TRAINING) | {"int2.start": "fp16"},
    "upq": {"int2.start": "int4"},
    "efficientqat": for_both(
        {
            "grid": "integer_zero",
            "scale_init": "absmax",
            "distill.loss": "next_token",
            "distill.weight_lr": 0.0,
        }
    )
    | {"int2.start": "fp16"},
    "unisvq": for_both(
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
    "rotated_upq": _OURS | for_both({"rotation": "input"}) | {"int2.grid": "q2_k"},
    "portable_upq": _OURS
    | {"int4.hessian": "normalized", "int2.grid": "gguf", "int2.bits_target": 2.7},
}
