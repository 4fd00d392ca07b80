"""An export is there whole and compared, or not at all."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.support.export_cases import artifact_of, model_of
from tests.support.helpers import Stop
from upq.errors import UserError
from upq.export import FORMATS, PackedModel, Progress, export, format_named, make, opened
from upq.export.dense import Dense
from upq.files import verify_dir
from upq.models import LoadedModel

KEYS = [one.key for one in FORMATS]


@pytest.fixture
def model(tiny: LoadedModel) -> PackedModel:
    """INT4 that every format takes."""
    return model_of(tiny, "signed", 4)


def entries(folder: Path) -> list[str]:
    """Names in a folder, hidden ones as well."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("key", KEYS)
def test_progress_goes_from_0_to_1_and_never_back(
    key: str, model: PackedModel, tmp_path: Path
) -> None:
    shares: list[float] = []
    export(model, key, tmp_path / "out", shares.append)
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert shares[-1] == pytest.approx(1)
    assert sum(share < make.WRITING for share in shares) >= 1


@pytest.mark.parametrize("key", KEYS)
def test_what_is_made_is_listed_hashed_and_can_be_used(
    key: str, model: PackedModel, tmp_path: Path
) -> None:
    made = export(model, key, tmp_path / "out")
    assert verify_dir(made.folder) == []
    beside = {"MANIFEST.sha256", "README.md"}
    assert {path.name for path in made.files} == set(entries(made.folder)) - beside
    assert made.size_bytes == sum(path.stat().st_size for path in made.files)
    assert made.found.startswith("read back: ")
    assert all(use.program and use.command for use in made.uses)
    assert entries(tmp_path) == ["out"]


@pytest.mark.parametrize("key", KEYS)
def test_an_offer_is_near_to_what_is_written(key: str, model: PackedModel, tmp_path: Path) -> None:
    offer = format_named(key).offer(model)
    made = export(model, key, tmp_path / "out")
    headers = 16_384  # names and shapes, which are a small part of a real model
    assert abs(offer.size_bytes - made.size_bytes) < headers
    assert 2 < offer.bits_per_weight <= 16
    assert offer.exactness


@pytest.mark.parametrize("key", KEYS)
def test_stopping_leaves_nothing_behind(key: str, model: PackedModel, tmp_path: Path) -> None:
    for limit in (0.1, 0.9):

        def stop(share: float, limit: float = limit) -> None:
            if share >= limit:
                raise Stop

        with pytest.raises(Stop):
            export(model, key, tmp_path / "out", stop)
        assert entries(tmp_path) == []


def test_an_empty_folder_is_filled(model: PackedModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export(model, "safetensors", tmp_path / "out").files


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_is_never_replaced(kind: str, model: PackedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    note = out if kind == "file" else out / "note.txt"
    note.parent.mkdir(exist_ok=True)
    note.write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder") as caught:
        export(model, "safetensors", out)
    assert caught.value.code == "cannot_write"
    assert note.read_text() == "mine"
    assert entries(tmp_path) == ["out"]


def test_an_unknown_format_is_refused_with_the_known_ones(
    model: PackedModel, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="expected one of gguf, mlx, ") as caught:
        export(model, "onnx", tmp_path / "out")
    assert caught.value.code == "bad_argument"
    assert entries(tmp_path) == []


@pytest.mark.parametrize("key", KEYS)
def test_a_full_disk_is_said_and_leaves_nothing_behind(
    key: str, model: PackedModel, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(
            UserError, match=r"could not be written: .*(File too large|only a part of them fitted)"
        ) as caught:
            export(model, key, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "cannot_write"
    assert entries(tmp_path) == []


def test_files_that_differ_never_appear(
    model: PackedModel, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = model_of(tiny, "odd", 2)

    class Wrong(Dense):
        def write(self, model: PackedModel, folder: Path, progress: Progress) -> None:
            super().write(other, folder, progress)

    monkeypatch.setattr(make, "FORMATS", (Wrong(),))
    with pytest.raises(UserError, match="is not what the artifact holds") as caught:
        export(model, "safetensors", tmp_path / "out")
    assert caught.value.code == "export_differs"
    assert entries(tmp_path) == []


def test_a_file_of_the_tokenizer_that_leads_outside_is_refused(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    artifact = artifact_of(tiny, "odd", 4)
    artifact.files["../outside.json"] = b"{}"
    with pytest.raises(UserError, match="unsafe name") as caught:
        export(opened(artifact, "tiny"), "safetensors", tmp_path / "out")
    assert caught.value.code == "cannot_export"
    assert entries(tmp_path) == []


def test_files_of_the_tokenizer_keep_their_folders(tiny: LoadedModel, tmp_path: Path) -> None:
    artifact = artifact_of(tiny, "odd", 4)
    artifact.files["additional_chat_templates/tool.jinja"] = b"{{ messages }}"
    made = export(opened(artifact, "tiny"), "safetensors", tmp_path / "out")
    path = made.folder / "additional_chat_templates/tool.jinja"
    assert path in made.files
    assert path.read_bytes() == b"{{ messages }}"
