"""Decoding on an NVIDIA GPU: a replayed graph gives the tokens of transformers, whatever the rows do."""

import copy
import itertools
import threading
from typing import Any

import pytest
import torch

from tests.support.engine_cases import (
    VOCABULARY,
    check_neighbours,
    generated,
    greedy,
    random_model,
    random_prompts,
)
from tests.support.grids import GRIDS
from tests.support.native_cases import surrounded
from upq.decode import TransformersEngine, answers, engine_for
from upq.decode.row_cache import BUCKET
from upq.decode.transformers_engine import GraphSession
from upq.models import LoadedModel, place

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]
#: Tokens of a prompt, and steps behind it: the first runs as it is, the second is captured, the others are replayed.
PROMPT, STEPS = 9, 3
#: Precisions and transforms of packed layers; the simulated GPU takes more than ten seconds for each.
PACKED = [
    ("INT2", "input"),
    *(
        pytest.param(precision, kind, marks=pytest.mark.slow)
        for precision, kind in itertools.product(("INT4", "INT2"), ("none", "input", "lattice"))
        if (precision, kind) != ("INT2", "input")
    ),
]
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attn_implementation": "eager"}),
    ("qwen3", {"head_dim": 8}),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
]


@pytest.mark.parametrize(("kind", "settings"), FAMILIES, ids=str)
def test_graphs_give_the_tokens_of_transformers(kind: str, settings: dict[str, Any]) -> None:
    model = random_model(kind, settings).to("cuda")
    prompts = random_prompts(3, BUCKET - 6, 9)
    engine = TransformersEngine(model)
    assert engine.backend == "CUDA graph, torch float32"
    session = engine.session(3, BUCKET + 40)
    answers = [[int(session.prefill(row, ids).argmax())] for row, ids in enumerate(prompts)]
    for turn in range(24):
        rows = [[0, 1, 2], [2, 0, 1], [1], [2, 0]][turn % 4]
        logits = session.step(rows, [answers[row][-1] for row in rows])
        assert logits.shape == (len(rows), VOCABULARY)
        for row, one in zip(rows, logits, strict=True):
            answers[row].append(int(one.argmax()))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == generated(model, prompt, len(answer))
    assert isinstance(session, GraphSession)
    assert any(session.graphs.values()), "steps were replayed"


def test_a_refilled_row_and_its_neighbour_keep_apart_on_a_gpu() -> None:
    check_neighbours(random_model("llama", {}).to("cuda"))


@pytest.mark.parametrize(("precision", "kind"), PACKED)
@torch.inference_mode()
def test_packed_layers_decode_in_a_graph_as_exactly_as_in_a_whole_forward(
    tiny: LoadedModel, precision: str, kind: str
) -> None:
    """A random model carries what bfloat16 rounds off to 3 % of its logits, in any order of sums. So both ways are
    compared with the same packed model in float32, from which neither may be much further than the other.
    """
    exact = surrounded(tiny.model, GRIDS[precision].bits, kind, 32)
    plain = copy.deepcopy(exact)
    place(plain, torch.device("cuda"))
    engine = engine_for(copy.deepcopy(exact), torch.device("cuda"))
    assert "CUDA graph" in engine.backend
    assert precision in engine.backend
    (ids,) = random_prompts(PROMPT + STEPS)
    session = engine.session(1, 64)
    found = [session.prefill(0, ids[:PROMPT])]
    found += [session.step([0], [token])[0] for token in ids[PROMPT:]]
    expected = exact(torch.tensor([ids])).logits[0, PROMPT - 1 :]
    whole = plain(torch.tensor([ids], device="cuda")).logits[0, PROMPT - 1 :].float().cpu()
    rounded_off = (whole - expected).norm()
    assert rounded_off < 0.1 * expected.norm()
    assert (torch.stack(found).cpu() - expected).norm() < 1.5 * rounded_off


def test_sessions_of_several_threads_capture_and_replay_side_by_side() -> None:
    model = random_model("llama", {}).to("cuda")
    prompts = random_prompts(4, 11, 23, 40)
    engine = TransformersEngine(model)
    found: dict[int, list[int]] = {}

    def decode(index: int) -> None:
        found[index] = greedy(engine.session(1, 128), 0, prompts[index], 40)

    threads = [threading.Thread(target=decode, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: generated(model, ids, 40) for index, ids in enumerate(prompts)}


def test_answers_written_in_step_are_those_of_transformers() -> None:
    model = random_model("llama", {}).to("cuda")
    prompts = dict(enumerate(random_prompts(5, 1, 9, 30, 12, 3, 40, *range(2, 12))))
    found = dict(
        answers(
            TransformersEngine(model),
            prompts,
            set(),
            max_new_tokens=12,
            check=lambda _: None,
            rows=3,
        )
    )
    assert found == {index: generated(model, ids, 12) for index, ids in prompts.items()}


def test_a_sampled_answer_does_not_depend_on_its_neighbours() -> None:
    engine = TransformersEngine(random_model("llama", {}).to("cuda"))
    prompts = dict(enumerate(random_prompts(5, 8, 3, 4, *range(2, 15))))
    settings: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.0, "seed": 1}
    together = dict(answers(engine, prompts, {7, 9}, check=lambda _: None, rows=2, **settings))
    others = dict(answers(engine, prompts, {7, 9}, check=lambda _: None, rows=5, **settings))
    assert together == others
    assert len({tuple(one) for one in together.values()}) == len(prompts)
