"""A comparison as files: figures and tokens are those of the comparison, and no text becomes markup."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.support.comparisons import comparison, report
from upq.compare import as_lines, as_markdown
from upq.decode import Decoding


def test_markdown_has_the_figures_the_answer_and_a_line_for_each_token() -> None:
    text = as_markdown(report(system="Be brief."))
    assert "Run 3." in text
    [int2] = [line for line in text.splitlines() if line.startswith("| INT2")]
    assert [cell.strip() for cell in int2.strip("|").split("|")] == [
        "INT2",
        "org/model",
        "upq",
        "2.25",
        "0.525",
        "2.03",
        "66.7 %",
        "2 of 6",
    ]
    rows = [line for line in text[text.index("## Tokens") :].splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + 6
    assert "0.60: The 0.50 \u25bc" in rows[3]
    assert "\u25bc" not in rows[2]
    assert "Be brief." in text


def test_text_is_no_markup_in_markdown() -> None:
    text = as_markdown(report(question="![x](http://host/x.png)\n```\n# No title"))
    assert "````text\n![x]" in text
    assert "\\<b\\>" in text[text.index("## Tokens") :]
    assert "| <b>" not in text


@pytest.mark.parametrize("run", [3, None])
def test_lines_are_the_whole_and_then_each_token(run: int | None) -> None:
    head, *tokens = map(json.loads, as_lines(report(run=run)).splitlines())
    assert head["kind"] == "comparison"
    assert head["run"] == run
    assert head["models"]["INT2"]["kl"] == pytest.approx(0.525)
    assert head["models"]["INT2"]["bits_per_weight"] == 2.25
    assert head["models"]["FP16"]["method"] == ""
    assert head["settings"]["seed"] == Decoding().seed
    assert [token["token"] for token in tokens] == [1, 2, 3, 4, 5, 6]
    assert [token["kl"]["INT2"] for token in tokens] == comparison().seen["INT2"].kl
    assert [token["flipped"] for token in tokens] == [[], ["INT2"], [], ["INT2"], [], []]


def test_what_has_to_be_known_is_said() -> None:
    found = replace(comparison([0.25] * 6, is_cut=True), made_anew=True)
    drawn = Decoding(temperature=0.7, repetition_penalty=1.2)
    text = as_markdown(report(comparison=found, decoding=drawn, run=None))
    assert "The bundled model." in text
    assert "Only the first 6 tokens were read." in text
    assert "made of the kept text anew" in text
    assert "drawn with a repetition penalty" in text
    assert "temperature 0.7" in text
    assert "25.0 %" in text
