"""Folders with the configs of large models, which say all that an estimate has to know, and no weights."""

from __future__ import annotations

from pathlib import Path

from bench import gpu_decode, gpu_scale

#: Name -> config.
CONFIGS = gpu_decode.MODELS | gpu_scale.MODELS


def folder_of(name: str, parent: Path) -> Path:
    """A folder inside of parent with the config of a model."""
    CONFIGS[name].save_pretrained(parent / name)
    return parent / name
