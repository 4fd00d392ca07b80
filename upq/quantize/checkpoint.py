"""Resumable state as folders that are complete or absent: tensors in safetensors, the rest in JSON, no pickle.

A folder is committed by one rename with a manifest of sha256 hashes; a damaged one is never loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from upq.files import commit_dir, remove_dir, verify_dir

TENSORS = "tensors.safetensors"
STATE = "state.json"


def save(folder: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Commit tensors and a JSON-able state as `folder`."""

    def write(staging: Path) -> None:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            staging / TENSORS,
        )
        (staging / STATE).write_text(json.dumps(state), encoding="utf-8")

    commit_dir(folder, write)


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """What save wrote, or None where the folder is absent or fails its hashes."""
    if not folder.is_dir() or verify_dir(folder):
        return None
    return load_file(folder / TENSORS), json.loads((folder / STATE).read_text(encoding="utf-8"))


def save_step(
    parent: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]
) -> None:
    """Commit step `step` below parent; keeps it and the one before it."""
    save(parent / f"step-{step:08d}", tensors, state)
    for old in sorted(parent.glob("step-*"))[:-2]:
        remove_dir(old)


def load_newest_step(parent: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The newest complete step below parent; older ones stand in for a damaged one."""
    for folder in sorted(parent.glob("step-*"), reverse=True):
        found = load(folder)
        if found is not None:
            return found
    return None


def forget(parent: Path, pattern: str) -> None:
    """Remove the checkpoints below parent whose names match a glob pattern."""
    for folder in parent.glob(pattern):
        remove_dir(folder)
