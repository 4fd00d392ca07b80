"""Markdown of a model: it is drawn, can do nothing, stays readable, and takes no time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ui.test_render import HOSTILE, Structure
from ui.html.rich_text import MAX_MARKS, GrowingMarkdown, markdown

MANY = 10_000
WHOLE = """# Title
A *short* and **strong** text with `code` and ~~nothing~~.
A second line.

1. one
2. two
   - nested

| animal | legs |
| --- | --- |
| cat | 4 |

```python
def add(a, b):
    return a < b
```

> quoted

---
- last
-
"""


def test_what_markdown_means_is_drawn() -> None:
    found = Structure(markdown(WHOLE))
    for name in ("h4", "em", "strong", "code", "s", "br", "ol", "li", "ul", "table", "th", "td"):
        assert name in found.tags
    assert {"pre", "blockquote", "hr"} <= set(found.tags)
    assert "return a < b" in found.words
    assert ("data-text", "def add(a, b):\n    return a < b") in found.attributes
    assert "python" in found.words


def test_what_a_person_reads_as_a_unit_finds_its_direction_and_paragraphs_in_it_follow() -> None:
    drawn = markdown("a\n\n1. مرحبا\n\n2. سلام\n\n> نعم\n\n```\ncode\n```")
    assert re.findall(r"<(p|li|blockquote)\b( dir=.auto.)?", drawn) == [
        ("p", ' dir="auto"'),
        ("li", ' dir="auto"'),
        ("p", ""),
        ("li", ' dir="auto"'),
        ("p", ""),
        ("blockquote", ' dir="auto"'),
        ("p", ""),
    ]
    assert 'dir="ltr"' in drawn, "code"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[here](http://x.invalid/?q=1)", "here (http://x.invalid/?q=1)"),
        ('[here](http://x.invalid "a title")', "here (http://x.invalid, a title)"),
        ("[](http://x.invalid)", " (http://x.invalid)"),
        ("[**bold** link](http://x.invalid)", "bold link (http://x.invalid)"),
        ("![alt](http://x.invalid/a.png)", "alt (http://x.invalid/a.png)"),
        ("[![alt](http://i.invalid)](http://x.invalid)", "alt (http://i.invalid) (http://x.invalid)"),
        ("<http://x.invalid>", "http://x.invalid"),
        ("http://x.invalid", "http://x.invalid"),
        ("[x](javascript:alert(1))", "[x](javascript:alert(1))"),
        ("[x](data:text/html,a)", "[x](data:text/html,a)"),
        ("[x]\n\n[x]: http://x.invalid", "[x][x]: http://x.invalid"),
        ("<b onclick=x()>a</b>", "<b onclick=x()>a</b>"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("&lt;img src=x&gt; &amp;", "<img src=x> &"),
        ("&#x202e;abc", "⟨U+202E⟩abc"),
        ("a\u202eb `c\u202ed`", "a⟨U+202E⟩b c⟨U+202E⟩d"),
        ("[[[a](b)", "[[a (b)"),
        ("[[[[[[", "[[[[[["),
        ("```\n<img src=x>", "textCopy<img src=x>"),
        ('```"><img src=x>\ncode\n```', '"><imgCopycode'),
    ],
)  # fmt: skip
def test_nothing_can_be_fetched_followed_or_hidden(text: str, shown: str) -> None:
    found = Structure(markdown(text))
    assert found.words == shown
    assert not set(found.tags) & {"a", "img", "script", "form", "input", "iframe"}
    names = {name for name, _ in found.attributes}
    assert names <= {"dir", "class", "tabindex", "data-action", "data-text", "start"}


@given(st.text(alphabet=st.sampled_from("ab \n\r*_`~[]()<>!|#-1.:&;\"'\\\u202e\x00/=+")))
def test_no_text_whatever_becomes_anything_else(text: str) -> None:
    found = Structure(markdown(text))
    assert {name for name, _ in found.attributes} <= {
        "dir", "class", "tabindex", "data-action", "data-text", "start"
    }  # fmt: skip
    assert "\u202e" not in markdown(text)


@given(st.text(alphabet=st.sampled_from("ab \n*`~[]()>|#-1.\t=")), st.integers(1, 7))
def test_a_growing_text_is_drawn_as_the_whole_would_be(text: str, step: int) -> None:
    growing = GrowingMarkdown()
    for end in range(0, len(text) + step, step):
        assert growing.draw(text[:end]) == markdown(text[:end])


def test_a_text_that_becomes_another_is_drawn_anew() -> None:
    growing = GrowingMarkdown()
    growing.draw(WHOLE)
    assert growing.draw("# Other\n\nwords\n") == markdown("# Other\n\nwords\n")


def test_a_long_text_grows_in_little_time() -> None:
    long, growing = WHOLE * 40, GrowingMarkdown()
    started = time.process_time()
    for end in range(0, len(long), 60):
        growing.draw(long[:end])
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "text",
    [
        *("> " * MANY + "a", ">" * MANY + "a", "- " * MANY + "a", "1. " * MANY + "a"),
        *("[" * MANY, "[" * MANY + "]" * MANY, "![" * MANY, "[a](b" * MANY, "<" * MANY),
        *("*a " * MANY, "*" * MANY + "a" + "*" * MANY, "**a*" * 300, "`" * MANY, "&" * MANY),
        *("|" * MANY + "\n" + "|-" * MANY, "~~a" * MANY, "<http://x" * 2000, HOSTILE * 100),
        *("\n".join(">" * (line % 30) for line in range(2000)), "[a" * 900 + "](b)" * 900),
    ],
    ids=lambda text: text[:6],
)
def test_nesting_and_brackets_without_end_take_little_time_and_stay_readable(text: str) -> None:
    started = time.process_time()
    found = Structure(markdown(text))
    assert time.process_time() - started < 2
    assert found.words.count("a") >= min(text.count("a"), 1)


def test_a_text_with_too_many_marks_is_shown_as_it_is() -> None:
    text = "*a* " * MAX_MARKS + "\n> b"
    assert Structure(markdown(text)).words == text
    assert Structure(markdown(text)).tags == ["p"]
