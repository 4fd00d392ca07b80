"""A conversation as Markdown and as lines of JSON: complete, and nobody's text becomes markup."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.support.conversations import conversation, exchange
from upq.store import as_lines, as_markdown

HOSTILE = "![](http://x.invalid) <img src=http://x.invalid> [a](javascript:b) |\n# head\n````\nout"
#: Text without the characters that end a line in ways of their own, which Markdown makes newlines of.
TEXTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), include_characters="\n`~ "),
    max_size=60,
)


def test_the_markdown_tells_who_answered_what_and_how() -> None:
    text = as_markdown(conversation(exchange("why?"), exchange("and then?", finish="length")))
    assert text.startswith("# A title\n\nConversation 12 with run 3, begun 2026-01-01 00:00 UTC.\n")
    assert "| INT2 | bundled | rotated\\_upq | 2.27 |" in " ".join(text.split())
    assert "Drawn with max new tokens 64, temperature 0.5, top p 1.0, seed 123456789." in text
    assert "2 tokens, stopped at the token limit." in text
    assert text.index("## Question 1") < text.index("## Question 2") < text.index("and then?")


def test_one_question_can_be_taken_alone() -> None:
    kept = conversation(exchange("one"), exchange("two"))
    text = as_markdown(kept, 2)
    assert "## Question 2" in text
    assert "## Question 1" not in text
    lines = [json.loads(line) for line in as_lines(kept, 2).splitlines()]
    assert [line["precision"] for line in lines] == ["FP16", "INT2"]
    asked = [message["content"] for message in lines[0]["messages"] if message["role"] == "user"]
    assert asked == ["one", "two"], "the model read the first one too"


def test_each_line_has_all_that_it_takes_to_ask_again() -> None:
    line = json.loads(as_lines(conversation()).splitlines()[1])
    assert line == {
        "conversation": 12,
        "question": 1,
        "precision": "INT2",
        "run": 3,
        "model": "bundled",
        "method": "rotated_upq",
        "bits_per_weight": 2.27,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "why?"},
            {"role": "assistant", "content": "BECAUSE"},
        ],
        "settings": {"max_new_tokens": 64, "temperature": 0.5, "top_p": 1.0, "seed": 123456789},
        "seed": 123456789,
        "finish": "stop",
        "tokens": 2,
        "prompt_tokens": 9,
    }


def test_a_failed_answer_and_its_question_are_not_among_what_was_read_later() -> None:
    kept = conversation(exchange("one", answer="broken", finish="failed"), exchange("two"))
    first, _, later, _ = [json.loads(line)["messages"] for line in as_lines(kept).splitlines()]
    assert [message["content"] for message in first] == ["be brief", "one", "broken"]
    assert [message["content"] for message in later] == ["be brief", "two", "because"]


def tokens_of(text: str) -> list[tuple[str, str]]:
    """What Markdown makes of a text: kinds, and the content of blocks of code."""
    found = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in found for child in token.children or []]
    return [(token.type, token.content) for token in [*found, *inline]]


def test_hostile_text_becomes_no_markup() -> None:
    kept = conversation(exchange(HOSTILE, answer=HOSTILE), title=HOSTILE.replace("\n", " "))
    kinds = {kind for kind, _ in tokens_of(as_markdown(kept))}
    assert not kinds & {"image", "link_open", "html_block", "html_inline"}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TEXTS, TEXTS)
def test_every_text_stands_in_its_block_as_it_is(question: str, answer: str) -> None:
    text = as_markdown(conversation(exchange(question, answer=answer)))
    blocks = [content for kind, content in tokens_of(text) if kind == "fence"]
    said = [f"{one}\n" for one in (question, "be brief", answer, answer.upper())]
    assert blocks == said
