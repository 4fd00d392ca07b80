"""Logits that are not numbers never become a token, a mark or a score; the message names the block."""

from typing import Any

import pytest
import torch

from tests.conftest import make_tokenizer
from tests.support.families import family_ids, family_model
from upq.decode import Decoding, Engine, NativeEngine, Reader, answers, engine_for, stream
from upq.decode.draw import pick, pick_rows
from upq.errors import UserError
from upq.evaluation.mmlu import Exam, Question, marks
from upq.evaluation.wikitext import read_chunk

PROMPT = family_ids(1, 9)[0].tolist()


def broken(family: str) -> Any:
    """A model whose block 1 gives NaN."""
    model = family_model(family, num_hidden_layers=3)
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = torch.nan
    return model


def engine_of(family: str) -> Engine:
    engine = engine_for(broken(family), torch.device("cpu"))
    assert isinstance(engine, NativeEngine) == (family == "llama")
    return engine


def message_of(caught: pytest.ExceptionInfo[UserError]) -> str:
    assert caught.value.code == "diverged"
    return caught.value.message


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_an_answer_ends_with_the_number_of_the_block(family: str, temperature: float) -> None:
    engine, says = engine_of(family), [{"role": "user", "content": "Hello"}]
    decoding = Decoding(max_new_tokens=4, temperature=temperature)
    with pytest.raises(UserError) as caught:
        list(stream(Reader(engine), make_tokenizer(), says, decoding, lambda: False))
    assert "decoder block 1" in message_of(caught)
    options: dict[str, Any] = {"max_new_tokens": 4, "temperature": temperature}
    with pytest.raises(UserError) as caught:
        list(answers(engine, {0: PROMPT}, set(), check=lambda _: None, **options))
    assert "decoder block 1" in message_of(caught)


def test_no_question_is_marked_and_no_text_scored() -> None:
    tokenizer: Any = make_tokenizer()
    question = Question(
        key=0, subject="astronomy", question="Which?", choices=("a", "b", "c", "d"), answer=0
    )
    paper = Exam(questions=(question,), shots={"astronomy": (question,)})
    with pytest.raises(UserError) as caught:
        list(marks(engine_of("granite"), tokenizer, paper, [question], [0], lambda _: None))
    assert "decoder block 1" in message_of(caught)
    with pytest.raises(UserError) as caught:
        read_chunk(broken("granite"), PROMPT)
    message_of(caught)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_no_token_is_drawn_where_one_logit_is_not_a_number(
    value: float, temperature: float, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, generator=generator)
    logits[1, 20] = value
    drawn = [pick(row, temperature, top_p, generator) for row in logits]
    assert [token is None for token in drawn] == [False, True, False]
    points = torch.full((3,), 0.5, dtype=torch.float64)
    tokens = pick_rows(logits, temperature, points).tolist()
    assert [token < 0 for token in tokens] == [False, True, False]


def test_a_logit_of_minus_infinity_is_a_token_that_is_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf])
    generator = torch.Generator().manual_seed(0)
    assert {pick(logits, 1.0, 1.0, generator) for _ in range(20)} == {1}


def test_a_temperature_next_to_zero_takes_the_likeliest_token() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    assert pick(logits, 1e-300, 1.0, torch.Generator().manual_seed(0)) == 1
