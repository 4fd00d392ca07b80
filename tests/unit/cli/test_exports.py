"""The commands that take a run elsewhere: what they write and say, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file

from tests.support import hub as stand_in
from tests.support.exported_runs import checked, exportable_run
from tests.support.store_cases import a_check
from upq.__main__ import main
from upq.decode import Decoding
from upq.export import CARD, Offer, PackedModel
from upq.export.dense import Dense
from upq.export.formats import cannot_export
from upq.jobs import Models, exports, follow
from upq.models import load
from upq.store import Store, open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A data folder with a run of both precisions (1), its check (2), one of INT4 alone (3), and a waiting one (4)."""
    folder = tmp_path_factory.mktemp("data")
    store, tiny = open_store(folder), load(str(tiny_model_dir))
    exportable_run(store, tiny, tiny_model_dir)
    checked(store, 1, {"FP16": [True, True], "INT4": [True, False]})
    exportable_run(store, tiny, tiny_model_dir, ("INT4",))
    store.request_cancel(store.enqueue_check(a_check(1)))
    store.close()
    return folder


def called(folder: Path, *arguments: str) -> int:
    return main(["--data-dir", str(folder), *arguments])


def test_export_writes_the_files_and_says_how_they_are_used(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--precision", "int2", "--format", "safetensors", "--json", "made.json")
    assert called(folder, "export", "1", *flags) == 0
    out, err = capsys.readouterr()
    made = tmp_path / "tiny-llama-INT2-safetensors"
    assert (made / CARD).is_file()
    assert "model.embed_tokens.weight" in load_file(made / "model.safetensors")
    for words in (made.name, "read back: every tensor", "model.safetensors  1", "vllm serve ."):
        assert words in out
    assert err.splitlines()[-1] == "safetensors: 100 %"
    told = json.loads((tmp_path / "made.json").read_text())
    assert (told["run"], told["precision"], told["format"]) == (1, "INT2", "safetensors")
    assert {one["name"]: one["size_bytes"] for one in told["files"]} == {
        path.name: path.stat().st_size
        for path in made.iterdir()
        if path.name not in (CARD, "MANIFEST.sha256")
    }
    assert [one["program"] for one in told["uses"]] == ["transformers", "vLLM"]


def test_a_run_of_one_precision_needs_no_name_of_it(folder: Path, tmp_path: Path) -> None:
    assert (
        called(folder, "export", "3", "--format", "safetensors", "--out", str(tmp_path / "o")) == 0
    )
    assert yaml.safe_load((tmp_path / "o" / CARD).read_text().split("---")[1])["tags"][1] == "4-bit"


def test_list_tells_what_each_format_makes_or_why_it_makes_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Nothing(Dense):
        key = "nothing"

        def offer(self, model: PackedModel) -> Offer:
            raise cannot_export("It has four wheels.")

    monkeypatch.setattr(exports, "FORMATS", (Dense(), Nothing()))
    assert called(folder, "export", "1", "--list", "--json", str(tmp_path / "list.json")) == 0
    out = capsys.readouterr().out
    assert "no: It has four wheels." in out
    rows = json.loads((tmp_path / "list.json").read_text())["formats"]
    assert [(row["precision"], row["key"]) for row in rows] == [
        ("INT4", "safetensors"),
        ("INT4", "nothing"),
        ("INT2", "safetensors"),
        ("INT2", "nothing"),
    ]
    assert rows[0]["bits_per_weight"] == 16.0
    assert rows[1]["why_not"] == "It has four wheels."


def test_push_without_sending_writes_what_would_be_sent(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--precision", "INT4", "--format", "safetensors", "--repo", "me/tiny", "--private")
    assert called(folder, "push", "1", *flags, "--dry-run", str(tmp_path / "dry")) == 0
    out = capsys.readouterr().out
    assert "https://huggingface.co/me/tiny (private" in out
    assert "  README.md\n" in out
    assert "MANIFEST" not in out
    assert "perplexity of these answers" in (tmp_path / "dry" / CARD).read_text()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client
def test_push_sends_the_files_with_their_card(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with stand_in.running("me", "hf_secret") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        flags = ("--precision", "INT4", "--format", "safetensors", "--repo", "me/tiny")
        assert called(folder, "push", "1", *flags) == 0
    sent = hub.models["me/tiny"]
    assert {CARD, "config.json", "model.safetensors", "tokenizer.json"} <= sent.keys()
    assert b"Built\\-in checks" in sent[CARD]
    assert f"{hub.address}/me/tiny: INT4 of run 1" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == before


def answer(store: Store, run_id: int, precision: str) -> str:
    served = Models(store).get(run_id, precision, store.run(run_id).model)
    asked = [{"role": "user", "content": "Hello"}]
    wanted = Decoding(max_new_tokens=12)
    text = ""
    for piece in served.write(asked, wanted):
        text = piece.text
    return text


def test_a_packed_run_chats_elsewhere_with_the_same_tokens_and_shows_the_same_figures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, packed = tmp_path / "there", tmp_path / "tiny.upq"
    assert called(folder, "pack", "1", str(packed)) == 0
    assert f"{packed}: run 1 with INT4, INT2, 1 finished check" in capsys.readouterr().out
    open_store(folder).close()
    assert called(there, "unpack", str(packed)) == 0
    out = capsys.readouterr().out
    assert f"Run 1 is {packed} with INT4, INT2, 1 finished check." in out
    assert "python -m upq chat 1 --precision INT4,INT2" in out
    assert called(there, "unpack", str(packed)) == 0
    assert "is here already as run 1; nothing was added" in capsys.readouterr().out
    here, elsewhere = open_store(folder), open_store(there)
    for precision in ("INT4", "INT2"):
        expected = answer(here, 1, precision)
        assert expected
        assert answer(elsewhere, 1, precision) == expected
    assert follow.summary(elsewhere, 1) == follow.summary(here, 1)
    assert elsewhere.check_results(2) == here.check_results(2)
    assert (
        called(
            there,
            "export",
            "1",
            "--precision",
            "INT2",
            "--format",
            "safetensors",
            "--out",
            str(tmp_path / "o"),
        )
        == 0
    )
    capsys.readouterr()
    assert called(there, "list") == called(there, "show", "1") == called(there, "doctor") == 0
    shown = capsys.readouterr().out
    assert "in order" in shown
    assert "Unpacked from tiny.upq." in shown
    here.close()
    elsewhere.close()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such run": (["export", "7", "--format", "safetensors"], "There is no run 7."),
    "two precisions": (["export", "1", "--format", "safetensors"], "Run 1 has INT4 and INT2; expected --precision"),
    "a precision that none has": (["export", "1", "--precision", "FP16"], "expected INT4 or INT2"),
    "a precision that the run lacks": (["export", "3", "--precision", "int2"], "Run 3 has no INT2 model."),
    "a check": (["export", "2", "--format", "safetensors"], "Run 2 has no INT4 or INT2 model."),
    "no format": (["export", "3"], "No format is named; expected one of gguf, "),
    "no such format": (["export", "3", "--format", "zip"], "format is 'zip'; expected one of"),
    "a folder with files": (["export", "3", "--format", "safetensors", "--out", "{here}"], "is not an empty folder"),
    "a folder in a file": (["export", "3", "--format", "safetensors", "--out", "{file}/out"], "could not be written"),
    "push of no run": (["push", "7", "--format", "safetensors", "--repo", "a/b"], "There is no run 7."),
    "push to no name": (["push", "3", "--format", "safetensors", "--repo", "b"], "'b' is no name"),
    "push of no format": (["push", "3", "--format", "zip", "--repo", "a/b", "--dry-run", "x"], "format is 'zip'"),
    "push by nobody": (["push", "3", "--format", "safetensors", "--repo", "a/b"], "Nobody is logged in"),
    "pack of no run": (["pack", "7", "x.upq"], "There is no run 7."),
    "pack of a check": (["pack", "2", "x.upq"], "Run 2 is a check; expected a run that made models, such as run 1."),
    "pack of a waiting run": (["pack", "4", "x.upq"], "Run 4 is"),
    "pack over a file": (["pack", "1", "{file}"], "exists already"),
    "pack into a file": (["pack", "1", "{file}/x.upq"], "could not be written"),
    "unpack of nothing": (["unpack", "nowhere.upq"], "nowhere.upq does not exist"),
    "unpack of a text": (["unpack", "{file}"], "is another kind of file"),
    "unpack of a folder": (["unpack", "{here}"], "is a folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    name: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, words = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    (tmp_path / "file").write_text("hello")
    places = {"here": str(tmp_path), "file": str(tmp_path / "file")}
    assert called(folder, *(one.format(**places) for one in arguments)) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert (out, err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
