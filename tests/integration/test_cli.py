"""The command line: what it prints, what it writes, and that mistakes end in one sentence and no traceback."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.helpers import TINY_SETTINGS
from upq.__main__ import main
from upq.cli import evaluate
from upq.config import CheckConfig, preset, settings
from upq.store import open_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # workers start as `python -m upq`


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "with a space"


@pytest.fixture(scope="module")
def finished(folder: Path, tiny_model_dir: Path) -> dict[str, Any]:
    """A smoke run of the tiny model through a real worker; what --json wrote."""
    changes = [f"--set={name}={value}" for name, value in TINY_SETTINGS.items()]
    output = folder.parent / "run.json"
    arguments = ["run", "--model", str(tiny_model_dir), "--preset", "smoke", *changes]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main([*arguments, "--json", str(output), "--data-dir", str(folder)]) == 0
    return json.loads(output.read_text())


def test_help_settings_lists_every_setting_with_its_value(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "--help-settings", "--preset", "smoke"]) == 0
    printed = capsys.readouterr().out
    for path, _ in settings():
        assert path in printed
    assert f" {preset('smoke').int2.distill.tokens} " in printed


def test_an_empty_data_folder_has_no_runs_and_is_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data-dir", str(tmp_path), "list"]) == 0
    assert main(["doctor", "--data-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "No runs yet" in printed
    assert "The data folder is in order." in printed


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such folder": (["run", "--model", "./nowhere"], "nowhere"),
    "not a model": (["run", "--model", "tests"], "tests"),
    "unknown setting": (["run", "--set", "int2.distill.betta=1"], "int2.distill.beta?"),
    "bad value": (["run", "--set", "int2.distill.beta=2"], "expected 0 to 1"),
    "no equals sign": (["run", "--set", "seed"], "expected KEY=VALUE"),
    "no such run": (["show", "7"], "There is no run 7."),
    "cancel no run": (["cancel", "7"], "There is no run 7."),
    "resume no run": (["resume", "7"], "There is no run 7."),
    "eval no run": (["eval", "7"], "There is no run 7."),
    "check no run": (["check", "7"], "There is no run 7."),
    "bad precision": (["chat", "7", "--precision", "INT3"], "expected some of FP16, INT4, INT2"),
    "demo of nothing": (["demo", "--preset", "smoke", "--model", "./nowhere"], "nowhere"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_exit_code_2_and_one_line_on_stderr(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = MISTAKES[name]
    assert main(["--data-dir", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "upq.db").exists() or open_store(tmp_path).runs() == []


def test_as_a_program_it_ends_the_same_way(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "upq",
        "--data-dir",
        str(tmp_path),
        "run",
        "--model",
        "nope.gguf",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "nope.gguf" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fly"])
    assert "invalid choice" in capsys.readouterr().err


def test_run_writes_the_documented_object(finished: dict[str, Any], tiny_model_dir: Path) -> None:
    assert set(finished) == {"model", "reference_note", "seconds", "artifacts", "baselines"}
    assert finished["model"] == tiny_model_dir.name
    assert finished["seconds"] > 0
    assert [row["label"] for row in finished["artifacts"]] == ["FP16", "INT4", "INT2"]
    assert [row["label"] for row in finished["baselines"]] == ["RTN INT4", "RTN INT2"]
    wanted = {"precision", "bits_per_weight", "size_bytes", "kl", "top1", "ppl"}
    for row in finished["artifacts"] + finished["baselines"]:
        assert wanted <= set(row)
        assert all(row[name] is not None for name in wanted)


@pytest.mark.usefixtures("finished")
def test_list_and_show_tell_what_there_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "show.json"
    assert main(["--data-dir", str(folder), "list"]) == 0
    assert main(["--data-dir", str(folder), "show", "1", "--json", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "done" in printed
    assert "RTN INT2" in printed
    assert "bits per quantized weight" in printed, "the log is shown"
    shown = json.loads(output.read_text())["artifacts"]
    assert len(shown) == 3
    served_by = {row["label"]: row["served_by"] for row in shown if row["served_by"]}
    assert list(served_by) == ([] if torch.cuda.is_available() else ["INT4", "INT2"])
    assert ("KL as served" in printed) == bool(served_by)
    for label, engine in served_by.items():
        assert f"{label} as served: {engine}" in printed
    assert main(["--data-dir", str(folder), "resume", "1"]) == 0
    assert "there is nothing to resume" in capsys.readouterr().out


def test_eval_measures_the_stored_artifacts_again_and_a_text(
    folder: Path, finished: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "eval.json"
    text.write_text("A lighthouse stands by the sea. " * 20)
    arguments = ["eval", "1", "--text", str(text), "--tokens", "300", "--json", str(output)]
    assert main(["--data-dir", str(folder), *arguments]) == 0
    again = json.loads(output.read_text())["artifacts"]
    for row, before in zip(again, finished["artifacts"], strict=True):
        assert row["label"] == before["label"]
        assert row["kl"] == pytest.approx(before["kl"], abs=1e-6)
        assert row["top1"] == before["top1"]
        assert row.get("served_by") == before["served_by"]
        if before["served_by"]:
            assert row["served_kl"] == pytest.approx(before["served_kl"], abs=1e-6)
            assert row["served_kl"] != row["kl"]
        assert row["text_ppl"] > 1.0
    assert "text perplexity" in capsys.readouterr().out
    assert main(["--data-dir", str(folder), "eval", "1", "--text", str(tmp_path / "none")]) == 2
    assert "none does not exist; expected a text file" in capsys.readouterr().err


@pytest.mark.usefixtures("finished")
def test_chat_answers_with_every_model_until_the_input_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["Hello"])

    def typed(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert main(["--data-dir", str(folder), "chat", "1", "--precision", "fp16,int2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("FP16: ") == printed.count("INT2: ") == 1
    assert printed.count("tokens/s]") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
def test_check_judges_the_models_of_a_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "check.json"
    arguments = ["check", "1", "--limit", "2", "--max-tokens", "8", "--precision", "INT4,INT2"]
    assert main(["--data-dir", str(folder), *arguments, "--json", str(output)]) == 0
    rows = json.loads(output.read_text())["checks"]
    assert [row["precision"] for row in rows] == ["INT4", "INT2"]
    fields = {"prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose", "n"}
    assert all(fields <= set(row) and row["n"] == 2 for row in rows)
    assert "prompt strict" in capsys.readouterr().out
    assert main(["--data-dir", str(folder), "doctor"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
def test_eval_puts_suites_to_a_run_and_the_same_command_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = {"subject": "anatomy", "question": "Where?", "choices": [*"abcd"], "answer": 1}
    for split in ("test", "dev"):
        (tmp_path / f"mmlu_{split}.jsonl").write_text("\n".join([json.dumps(question)] * 3))
    (tmp_path / "wikitext2_test.txt").write_text(" A line of text . \n" * 100)
    output = tmp_path / "eval.json"
    arguments = ["eval", "1", "--tasks", "wikitext2,mmlu", "--data", str(tmp_path), "--limit", "2"]
    arguments += ["--per-subject", "2", "--precision", "INT2,FP16"]
    config = CheckConfig(
        suite="mmlu",
        precisions=("INT2", "FP16"),
        run_id=1,
        model=open_store(folder).run(1).model,
        path=str(tmp_path / "mmlu_test.jsonl"),
        limit=2,
        per_subject=2,
        max_tokens=1280,
    )
    begun = open_store(folder).enqueue_check(config)
    open_store(folder).request_cancel(begun)
    before = len(open_store(folder).runs(kind="check"))
    assert main(["--data-dir", str(folder), *arguments, "--json", str(output)]) == 0
    found = json.loads(output.read_text())
    assert [row["precision"] for row in found["mmlu"]] == ["FP16", "INT2"]
    assert [row["n"] for row in found["mmlu"]] == [2, 2]
    assert "p" in found["mmlu"][1]
    assert [row["chunks"] for row in found["wikitext2"]] == [2, 2]
    assert "nll_difference" in found["wikitext2"][1]
    assert len(open_store(folder).runs(kind="check")) == before + 1, "the cancelled one went on"
    assert open_store(folder).run(begun).state == "done"
    assert "nats lost a token" in capsys.readouterr().out
    assert main(["--data-dir", str(folder), "eval", "1", "--tasks", "arc"]) == 2


def test_perplexity_is_that_of_a_naive_loop(tiny: Any) -> None:
    ids = list(range(20, 120))
    surprise = 0.0
    for start in (0, 40, 80):
        window = torch.tensor([ids[start : start + 40]])
        output = tiny.model(input_ids=window, labels=window)
        surprise += output.loss.item() * (window.shape[1] - 1)
    expected = math.exp(surprise / (len(ids) - 3))
    assert evaluate.perplexity(tiny.model, ids, window=40) == pytest.approx(expected, rel=1e-4)
