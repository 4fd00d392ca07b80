"""Streaming: the tokens are those of transformers, it stops between tokens, and seeds repeat."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from upq.engines import engine_for
from upq.errors import UserError
from upq.generate import Decoding, Piece, stream
from upq.models import LoadedModel, chat_ids

HELLO = [{"role": "user", "content": "Hello"}]


def answer(loaded: LoadedModel, decoding: Decoding, stop: Any = lambda: False) -> Piece:
    """The last piece."""
    *_, last = stream(engine_for(loaded.model), loaded.tokenizer, HELLO, decoding, stop)
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
    assert last.text == tiny.tokenizer.decode(expected, skip_special_tokens=True)


def test_the_bundled_model_streams_the_tokens_of_transformers(bundled: LoadedModel) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    expected = reference(bundled, messages, 12)
    pieces = list(
        stream(
            engine_for(bundled.model),
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


def test_a_tiny_top_p_is_greedy(tiny: LoadedModel) -> None:
    greedy = answer(tiny, Decoding(max_new_tokens=20))
    sampled = answer(tiny, Decoding(max_new_tokens=20, temperature=1.0, top_p=0.01))
    assert sampled.text == greedy.text


def test_a_prompt_beyond_the_context_is_refused_and_the_answer_ends_with_it(
    tiny: LoadedModel,
) -> None:
    long = [{"role": "user", "content": "x" * 600}]
    engine = engine_for(tiny.model)
    with pytest.raises(UserError, match="the model reads at most 512") as caught:
        next(stream(engine, tiny.tokenizer, long, Decoding(), lambda: False))
    assert caught.value.code == "prompt_too_long"

    room = 5
    prompt = [
        {"role": "user", "content": "x" * (512 - room - len(chat_ids(tiny.tokenizer, HELLO)) + 5)}
    ]
    assert len(chat_ids(tiny.tokenizer, prompt)) == 512 - room
    pieces: Iterator[Piece] = stream(
        engine, tiny.tokenizer, prompt, Decoding(max_new_tokens=100), lambda: False
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
