"""What a run may be asked for: every setting with its type, range and help, and the presets of the methods."""

from upq.config.presets import DEFAULT_METHOD, as_text, command, preset
from upq.config.schema import (
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
from upq.config.seeds import derived_seed

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "PRESETS",
    "BlockwiseConfig",
    "DataConfig",
    "DistillConfig",
    "Int2Config",
    "Int4Config",
    "PrecisionConfig",
    "RunConfig",
    "as_text",
    "command",
    "derived_seed",
    "preset",
    "settings",
    "with_settings",
]
