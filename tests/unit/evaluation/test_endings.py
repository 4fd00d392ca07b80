"""How answers end: cut or by themselves, repeating themselves or not; kept, counted, and unknown in older checks."""

from __future__ import annotations

import json

from upq.evaluation import Ending, PromptResult, Verdict, scores
from upq.evaluation.endings import ending

END = 2
CUT = Ending(finish="length", tokens=64, repeats=True)
WHOLE = Ending(finish="stop", tokens=12, repeats=False)


def a_result(key: int, strict: bool, how: Ending | None) -> PromptResult:
    verdict = Verdict(instruction_id="punctuation:no_comma", strict=strict, loose=strict, reason="")
    return PromptResult(key=key, response="a", verdicts=(verdict,), ending=how)


def test_an_answer_without_an_end_token_was_cut() -> None:
    assert ending([5, 6, END], {END}) == Ending(finish="stop", tokens=3, repeats=False)
    assert ending([5, 6, 7], {END}) == Ending(finish="length", tokens=3, repeats=False)
    loop = [9, *[5, 6, 7] * 20]
    assert ending(loop, {END}) == Ending(finish="length", tokens=61, repeats=True)


def test_an_ending_comes_back_and_one_that_was_not_kept_is_unknown() -> None:
    for result in (a_result(1, True, CUT), a_result(2, False, WHOLE), a_result(3, True, None)):
        assert PromptResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    older = a_result(3, True, None).to_json()
    assert older.keys() == {"key", "response", "verdicts"}, "as versions before wrote it"
    assert not PromptResult.from_json(older).is_cut


def test_cut_answers_that_repeat_themselves_are_counted_apart_from_those_that_pass() -> None:
    results = [a_result(1, True, CUT), a_result(2, False, CUT), a_result(3, True, WHOLE)]
    (row,) = scores.rows("builtin", {"INT2": results})
    assert {name: row[name] for name in ("answers", "endings", "cut", "cut_passed", "repeats")} == {
        "answers": 3,
        "endings": 3,
        "cut": 2,
        "cut_passed": 1,
        "repeats": 2,
    }
    assert row["prompt_strict"] == 2 / 3, "a cut answer still counts by the rule"
    cells = scores.readable("builtin", row)
    assert (cells["cut"], cells["repeats"]) == ("2, 1 passed", "2")


def test_counts_say_of_how_many_answers_the_ending_is_known() -> None:
    def cells(*endings: Ending | None) -> tuple[str, str]:
        found = {"INT2": [a_result(key, False, how) for key, how in enumerate(endings)]}
        row = scores.readable("ifeval", scores.rows("ifeval", found)[0])
        return row["cut"], row["repeats"]

    assert cells(None, None) == ("", "")
    assert cells(CUT, None, None) == ("1 of 1", "1 of 1")
    assert cells(WHOLE, WHOLE) == ("0", "0")
