"""Check runs: every suite on every precision, stopped or killed anywhere, to the same bits; the rows they end in."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import RecordingContext, Stop, stop_after, tiny_config
from tests.unit.artifact.test_assembly import packed_of
from upq.artifact import Artifact, assembly
from upq.config import SUITES, CheckConfig
from upq.decode import LastReader, engine_for
from upq.evaluation.scores import outcomes, p_value, readable, rows
from upq.evaluation.suites import run_check
from upq.jobs import Served, worker_main
from upq.layers import INT2
from upq.models import LoadedModel
from upq.store import Store

#: Workers are forked from a process that has imported the engine once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["upq.evaluation.suites", "upq.quantize.pipeline", "upq.jobs.served"]
)
LIMITS = {"builtin": 18, "ifeval": 6, "mmlu": 0, "wikitext2": 4}


@pytest.fixture(scope="session")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Suite -> a local file of it: two subjects of 40 questions, 160 prompts, some 90 chunks for the tiny model."""
    folder = tmp_path_factory.mktemp("suites")
    questions = [
        {"subject": name, "question": f"What is {at}?", "choices": [*"wxyz"], "answer": at % 4}
        for name in ("anatomy", "virology")
        for at in range(40)
    ]
    for split in ("test", "dev"):
        (folder / f"mmlu_{split}.jsonl").write_text("\n".join(map(json.dumps, questions)))
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    prompts = [{"key": at, "prompt": f"Write {at} words, please.", **row} for at in range(160)]
    (folder / "ifeval.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "wiki.txt").write_text("".join(f" Line {at} of the text . \n" for at in range(1800)))
    files = {"ifeval": "ifeval.jsonl", "mmlu": "mmlu_test.jsonl", "wikitext2": "wiki.txt"}
    return {"builtin": None, **{suite: str(folder / name) for suite, name in files.items()}}


@pytest.fixture
def int2(tiny: LoadedModel, tiny_model_dir: Path) -> Artifact:
    """The tiny model rounded to INT2."""
    config = tiny_config(tiny_model_dir)
    return assembly.build("INT2", packed_of(tiny.model, INT2, 32), tiny, config)


class Loader:
    """What upq.jobs.served.Models does, over one artifact; remembers what was loaded."""

    def __init__(self, tiny: LoadedModel, int2: Artifact) -> None:
        self.tiny, self.int2 = tiny, int2
        self.loads: list[str] = []

    def get(self, _: int | None, precision: str, __: str) -> Served:
        self.loads.append(precision)
        model, tokenizer = self.whole(None, precision, "")
        last = LastReader(engine_for(model))
        return Served(last, tokenizer, precision, precision, "", 0, 0.0, 0.0)

    def whole(self, _: int | None, precision: str, __: str) -> tuple[Any, Any]:
        if precision == "FP16":
            return self.tiny.model, self.tiny.tokenizer
        return assembly.assemble(self.int2)


def a_config(suite: str, path: str | None) -> CheckConfig:
    amounts = {"limit": LIMITS[suite], "per_subject": 3, "max_tokens": 4}
    return CheckConfig(
        suite=suite, precisions=("FP16", "INT2"), run_id=1, model="tiny", path=path, **amounts
    )


def in_order(context: RecordingContext) -> list[dict[str, Any]]:
    return sorted(context.verdicts, key=lambda one: (one["precision"], one["position"]))


@pytest.mark.parametrize("suite", SUITES)
def test_every_item_has_one_outcome_and_a_stopped_run_goes_on_to_the_same_bits(
    suite: str,
    suites: dict[str, str | None],
    tiny: LoadedModel,
    int2: Artifact,
    tmp_path: Path,
) -> None:
    config = a_config(suite, suites[suite])
    count = {"builtin": 18, "ifeval": 6, "mmlu": 6, "wikitext2": 4}[suite]
    whole, loader = RecordingContext(tmp_path), Loader(tiny, int2)
    run_check(config, whole, loader)
    found = [(one["precision"], one["position"]) for one in in_order(whole)]
    assert found == [(name, at) for name in ("FP16", "INT2") for at in range(count)]
    assert whole.stages == [("check", 2 * count)]
    assert whole.steps == sorted(whole.steps)
    assert {("check", 0), ("check", count), ("check", 2 * count)} <= set(whole.steps)
    sides = [[one["result"] for one in in_order(whole) if one["precision"] == name]
             for name in ("FP16", "INT2")]  # fmt: skip
    assert sides[0] != sides[1], "the models differ"

    context = RecordingContext(tmp_path, stop_after(21 if suite == "builtin" else 4))
    with pytest.raises(Stop):
        run_check(config, context, loader)
    kept = list(context.verdicts)
    assert len(kept) < count
    assert bool(kept) or suite == "ifeval", "six answers of four tokens are written side by side"
    context.stop = lambda: None
    run_check(config, context, loader)
    assert context.verdicts[: len(kept)] == kept
    assert in_order(context) == in_order(whole)
    loader.loads.clear()
    run_check(config, context, loader)
    assert loader.loads == [], "finished precisions are not loaded again"


@pytest.mark.parametrize("suite", SUITES)
def test_the_rows_of_a_check_run_hold_scores_intervals_and_the_test(
    suite: str,
    suites: dict[str, str | None],
    tiny: LoadedModel,
    int2: Artifact,
    tmp_path: Path,
) -> None:
    context = RecordingContext(tmp_path)
    run_check(a_config(suite, suites[suite]), context, Loader(tiny, int2))
    fp16, other = rows(suite, outcomes(suite, context.verdicts))
    assert (fp16["precision"], other["precision"]) == ("FP16", "INT2")
    names = {"mmlu": ["accuracy", "macro"], "wikitext2": ["ppl"]}
    for name in names.get(suite, ["prompt_strict", "instruction_loose"]):
        for row in (fp16, other):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    if suite in ("builtin", "ifeval"):
        assert other["endings"] == other["answers"] == len(context.verdicts) // 2
        assert 0 < other["cut"] <= other["answers"], "answers of four tokens"
    if suite == "wikitext2":
        assert other["nll_difference_low"] <= other["nll_difference"]
        assert "nll_difference" not in fp16
        assert other["chunks"] == 4
    else:
        assert "p" not in fp16
        assert 0 < other["p"] <= 1
        assert other["lost"] + other["gained"] <= other["n"]
    cells = [readable(suite, row) for row in (fp16, other)]
    assert cells[0].keys() == cells[1].keys()
    assert all("[" in next(value for key, value in one.items() if key != "model") for one in cells)
    json.dumps([fp16, other])


def test_very_small_p_values_read_as_such() -> None:
    assert [p_value(p) for p in (1.0, 0.0215, 0.00012, 3e-9)] == [
        "1",
        "0.021",
        "0.00012",
        "< 0.0001",
    ]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_a_check_run_that_is_killed_goes_on_to_the_bits_of_one_that_was_not(
    suite: str,
    suites: dict[str, str | None],
    tiny_model_dir: Path,
    tmp_path: Path,
    store: Store,
) -> None:
    config = CheckConfig(
        suite=suite,
        precisions=("FP16",),
        run_id=None,
        model=str(tiny_model_dir),
        path=suites[suite],
        max_tokens=64,
    )

    def work(run_id: int, kill: bool = False) -> None:
        process = PROCESSES.Process(target=worker_main, args=(tmp_path,), kwargs={"once": True})
        process.start()
        end = time.monotonic() + 240
        while kill and not store.check_results(run_id):
            assert time.monotonic() < end, "no outcome in time"
            time.sleep(0.002)
        if kill:
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join(240)

    undisturbed = store.enqueue_check(config)
    work(undisturbed)
    run_id = store.enqueue_check(config)
    work(run_id, kill=True)
    kept = store.check_results(run_id)
    assert store.run(run_id).state == "running", "killed in the middle"
    work(run_id)
    run = store.run(run_id)
    assert (run.state, run.attempt) == ("done", 2), store.log_lines(run_id)
    found = store.check_results(run_id)
    assert all(one in found for one in kept)
    assert found == store.check_results(undisturbed)
    assert len(kept) < len(found)
