"""An answer is sent once, in order, and never a character from a stop string on."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from upq.decode import Piece
from upq.serve.spoken import before_stop, begun, spoken


def pieces(parts: list[str], finish: str = "stop") -> Iterator[Piece]:
    text = ""
    for place, part in enumerate(parts):
        text += part
        is_last = place + 1 == len(parts)
        yield Piece(text, 3, place + 1, 0.1, 9.0, is_last, finish if is_last else "")  # type: ignore[arg-type]


def test_without_a_stop_string_every_piece_gives_its_own_words() -> None:
    said = list(spoken(pieces(["Hel", "lo ", "you"], "length"), []))
    assert [one.text for one in said] == ["Hel", "lo ", "you"]
    assert [one.finish for one in said] == ["", "", "length"]
    assert (said[-1].prompt_tokens, said[-1].tokens) == (3, 3)


def test_a_stop_string_that_comes_in_halves_ends_the_answer_before_it() -> None:
    said = list(spoken(pieces(["one #", "#", "# two", " three"]), ["###"]))
    assert "".join(one.text for one in said) == "one "
    assert said[-1].finish == "stop"
    assert said[-1].tokens == 3


def test_what_only_began_like_a_stop_string_is_sent_after_all() -> None:
    said = list(spoken(pieces(["a#", "#", "b", "##"]), ["###"]))
    assert [one.text for one in said] == ["a", "", "##b", "##"]


@given(
    st.lists(st.text("ab#", min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(st.text("ab#", min_size=1, max_size=3), max_size=3),
)
def test_what_is_sent_is_the_text_before_the_first_stop_string(
    parts: list[str], stops: list[str]
) -> None:
    said = list(spoken(pieces(parts), stops))
    expected, _ = before_stop("".join(parts), stops)
    assert "".join(one.text for one in said) == expected
    assert [bool(one.finish) for one in said] == [False] * (len(said) - 1) + [True]


def test_the_longest_beginning_of_a_stop_string_is_found() -> None:
    assert begun("abc", ["cde", "bcd"]) == 2
    assert begun("abc", ["abc"]) == 0
    assert begun("", ["abc"]) == 0
