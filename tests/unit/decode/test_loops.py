"""Loops are told from what is repeated for a good reason."""

from __future__ import annotations

import time

import pytest

from upq.decode.loops import LONGEST_END, repeats, text_repeats

#: Greedy answers of the shipped INT2 and INT4, cut where the token limit cut them.
LOOPS = {
    "a sentence": "The journey is 16:45 + 14:10 = 20:25. The total distance is 20 + 16 + 1 = 30. The total"
    " distance is 30 + 1 = 51." + " The total distance is 51." * 13 + " The total distance is 5",
    "a condition in code": "```python\ndef sum_of_numbers(numbers):\n    return sum(num for num in numbers if"
    " isinstance(num, (int, float))"
    + " and isinstance(num, (int, float))" * 11
    + " and isinstance(num,",
    "a line of a poem": "In the depths of the ocean, where shadows play,\n"
    + "Abele, the sea, a silent one,\n" * 15
    + "Abele, the sea, a",
    "words": "The play, written in 1595, is a Romeo and Juliet story, set in the"
    + " balcony of the" * 40
    + " balcony",
    "items that differ in their numbers only": "Stay healthy:\n"
    + "".join(f"{number}. Drink plenty of water.\n" for number in range(1, 30)),
    "rows of a table": "| Animal | Food |\n| ---| ---|\n"
    + "| Dog | 4 |\n| Cat | 4 |\n| Mouse | 4 |\n| Bird | 4 |\n" * 6,
    "characters without spaces": "天空是蓝色的" * 30,
    "one wide mark": "好。" + "。" * 100,
    "a long block": ("".join(f"Word {number} comes here. " for number in range(60))) * 3
    + "Word 0 comes",
}
HONEST = {
    "nothing": "",
    "a list": "".join(f"{at}. {name}\n" for at, name in enumerate(("Mercury", "Venus", "Earth"), 1)),
    "a table": "| n | n squared |\n| --- | --- |\n"
    + "".join(f"| {number} | {number**2} |\n" for number in range(40)),
    "a wide rule of a table": "|" + " --- |" * 16,
    "a matrix of zeros": "grid = [\n" + "    [0, 0, 0, 0, 0, 0, 0, 0, 0],\n" * 9 + "]",
    "assertions": "".join(
        f"    self.assertEqual(add({number}, 1), {number + 1})\n" for number in range(20)
    ),
    "closing brackets": "<ul>\n" + "    <li>a</li>\n" * 3 + "</ul>\n</div>\n</div>\n</div>\n</body>\n</html>",
    "a refrain": "Row, row, row your boat\nGently down the stream\nMerrily, merrily, merrily, merrily\n"
    "Life is but a dream\n" * 2,
    "a loop that was left": "The total distance is 51. " * 12
    + "That is wrong, so let me add the hours and the minutes once more.",
    "laughter": "Ha ha ha ha ha ha ha ha! That is a good one.",
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_found_in_its_text(name: str) -> None:
    assert text_repeats(LOOPS[name])


@pytest.mark.parametrize("name", HONEST)
def test_what_is_repeated_for_a_reason_is_no_loop(name: str) -> None:
    assert not text_repeats(HONEST[name])


def test_token_ids_are_judged_as_texts_are() -> None:
    block = [5, 9, 2, 7]
    assert repeats([1, 2, 3] + block * 6 + block[:1])
    assert not repeats([1, 2, 3] + block * 5 + block[:1])
    assert not repeats(list(range(12)) * 2)
    assert not repeats([])


def test_the_longest_text_is_judged_in_no_time() -> None:
    started = time.monotonic()
    assert text_repeats("ab" * 1_000_000)
    assert not text_repeats("a" * 5_000 + "bc" * 30)
    assert not repeats(range(10 * LONGEST_END))
    assert time.monotonic() - started < 2
