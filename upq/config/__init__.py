"""What a run may be asked for: every setting with its type, range and help, and the presets of the methods."""

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
    "PRESETS",
    "PRESET_WORDS",
    "BlockwiseConfig",
    "DataConfig",
    "DistillConfig",
    "Int2Config",
    "Int4Config",
    "PrecisionConfig",
    "RunConfig",
    "as_text",
    "command",
    "preset",
    "settings",
    "with_settings",
]
