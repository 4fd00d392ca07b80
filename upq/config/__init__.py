"""What a run may be asked for: every setting with its type, range and help, the presets, and what is checked."""

from upq.config.checks import SUITES, TASKS, CheckConfig
from upq.config.precision import PRECISIONS, QUANTIZED, Precision, PrecisionName
from upq.config.presets import PRESET_WORDS, as_text, command, preset
from upq.config.schema import (
    DEFAULT_METHOD,
    METHODS,
    PRESETS,
    BlockwiseConfig,
    DataConfig,
    DistillConfig,
    Int2Config,
    Int4Config,
    PrecisionConfig,
    RotationKind,
    RunConfig,
    settings,
    with_settings,
)
from upq.config.seeds import derived_seed

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "PRECISIONS",
    "PRESETS",
    "PRESET_WORDS",
    "QUANTIZED",
    "SUITES",
    "TASKS",
    "BlockwiseConfig",
    "CheckConfig",
    "DataConfig",
    "DistillConfig",
    "Int2Config",
    "Int4Config",
    "Precision",
    "PrecisionConfig",
    "PrecisionName",
    "RotationKind",
    "RunConfig",
    "as_text",
    "command",
    "derived_seed",
    "preset",
    "settings",
    "with_settings",
]
