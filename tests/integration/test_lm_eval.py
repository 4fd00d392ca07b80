"""lm-eval over our engine gives our MMLU and IFEval verdicts: its own tasks and prompts, data from local files.

Needs the optional extra (requirements-eval.txt) and UPQ_DATA; skipped where either is missing.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from upq.artifact import assembly
from upq.config import CheckConfig, RunConfig
from upq.evaluation.scores import outcomes, rows
from upq.jobs.worker import default_engine
from upq.jobs.worker_context import WorkerContext
from upq.layers import INT2
from upq.models import LoadedModel, plan_layers
from upq.models.source import BUNDLED
from upq.store import Store, open_store

nltk = pytest.importorskip("nltk")

ROOT = Path(__file__).parents[2]
UPQ_DATA = Path(os.environ.get("UPQ_DATA", ROOT.parent / "shared" / "data"))
SUBJECTS = ("college_physics", "us_foreign_policy")
QUESTIONS = 5
PROMPTS = 4
ANSWER_TOKENS = 48

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def local_rows(name: str) -> list[dict[str, Any]]:
    path = UPQ_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in UPQ_DATA")
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-eval, reading its hub data sets from the local files."""
    monkeypatch.setattr(nltk.data, "path", [str(UPQ_DATA / "nltk_data"), *nltk.data.path])
    found = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    import datasets  # noqa: PLC0415

    def load(path: str, name: str | None = None, **_: Any) -> Any:
        if path == "google/IFEval":
            kept = {"train": local_rows("ifeval_input_data.jsonl")[:PROMPTS]}
        else:
            assert path == "cais/mmlu"
            kept = {
                split: [one for one in local_rows(f"mmlu_{split}.jsonl") if one["subject"] == name]
                for split in ("dev", "test")
            }
        made = [(split, datasets.Dataset.from_list(own)) for split, own in kept.items()]
        return datasets.DatasetDict(made)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return found


@pytest.fixture(scope="module")
def store(
    bundled: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, Path]]:
    """A run of the bundled model with an artifact: INT2, rounded to nearest."""
    folder = tmp_path_factory.mktemp("lab")
    opened = open_store(folder)
    config = RunConfig()
    opened.enqueue(config)
    weights = {
        one.name: bundled.model.get_parameter(f"{one.name}.weight").detach()
        for one in plan_layers(bundled.model, 64)
    }
    packed = {name: INT2.pack(one, *INT2.fit(one, 64, "absmax")) for name, one in weights.items()}
    run = opened.claim("test", os.getpid(), 600)
    assert run
    lease = opened.lease(run)
    lease.save_artifact(assembly.build("INT2", packed, bundled, config))
    lease.finish("done")
    yield opened, folder
    opened.close()


def our_outcomes(
    store: tuple[Store, Path], precision: str, suite: str, path: Path, **options: Any
) -> list[Any]:
    """What a check run, executed as a worker does it, stores."""
    opened, folder = store
    config = CheckConfig(
        suite=suite, precisions=(precision,), run_id=1, model=BUNDLED, path=str(path), **options
    )
    run_id = opened.enqueue_check(config)
    run = opened.claim("test", os.getpid(), 600)
    assert run
    assert run.id == run_id
    with WorkerContext(opened, run, folder, threading.Event()) as context:
        default_engine(opened)(context)
    opened.lease(run).finish("done")
    found = outcomes(suite, opened.check_results(run_id))
    assert rows(suite, found)
    return found[precision]


@pytest.mark.parametrize("precision", ["FP16", "INT2"])
def test_mmlu_has_the_same_letters_and_log_probabilities(
    lm_eval: Any, store: tuple[Store, Path], tmp_path: Path, precision: str
) -> None:
    from bench.lm_eval_model import UPQModel  # noqa: PLC0415  needs the optional extra

    for split in ("dev", "test"):
        chosen = [one for one in local_rows(f"mmlu_{split}.jsonl") if one["subject"] in SUBJECTS]
        (tmp_path / f"mmlu_{split}.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    ours = our_outcomes(
        store, precision, "mmlu", tmp_path / "mmlu_test.jsonl", per_subject=QUESTIONS
    )
    assert len(ours) == len(SUBJECTS) * QUESTIONS
    samples = {
        f"mmlu_{name}": [one.key for one in ours if one.subject == name] for name in SUBJECTS
    }
    theirs = lm_eval.simple_evaluate(
        model=UPQModel(store[0], 1, precision),
        tasks=list(samples),
        num_fewshot=5,
        samples=samples,
        bootstrap_iters=0,
    )
    for name in SUBJECTS:
        own = {one.key: one for one in ours if one.subject == name}
        found = theirs["samples"][f"mmlu_{name}"]
        assert {one["doc_id"] for one in found} == own.keys()
        for one in found:
            mine = own[one["doc_id"]]
            scores = [likely for ((likely, _),) in one["resps"]]
            assert scores == pytest.approx(mine.scores, abs=1e-5)
            assert one["acc"] == float(mine.correct)
        accuracy = sum(one.correct for one in own.values()) / QUESTIONS
        assert theirs["results"][f"mmlu_{name}"]["acc,none"] == accuracy


@pytest.mark.parametrize("precision", ["FP16", "INT2"])
def test_ifeval_has_the_same_answers_and_verdicts(
    lm_eval: Any, store: tuple[Store, Path], precision: str
) -> None:
    from bench.lm_eval_model import UPQModel  # noqa: PLC0415  needs the optional extra

    path = UPQ_DATA / "ifeval_input_data.jsonl"
    local_rows(path.name)
    ours = our_outcomes(store, precision, "ifeval", path, limit=PROMPTS, max_tokens=ANSWER_TOKENS)
    theirs = lm_eval.simple_evaluate(
        model=UPQModel(store[0], 1, precision),
        tasks=["ifeval"],
        apply_chat_template=True,
        gen_kwargs=f"max_gen_toks={ANSWER_TOKENS}",
        bootstrap_iters=0,
    )
    own = {one.key: one for one in ours}
    found = theirs["samples"]["ifeval"]
    assert {one["doc"]["key"] for one in found} == own.keys()
    for one in found:
        mine = own[one["doc"]["key"]]
        assert one["resps"] == [[mine.response]]
        for rule in ("strict", "loose"):
            assert one[f"prompt_level_{rule}_acc"] == getattr(mine, rule)
            verdicts = [getattr(verdict, rule) for verdict in mine.verdicts]
            assert one[f"inst_level_{rule}_acc"] == verdicts
