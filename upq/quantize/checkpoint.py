"""Resumable state as folders that are complete or absent: tensors in safetensors, the rest in JSON, no pickle.

A folder is committed by one rename with a manifest of sha256 hashes; a damaged one is never loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Steps:
    """The checkpoints of a training, one for each step that was kept, in the folder `parent`."""

    parent: Path

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Commit step number `step`; it and the one before it are kept."""
        save(self.parent / f"step-{step:08d}", tensors, state)
        for old in self._folders()[:-2]:
            remove_dir(old)

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest complete step, or None; older ones stand in for a damaged one."""
        for folder in reversed(self._folders()):
            found = load(folder)
            if found is not None:
                return found
        return None

    def forget(self) -> None:
        """Remove every step."""
        for folder in self._folders():
            remove_dir(folder)

    def _folders(self) -> list[Path]:
        return sorted(self.parent.glob("step-*"))
