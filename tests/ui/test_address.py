"""The address of the page and the links that carry a question: read with distrust, written short."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ui.address import Place, _fitting, place_of, query_of
from ui.chat import render_history, share
from ui.requests import Question
from upq.errors import UserError

TABS = ["quantize", "chat"]
NOWHERE = Place(None, None, None, None, ())


def test_an_address_is_read_as_it_is_written() -> None:
    query = query_of("chat", 3, 12)
    assert query == "tab=chat&run=3&conversation=12"
    assert place_of(dict(parse_qsl(query)), TABS) == Place("chat", 3, 12, None, ())
    assert query_of("", None, None) == ""
    assert query_of("chat", 0, None) == "tab=chat&run=0"


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"tab": "secrets"}, "tab is 'secrets'; expected one of quantize, chat."),
        ({"run": "-1"}, "run is '-1'; expected a number."),
        ({"run": "1e9"}, "run is '1e9'; expected a number."),
        ({"run": "٣"}, "run is '٣'; expected a number."),
        ({"run": "9" * 19}, "run is"),
        ({"conversation": "1 OR 1"}, "conversation is '1 OR 1'; expected a number."),
        ({"prompt": ""}, "The message is empty."),
        ({"prompt": "x" * 20_001}, "message has 20,001 characters"),
        ({"prompt": "hi", "temperature": "9"}, "temperature is 9; expected a number from 0 to 5."),
        ({"prompt": "hi", "seed": "one"}, "seed is 'one'; expected a whole number"),
        ({"prompt": "hi", "max_tokens": "nan"}, "max_tokens is 'nan'; expected a whole number"),
    ],
)
def test_nonsense_is_left_out_and_said(parameters: dict[str, str], problem: str) -> None:
    place = place_of({**parameters, "__theme": "dark"}, TABS)
    assert problem in " ".join(place.problems)
    assert (place.tab, place.run, place.conversation, place.question) == (None,) * 4


def test_parameters_of_others_are_no_business_of_ours() -> None:
    assert place_of({"__theme": "dark", "utm_source": "x", "temperature": "?"}, TABS) == NOWHERE


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=200).filter(str.strip),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=50),
    st.integers(1, 8192),
    st.integers(0, 5_000_000).map(lambda number: number / 1e6),
    st.integers(0, 2**63 - 1),
)
def test_a_link_brings_back_the_question_that_it_was_made_of(
    message: str, system: str, max_tokens: int, temperature: float, seed: int
) -> None:
    question = Question.at([message, system, max_tokens, temperature, 0.95, seed, 1.25])
    parameters = dict(parse_qsl(share.link_of(question, 3)))
    assert place_of(parameters, TABS) == Place("chat", 3, None, question, ())


def test_a_link_that_no_browser_takes_is_refused() -> None:
    with pytest.raises(UserError, match="expected at most 8,000"):
        share.link_of(Question.at(["\u6f22" * 1000]), None)


def test_settings_beyond_the_controls_of_the_page_are_left_out() -> None:
    boxes = [
        _Control(label="Longest answer", maximum=2048),
        _Control(label="Seed", maximum=None),
        _Control(label="System"),
    ]
    fitting, misfits = _fitting(boxes, [4096, 7, "be brief"])
    assert list(fitting.values()) == [7, "be brief"]
    assert misfits == ["Longest answer is 4096; the page takes at most 2048."]


class _Control:
    """A control of the page that can be the key of a dict, as Gradio's are."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def test_a_link_is_escaped_and_an_equal_one_is_drawn_anew() -> None:
    first, second = (render_history.link('prompt="><img>') for _ in "12")
    assert "&gt;&lt;img&gt;" in first
    assert first != second
