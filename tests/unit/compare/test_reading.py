"""An answer read by several models: against the fidelity of a run, against a naive loop, and at its limits."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.conftest import make_tokenizer
from tests.support.grids import damaged
from tests.support.helpers import examples
from tests.support.readers import counted
from upq.compare import Sampling, compare, comparison, read_answer, reading
from upq.compare.comparison import Answer, answer_ids
from upq.decode import Decoding, LastReader, Reader, TransformersEngine, engine_for
from upq.errors import UserError
from upq.evaluation import Reference
from upq.models import LoadedModel

CONVERSATION = [{"role": "user", "content": "Why is the sky blue?"}]
DATA = examples(1, 60)[0]
PROMPT, ANSWER = list(DATA.ids[: DATA.counted_from]), list(DATA.ids[DATA.counted_from :])


@dataclass
class Read:
    """A model as `read_answer` takes it."""

    engine: Any
    tokenizer: Any

    def __post_init__(self) -> None:
        self.last = LastReader(self.engine)

    def reader(self) -> AbstractContextManager[Reader]:
        return self.last.lent()


def pair(tiny: LoadedModel) -> dict[str, Read]:
    """FP16 and INT4, computed by transformers."""
    models = {"FP16": tiny.model, "INT4": damaged(tiny.model)}
    return {name: Read(TransformersEngine(one), tiny.tokenizer) for name, one in models.items()}


def test_figures_are_those_of_the_fidelity_on_the_same_tokens(tiny: LoadedModel) -> None:
    model = damaged(tiny.model)
    expected = Reference(tiny.model, [DATA], lambda: None).measure(model, lambda: None)
    seen = read_answer(pair(tiny), PROMPT, ANSWER)["INT4"]
    assert len(seen.kl) == expected.tokens
    assert expected.kl > 0.01
    assert seen.mean_kl == pytest.approx(expected.kl, rel=1e-4)
    assert seen.kl_p95 == pytest.approx(expected.kl_p95, rel=1e-4)
    assert seen.same_top1 == pytest.approx(expected.top1)
    assert seen.first_flip == expected.agreed_mean + 1


def test_the_engine_in_c_tells_what_transformers_tells(tiny: LoadedModel) -> None:
    slow = pair(tiny)
    fast = {name: Read(engine_for(one.engine.model), tiny.tokenizer) for name, one in slow.items()}
    assert "native" in fast["INT4"].engine.backend
    expected, found = read_answer(slow, PROMPT, ANSWER), read_answer(fast, PROMPT, ANSWER)
    assert found["INT4"].kl == pytest.approx(expected["INT4"].kl, rel=0.05, abs=1e-3)


def test_what_the_models_hold_already_changes_no_bit(tiny: LoadedModel) -> None:
    def models() -> dict[str, Read]:
        return {
            name: Read(engine_for(one), tiny.tokenizer)
            for name, one in (("FP16", tiny.model), ("INT4", damaged(tiny.model)))
        }

    expected = read_answer(models(), PROMPT, ANSWER)
    answered = models()
    with answered["FP16"].reader() as reader:
        reader.logits(PROMPT)
        for token in ANSWER[:-1]:
            reader.step(token)
        read = counted(reader)
    with answered["INT4"].reader() as reader:
        reader.logits([*PROMPT, *reversed(ANSWER)])
        also_read = counted(reader)
    assert read_answer(answered, PROMPT, ANSWER) == expected
    assert read_answer(answered, PROMPT, ANSWER) == expected
    assert read == []
    assert also_read == [len(ANSWER) - 1]


@torch.no_grad()
def test_each_token_is_told_as_a_naive_loop_says(tiny: LoadedModel) -> None:
    models = pair(tiny)
    seen = read_answer(models, PROMPT, ANSWER, Sampling(0.7, 0.8))
    ids = torch.tensor([[*PROMPT, *ANSWER]])
    p, q = (one.engine.model(input_ids=ids).logits[0].double() for one in models.values())
    for at, token in enumerate(ANSWER):
        row = len(PROMPT) + at - 1
        share = q[row].softmax(-1)
        best = share.topk(5)
        assert [one for one, _ in seen["INT4"].likeliest[at]] == best.indices.tolist()
        assert [one for _, one in seen["INT4"].likeliest[at]] == pytest.approx(best.values.tolist())
        assert seen["INT4"].given[at] == pytest.approx(share[token].item())
        assert seen["INT4"].flipped[at] == (q[row].argmax() != p[row].argmax())
        drawn = [_nucleus((one[row] / 0.7).softmax(-1), 0.8) for one in (p, q)]
        assert seen["FP16"].differs[at] == pytest.approx(1 - (drawn[0] ** 2).sum().item(), abs=1e-5)
        floor = 1 - (drawn[0] * drawn[1]).sum().item()
        assert seen["INT4"].differs[at] == pytest.approx(floor, abs=1e-5)


def _nucleus(shares: torch.Tensor, top_p: float) -> torch.Tensor:
    kept, total = torch.zeros_like(shares), 0.0
    for token in shares.argsort(descending=True):
        if total >= top_p:
            break
        kept[token] = shares[token]
        total += shares[token].item()
    return kept / kept.sum()


def test_a_model_beside_itself_differs_nowhere(tiny: LoadedModel) -> None:
    engine = TransformersEngine(tiny.model)
    both = {name: Read(engine, tiny.tokenizer) for name in ("FP16", "INT2")}
    seen = read_answer(both, PROMPT, ANSWER, Sampling(1.0))
    for one in seen.values():
        assert one.kl == [0.0] * len(ANSWER)
        assert one.first_flip is None
    assert seen["INT2"].differs == seen["FP16"].differs
    assert read_answer(both, PROMPT, ANSWER)["INT2"].mean_differs is None


def test_how_many_rows_are_read_at_once_does_not_matter(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pair(tiny)
    whole = read_answer(models, PROMPT, ANSWER)["INT4"]
    monkeypatch.setattr(reading, "READ_ROWS", 3)
    monkeypatch.setattr(reading, "COMPARED_ROWS", 2)
    parts = read_answer(models, PROMPT, ANSWER)["INT4"]
    assert parts.kl == pytest.approx(whole.kl, abs=1e-5)
    assert parts.flipped == whole.flipped


def test_a_model_without_finite_logits_is_named_as_diverged(tiny: LoadedModel) -> None:
    models = pair(tiny)
    with torch.no_grad():
        models["INT4"].engine.model.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError) as caught:
        read_answer(models, PROMPT, ANSWER)
    assert caught.value.code == "diverged"


def test_models_of_other_tokens_are_refused(tiny: LoadedModel) -> None:
    models = pair(tiny)
    models["INT4"].tokenizer = make_tokenizer()
    read_answer(models, PROMPT, ANSWER)  # another copy of the same tokens is none
    models["INT4"].tokenizer = make_tokenizer()
    models["INT4"].tokenizer.add_tokens(["new"])
    with pytest.raises(UserError, match="INT4 has other tokens than FP16") as caught:
        read_answer(models, PROMPT, ANSWER)
    assert caught.value.code == "tokenizers_differ"


@pytest.mark.parametrize(("length", "code"), [(0, "no_answer"), (600, "prompt_too_long")])
def test_what_cannot_be_read_is_refused(tiny: LoadedModel, length: int, code: str) -> None:
    with pytest.raises(UserError) as caught:
        read_answer(pair(tiny), PROMPT, [7] * length)
    assert caught.value.code == code


def test_an_answer_ends_with_the_token_that_the_template_writes(tiny: LoadedModel) -> None:
    model = pair(tiny)["FP16"]
    assert tiny.tokenizer.decode(answer_ids(model, Answer("Hi", ended=True))) == "Hi<|im_end|>"
    assert tiny.tokenizer.decode(answer_ids(model, Answer("Hi", ended=False))) == "Hi"


def test_a_comparison_tells_all_in_json(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compare(
        pair(tiny), CONVERSATION, Answer("Sky: 🦊!", ended=True), Decoding(temperature=0.5)
    )
    told = found.to_json()
    assert told["text"] == "Sky: 🦊!<|im_end|>"
    assert not told["is_cut"]
    assert [len(piece["tokens"]) for piece in told["pieces"]] == [1, 1, 1, 1, 1, 4, 1, 1]
    assert len(told["by_token"]) == told["tokens"] == 11
    assert 0 < told["noise_floor"] < 1
    assert told["models"]["INT4"]["kl"] == pytest.approx(
        sum(token["kl"]["INT4"] for token in told["by_token"]) / 11
    )
    first = told["models"]["INT4"]["first_flip"]
    assert told["by_token"][first - 1]["flipped"] == ["INT4"]
    assert all(not token["flipped"] for token in told["by_token"][: first - 1])
    assert [len(token["likeliest"]["FP16"]) for token in told["by_token"]] == [5] * 11
    monkeypatch.setattr(comparison, "MOST_TOKENS", 3)
    cut = compare(pair(tiny), CONVERSATION, Answer("Sky: 🦊!", ended=True))
    assert (cut.text, cut.is_cut) == ("Sky", True)
    assert cut.to_json()["noise_floor"] is None


def test_tokens_that_the_model_wrote_are_read_as_they_are(tiny: LoadedModel) -> None:
    whole = answer_ids(pair(tiny)["FP16"], Answer("Sky", ended=True))
    special = [*whole[:-1], 4, whole[-1]]  # <s> in the middle, which no text shows
    found = compare(pair(tiny), CONVERSATION, Answer("Sky", ended=True, ids=special, tokens=5))
    assert found.ids == special
    assert not found.made_anew


@pytest.mark.parametrize(("tokens", "made_anew"), [(0, False), (4, False), (7, True)])
def test_a_kept_text_tells_where_its_tokens_were_others(
    tiny: LoadedModel, tokens: int, made_anew: bool
) -> None:
    found = compare(pair(tiny), CONVERSATION, Answer("Sky", ended=True, tokens=tokens))
    assert found.made_anew is made_anew


def test_where_a_penalty_was_set_no_floor_is_told(tiny: LoadedModel) -> None:
    drawn = Decoding(temperature=0.5, repetition_penalty=1.2)
    found = compare(pair(tiny), CONVERSATION, Answer("Sky", ended=True), drawn)
    assert found.to_json()["noise_floor"] is None


@pytest.mark.parametrize("vocabulary", [7, 511, 512, 513, 49152, 50257])
def test_the_largest_values_are_those_of_a_whole_search(vocabulary: int) -> None:
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    logits[1, : reading.LIKELIEST] += 20  # side by side
    found, expected = reading._largest(logits), logits.topk(reading.LIKELIEST)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.indices, expected.indices)
