"""What a run may be asked for: every setting with its type, range and help, and the presets of the methods."""

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
    RunConfig,
    settings,
    with_settings,
)

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "PRECISIONS",
    "PRESETS",
    "PRESET_WORDS",
    "QUANTIZED",
    "BlockwiseConfig",
    "DataConfig",
    "DistillConfig",
    "Int2Config",
    "Int4Config",
    "Precision",
    "PrecisionConfig",
    "PrecisionName",
    "RunConfig",
    "as_text",
    "command",
    "preset",
    "settings",
    "with_settings",
]
