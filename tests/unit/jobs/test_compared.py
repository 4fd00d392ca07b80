"""A prompt put to the models of a run: who answers, who reads, what is refused, and what the command prints of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.jobs.test_served import stored_run
from upq.__main__ import main
from upq.cli.compare import MARKS, marked, page
from upq.config import PRECISIONS
from upq.decode import Decoding
from upq.errors import UserError
from upq.jobs import Models
from upq.jobs.compared import Compared, Request, compared
from upq.models import LoadedModel
from upq.store import Store, open_store


def request(message: str = "Hello", source: str = "FP16", temperature: float = 0.0) -> Request:
    decoding = Decoding(max_new_tokens=12, temperature=temperature)
    return Request(
        message=message, system="", decoding=decoding, answer_of=source, precisions=PRECISIONS
    )


def put(store: Store, run_id: int, asked: Request) -> Compared:
    return compared(Models(store), store.run(run_id), asked)


@pytest.fixture
def run_id(store: Store, tiny: LoadedModel, tiny_model_dir: Path) -> int:
    return stored_run(store, tiny, tiny_model_dir)


def test_one_model_answers_and_all_read(store: Store, run_id: int) -> None:
    found = put(store, run_id, request(source="INT2"))
    assert list(found.answers) == ["INT2"]
    assert list(found.comparison.seen) == ["FP16", "INT4", "INT2"]
    assert found.comparison.text.startswith(found.answers["INT2"].text)
    assert found.instructions == []


def test_where_there_is_an_instruction_every_model_answers_and_is_judged(
    store: Store, run_id: int
) -> None:
    found = put(store, run_id, request("Say hello without any commas."))
    assert list(found.answers) == ["FP16", "INT4", "INT2"]
    [judged] = found.judged
    assert judged.keys() == found.answers.keys()
    told = json.loads(json.dumps(found.to_json()))
    assert told["instructions"][0]["words"] == "without any commas"
    assert told["comparison"]["tokens"] == len(found.comparison.ids)


def test_the_page_marks_the_flips_and_has_all_figures(store: Store, run_id: int) -> None:
    found = put(store, run_id, request("Say hello without any commas.", temperature=0.8))
    words = marked(found.comparison)
    flips = sum(
        any(seen.flipped[piece.start : piece.end])
        for seen in found.comparison.others.values()
        for piece in found.comparison.pieces
    )
    assert flips
    assert sum(words.count(mark) for mark in MARKS.values()) == flips
    text = page(found)
    for part in (
        "mean KL",
        "first flip",
        "draws that differ",
        "furthest apart",
        "without any comm",
    ):
        assert part in text


def test_what_a_run_has_not_is_refused_in_one_sentence(store: Store, run_id: int) -> None:
    run = store.run(run_id)
    lonely = Request(
        message="Hi", system="", decoding=Decoding(), answer_of="FP16", precisions=["FP16"]
    )
    with pytest.raises(UserError, match="no models to compare") as caught:
        compared(Models(store), run, lonely)
    assert caught.value.code == "artifact_not_found"


def test_the_command_prints_and_writes_a_comparison(
    tmp_path: Path, tiny: LoadedModel, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path)
    run_id = stored_run(store, tiny, tiny_model_dir)
    store.close()
    file = tmp_path / "out.json"
    given = ["--prompt", "Hello", "--max-tokens", "8", "--json", str(file), "--precision", "int2"]
    assert not main(["compare", str(run_id), "--data-dir", str(tmp_path), *given])
    printed = capsys.readouterr().out
    assert "FP16's answer" in printed
    told = json.loads(file.read_text())
    assert list(told["comparison"]["models"]) == ["INT2"]
    assert main(["compare", str(run_id), "--data-dir", str(tmp_path), "--prompt", " "]) == 2
    assert "The message is empty." in capsys.readouterr().err
