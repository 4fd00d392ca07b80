"""Answers: the tokens are those of transformers, alone or in company; they stop, end and repeat as asked."""

import itertools
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from upq.decode import (
    Decoding,
    Piece,
    Reader,
    TransformersEngine,
    answers,
    end_ids,
    engine_for,
    stream,
)
from upq.decode.draw import penalised, pick
from upq.errors import UserError
from upq.models import LoadedModel, chat_ids

HELLO = [{"role": "user", "content": "Hello"}]


def answer(loaded: LoadedModel, decoding: Decoding, stop: Any = lambda: False) -> Piece:
    """The last piece."""
    *_, last = stream(Reader(engine_for(loaded.model)), loaded.tokenizer, HELLO, decoding, stop)
    return last


def reference(loaded: LoadedModel, messages: list[dict[str, str]], tokens: int) -> list[int]:
    """What transformers decodes greedily."""
    ids = torch.tensor([chat_ids(loaded.tokenizer, messages)])
    model: Any = loaded.model
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return out[0, ids.shape[1] :].tolist()


def test_greedy_streaming_gives_the_tokens_of_transformers(tiny: LoadedModel) -> None:
    expected = reference(tiny, HELLO, 30)
    last = answer(tiny, Decoding(max_new_tokens=30))
    assert last.done
    assert last.tokens == len(expected)
    assert last.prompt_tokens == len(chat_ids(tiny.tokenizer, HELLO))
    assert last.text == tiny.tokenizer.decode(expected, skip_special_tokens=True)


def test_the_bundled_model_streams_the_tokens_of_transformers(bundled: LoadedModel) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    expected = reference(bundled, messages, 12)
    pieces = list(
        stream(
            Reader(engine_for(bundled.model)),
            bundled.tokenizer,
            messages,
            Decoding(max_new_tokens=12),
            lambda: False,
        )
    )
    assert pieces[-1].tokens == len(expected)
    assert pieces[-1].text == bundled.tokenizer.decode(expected, skip_special_tokens=True)
    texts = [piece.text for piece in pieces]
    assert len(texts) > 1, "it comes in pieces"
    assert all(later.startswith(early) for early, later in itertools.pairwise(texts))


def test_it_stops_between_two_tokens(tiny: LoadedModel) -> None:
    asked = itertools.count(1)
    last = answer(tiny, Decoding(max_new_tokens=50), lambda: next(asked) >= 3)
    assert (last.tokens, last.done, last.finish) == (3, True, "cancelled")


def test_an_end_token_and_the_length_end_an_answer_with_their_reason(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(tiny, Decoding(max_new_tokens=4)).finish == "length"
    first = reference(tiny, HELLO, 1)[0]
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [first])
    last = answer(tiny, Decoding(max_new_tokens=4))
    assert (last.finish, last.tokens) == ("stop", 1)


def test_the_same_seed_repeats_and_another_one_does_not(tiny: LoadedModel) -> None:
    hot = {"max_new_tokens": 30, "temperature": 1.5}
    first = answer(tiny, Decoding(**hot, seed=1))
    torch.manual_seed(99)
    assert answer(tiny, Decoding(**hot, seed=1)).text == first.text
    assert answer(tiny, Decoding(**hot, seed=2)).text != first.text


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_new_tokens", 1.5, "1 to 8192"),
        ("max_new_tokens", True, "1 to 8192"),
        ("seed", 0.5, "0 to 9223372036854775807"),
        ("temperature", float("nan"), "0 to 5"),
        ("top_p", "1", "0.01 to 1"),
    ],
)
def test_decoding_of_a_wrong_type_is_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        Decoding(**{name: value})
    assert caught.value.message == f"{name} is {value!r}; expected {expected}."


def test_a_tiny_top_p_is_greedy(tiny: LoadedModel) -> None:
    greedy = answer(tiny, Decoding(max_new_tokens=20))
    sampled = answer(tiny, Decoding(max_new_tokens=20, temperature=1.0, top_p=0.01))
    assert sampled.text == greedy.text


def test_tokens_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([-torch.inf, 0.0, 2.0, 1.0, -torch.inf])
    generator = torch.Generator().manual_seed(0)
    for top_p, expected in ((1.0, logits.softmax(0)), (0.6, torch.tensor([0.0, 0, 1, 0, 0]))):
        drawn = torch.tensor([pick(logits, 1.0, top_p, generator) for _ in range(4000)])
        shares = drawn.bincount(minlength=5) / len(drawn)
        assert (shares - expected).abs().max() < 0.03
        assert not shares[expected == 0].any(), "what is impossible is never drawn"


@pytest.mark.parametrize("penalty", [1.3, 2.0])
def test_a_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator)
    ids = [3, 7, 3, 49, 0]
    theirs: Any = RepetitionPenaltyLogitsProcessor(penalty)
    expected = theirs(torch.tensor([ids]), logits[None].clone())
    assert torch.equal(penalised(logits, set(ids), penalty), expected[0])
    assert penalised(logits, set(ids), 1.0) is logits


def test_a_penalised_answer_is_that_of_transformers(tiny: LoadedModel) -> None:
    ids = torch.tensor([chat_ids(tiny.tokenizer, HELLO)])
    model: Any = tiny.model
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=30,
        do_sample=False,
        repetition_penalty=1.5,
        **dict.fromkeys(("temperature", "top_p", "top_k")),
    )
    expected = tiny.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    found = answer(tiny, Decoding(max_new_tokens=30, repetition_penalty=1.5)).text
    assert found == expected
    assert found != answer(tiny, Decoding(max_new_tokens=30)).text


def test_a_prompt_beyond_the_context_is_refused_and_the_answer_ends_with_it(
    tiny: LoadedModel,
) -> None:
    long = [{"role": "user", "content": "x" * 600}]
    engine = engine_for(tiny.model)
    with pytest.raises(UserError, match="the model reads at most 512") as caught:
        next(stream(Reader(engine), tiny.tokenizer, long, Decoding(), lambda: False))
    assert caught.value.code == "prompt_too_long"

    room = 5
    prompt = [
        {"role": "user", "content": "x" * (512 - room - len(chat_ids(tiny.tokenizer, HELLO)) + 5)}
    ]
    assert len(chat_ids(tiny.tokenizer, prompt)) == 512 - room
    pieces: Iterator[Piece] = stream(
        Reader(engine), tiny.tokenizer, prompt, Decoding(max_new_tokens=100), lambda: False
    )
    *_, last = pieces
    assert last.tokens <= room


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 9000},
        {"temperature": -0.1},
        {"temperature": 6},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": None},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": "1"},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        Decoding(**wrong)
    assert caught.value.code == "bad_decoding"
    assert caught.value.message.startswith(next(iter(wrong)))


def test_speed_counts_decoding_from_the_second_token_on(tiny: LoadedModel) -> None:
    one, many = answer(tiny, Decoding(max_new_tokens=1)), answer(tiny, Decoding(max_new_tokens=20))
    assert one.tokens_per_s == 0.0
    assert many.tokens_per_s > 0.0
    assert many.first_token_s > 0.0


def prompts_of(loaded: LoadedModel, *texts: str) -> dict[int, list[int]]:
    """Token ids by index; the indices are not those of a list."""
    return {
        3 * at + 1: chat_ids(loaded.tokenizer, [{"role": "user", "content": text}])
        for at, text in enumerate(texts)
    }


def all_answers(
    loaded: LoadedModel, prompts: dict[int, list[int]], ends: set[int], **changes: Any
) -> dict[int, list[int]]:
    settings: dict[str, Any] = {"max_new_tokens": 12, "check": lambda written: None, **changes}
    found = list(answers(TransformersEngine(loaded.model), prompts, ends, **settings))
    assert len(found) == len(prompts), "each prompt once"
    return dict(found)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_does_not_depend_on_its_company(tiny: LoadedModel, temperature: float) -> None:
    prompts = prompts_of(tiny, "a", "bcd", "Why is it so?", "e" * 40, "a")
    chosen = {"temperature": temperature, "seed": 5}
    alone: dict[int, list[int]] = {}
    for index, ids in prompts.items():
        alone |= all_answers(tiny, {index: ids}, set(), **chosen)
    assert all(len(answer) == 12 for answer in alone.values())
    for rows in (1, 2, 16):
        assert all_answers(tiny, prompts, set(), rows=rows, **chosen) == alone
    first, *_, last = alone.values()
    assert (first == last) == (temperature == 0), "the same prompt, another index"
    other = all_answers(tiny, prompts, set(), temperature=temperature, seed=6)
    assert (other == alone) == (temperature == 0)


def test_greedy_answers_are_those_of_transformers(tiny: LoadedModel) -> None:
    texts = ["a", "What is it?", "e" * 40]
    found = all_answers(
        tiny, prompts_of(tiny, *texts), end_ids(TransformersEngine(tiny.model), tiny.tokenizer)
    )
    expected = [reference(tiny, [{"role": "user", "content": text}], 12) for text in texts]
    assert [found[index] for index in sorted(found)] == expected


def test_the_bundled_model_answers_in_company_as_alone(bundled: LoadedModel) -> None:
    texts = ["Say hello.", "Count to three.", "Name a colour and say where one sees it."]
    prompts = prompts_of(bundled, *texts)
    ends = end_ids(TransformersEngine(bundled.model), bundled.tokenizer)
    warm = {"temperature": 0.7, "max_new_tokens": 6}
    together = all_answers(bundled, prompts, ends, rows=2, **warm)
    for index, ids in prompts.items():
        assert all_answers(bundled, {index: ids}, ends, **warm) == {index: together[index]}


def test_an_answer_ends_with_its_end_token_and_makes_room(tiny: LoadedModel) -> None:
    prompts = prompts_of(tiny, *"abcdefgh")
    free = all_answers(tiny, prompts, set())
    end = free[1][3]
    cut = {index: ids[: ids.index(end) + 1] if end in ids else ids for index, ids in free.items()}
    assert len(set(map(len, cut.values()))) > 1, "they end at different times"
    assert all_answers(tiny, prompts, {end}, rows=3) == cut
    configured: Any = tiny.model.generation_config
    configured.eos_token_id = [end, 7]
    engine, tokenizer = TransformersEngine(tiny.model), cast(Any, tiny.tokenizer)
    assert end_ids(engine, tokenizer) == {end, 7, tokenizer.eos_token_id}


def test_a_complete_answer_comes_before_the_others_are(tiny: LoadedModel) -> None:
    seen: list[int] = []

    def check(written: int) -> None:
        seen.append(written)
        if len(seen) > 20:
            raise KeyboardInterrupt

    engine = TransformersEngine(tiny.model)
    prompts = prompts_of(tiny, *"abcdef")
    coming = answers(engine, prompts, set(), max_new_tokens=8, check=check, rows=2)
    assert len({next(coming)[0] for _ in range(4)}) == 4, "two turns of two rows, of 2 + 7 steps"
    with pytest.raises(KeyboardInterrupt):
        next(coming)
    assert seen[:6] == [0, 1, 2, 4, 6, 8], "two prompts are read, then two rows step"


def test_no_prompt_gives_no_answer_and_one_beyond_the_context_is_refused(tiny: LoadedModel) -> None:
    assert all_answers(tiny, {}, set()) == {}
    with pytest.raises(UserError, match="512") as caught:
        all_answers(tiny, {0: [9] * 5, 1: [9] * 512}, set())
    assert caught.value.code == "prompt_too_long"
    found = all_answers(tiny, {0: [9] * 507, 1: [9] * 5}, set(), max_new_tokens=50)
    assert {index: len(ids) for index, ids in found.items()} == {0: 5, 1: 50}
