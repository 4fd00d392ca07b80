"""Checkpoints are complete or absent; a damaged newest one falls back to the one before."""

from pathlib import Path

import torch

from upq.quantize import checkpoint

TENSORS = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3)}


def damage(folder: Path) -> None:
    path = folder / checkpoint.TENSORS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_load_gives_what_save_wrote(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", TENSORS, {"step": 3, "name": "ü"})
    found = checkpoint.load(tmp_path / "c")
    assert found is not None
    tensors, state = found
    assert state == {"step": 3, "name": "ü"}
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }


def test_absent_and_damaged_checkpoints_give_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "absent") is None
    assert checkpoint.Steps(tmp_path / "absent").load() is None
    checkpoint.save(tmp_path / "c", TENSORS, {})
    damage(tmp_path / "c")
    assert checkpoint.load(tmp_path / "c") is None


def test_the_last_two_steps_are_kept_and_the_newest_complete_one_is_loaded(tmp_path: Path) -> None:
    steps = checkpoint.Steps(tmp_path)
    for step in (9, 10, 100):
        steps.save(step, TENSORS, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]

    def newest() -> int | None:
        found = steps.load()
        return found and found[1]["step"]

    assert newest() == 100
    damage(tmp_path / "step-00000100")
    assert newest() == 10
    damage(tmp_path / "step-00000010")
    assert newest() is None


def test_forget_removes_the_steps_and_nothing_else(tmp_path: Path) -> None:
    steps = checkpoint.Steps(tmp_path)
    for step in (1, 2):
        steps.save(step, TENSORS, {})
    checkpoint.save(tmp_path / "done", TENSORS, {})
    steps.forget()
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
