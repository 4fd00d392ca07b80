"""What the pages show, from rows to HTML: pure functions, no app."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui import api, app_state
from ui.chat import render as render_chat
from ui.chat import render_head
from ui.checks import render as render_checks
from ui.html import GrowingMarkdown, Html, charts, parts, run_panel, tag, words
from ui.html.markup import VOID_TAGS, escape, visible
from ui.quantize import advanced, form, render, render_history, render_settings
from ui.quantize.advanced import Difference
from upq.config import METHODS, PRESET_WORDS, PRESETS, settings
from upq.evaluation import PromptResult, Verdict
from upq.quantize.estimate import Estimate
from upq.store import Run

HOSTILE = '<img src=http://x/?q=1 onerror=alert(1)><form action="//x">\u202e&amp;"\'</script>'


class Structure(HTMLParser):
    """The tags and attributes that a browser would see; they are checked to nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self.words = ""
        self.feed(str(text))
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID_TAGS:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def a_run(**changes: Any) -> Run:
    values: dict[str, Any] = {
        "id": 4,
        "kind": "quantize",
        "state": "running",
        "name": "",
        "model": "bundled",
        "method": "upq",
        "preset": "quick",
        "config": {"seed": 0},
        "parent_id": None,
        "created_at": 0.0,
        "started_at": 10.0,
        "ended_at": None,
        "stage": "int4",
        "stage_step": 3,
        "stage_total": 30,
        "detail": "block 3 of 30",
        "tokens_per_s": 118.4,
        "eta_s": 190.0,
        "peak_bytes": 2_100_000_000,
        "stages": {
            "load": {"started": 10.0, "ended": 12.0, "total": 1},
            "data": {"started": 12.0, "ended": 20.0, "total": 8},
            "int4": {"started": 20.0, "ended": None, "total": 30},
        },
        "cancel_requested": False,
        "worker": "w",
        "pid": 1,
        "attempt": 1,
        "crashes": 0,
        "lease_s": 30.0,
        "lease_until": 99.0,
        "error_code": "",
        "error_message": "",
        "error_hint": "",
        "revision": 1,
        "worked_s": 20.0,
        "environments": [],
        "gpu_peak_bytes": None,
        "note": "",
        "starred": False,
        "aside_for": None,
        "aside_at_s": None,
    }
    return Run(**{**values, **changes})


def a_result(key: int, strict: bool | None, response: str = "answer") -> PromptResult:
    verdict = Verdict(
        instruction_id="keywords:existence", strict=strict, loose=strict, reason="found 3 of 5"
    )
    return PromptResult(key=key, response=response, verdicts=(verdict,))


def everything_with(text: str) -> list[Html]:
    """Call every renderer with one text wherever a text can come from outside."""
    run = a_run(
        state="failed",
        model=text,
        name=text,
        note=text,
        starred=True,
        preset=text,
        method=text,
        stage=text,
        detail=text,
        error_message=text,
        error_hint=text,
    )
    live = a_run(model=text, detail=text, stage=text, stages={text: {"started": 1, "ended": 2}})
    messages: list[render_chat.Message] = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "finish": "stop", "tokens": 3},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "finish": "failed", "hint": text},
    ]
    reference: list[render_chat.Message] = [{"role": "assistant", "content": "other words"}]
    results = {"FP16": [a_result(1, True, text)], "INT2": [a_result(1, False, text)]}
    return [
        parts.status_line(text, parts.worker_words(live, 2, True), rests=True),
        parts.notice("failed", text, text),
        render.estimate_panel(Estimate(60, 90, 1, None, 1, 1, 1, [text], [text]), {text: text}),
        run_panel.run_panel(run, 0, 30.0),
        run_panel.run_panel(live, 0, 30.0),
        render.log_view([(10.0, text)]),
        render_history.history_table([run], {}),
        render_history.started_line(run, 1),
        render_settings.changes_panel([Difference(text, text, text)], text, text),
        render_head.column_head("FP16", {"backend": text, "note": text}),
        render_chat.conversation("INT4", messages),
        render_chat.conversation("INT4", messages, view="words", reference=reference),
        render_chat.writing({"role": "assistant", "content": text}, "", GrowingMarkdown()),
        render_chat.writing(None, text, GrowingMarkdown()),
        render_chat.waiting_column("INT2", text),
        render_checks.prompt_list(results, {1: text}, "all", [1], 9),
        render_checks.unavailable_types({text: text}),
    ]


@pytest.mark.parametrize("number", range(len(everything_with(""))))
def test_no_text_from_outside_becomes_markup(number: int) -> None:
    harmless, hostile = everything_with("harmless")[number], everything_with(HOSTILE)[number]
    expected, found = Structure(harmless), Structure(hostile)
    assert found.tags == expected.tags
    assert not {name for name, _ in found.attributes} & {"src", "href", "onerror", "action"}
    assert "onerror" in found.words, "the text itself is shown"
    assert "\u202e" not in hostile


@given(st.text())
def test_an_escaped_text_reads_as_what_was_written(text: str) -> None:
    parsed = Structure(tag("p", text, title=text))
    assert parsed.tags == ["p"]
    assert parsed.words == visible(text)


def test_markup_is_not_escaped_twice_and_text_never_passes_for_markup() -> None:
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert escape("<b>") == "&lt;b&gt;"


def test_text_that_is_added_to_markup_is_escaped_however_it_gets_there() -> None:
    bold, hostile = Html("<b>{}</b>"), "<i>\u202e"
    shown = "&lt;i&gt;⟨U+202E⟩"
    assert bold + hostile == f"<b>{{}}</b>{shown}"
    assert hostile + bold == f"{shown}<b>{{}}</b>"
    assert bold.format(hostile) == f"<b>{shown}</b>"
    assert Html("<b>%s</b>") % hostile == f"<b>{shown}</b>"
    assert Html("<br>").join([hostile, bold]) == f"{shown}<br><b>{{}}</b>"
    assert tag("p", title=Html('"<b>')) == '<p title="&#34;&lt;b&gt;"></p>'
    assert type(bold.strip() + hostile) is Html


def test_hidden_characters_become_visible_but_scripts_and_emoji_stay() -> None:
    assert visible("a\u202eb\u0000c\ud800\u2028") == "a⟨U+202E⟩b⟨U+0000⟩c⟨U+D800⟩⟨U+2028⟩"
    family = "👨\u200d👩\u200d👧 naïve 漢字\tx\ny"
    assert visible(family) == family


def test_a_zero_attribute_is_written() -> None:
    assert tag("line", x1=0, hidden=False, class_=None) == '<line x1="0"></line>'


def test_a_span_names_its_unit_once() -> None:
    assert words.span(545, 735) == "9 min 5 s to 12 min"
    assert words.span(660, 720) == "11 to 12 min"
    assert words.span(20, 20) == "about 20 s"


def test_the_form_has_a_section_for_every_setting_and_a_line_for_every_method() -> None:
    assert {path.rpartition(".")[0] for path, _ in settings()} == set(advanced.SECTIONS)
    assert form.METHOD_LINES.keys() == words.METHOD_NAMES.keys() == set(METHODS)
    assert PRESET_WORDS.keys() == set(PRESETS)


def test_the_interface_for_programs_names_every_method_and_preset() -> None:
    start_run = api._function(cast(app_state.App, None), "start_run", api.ENDPOINTS["start_run"])
    named = set(re.findall(r"\w+", start_run.__doc__ or ""))
    assert {*METHODS, *PRESETS, "bundled"} <= named


def test_resume_and_delete_are_offered_only_where_they_work() -> None:
    def actions(state: str) -> list[str]:
        html = render_history.history_table([a_run(state=state)], {})
        return re.findall(r'class="small"[^>]* data-action="(\w+)"', html)

    assert actions("running") == ["open", "again"]
    assert actions("done") == ["open", "again", "delete"]
    assert actions("failed") == ["open", "resume", "again", "delete"]


def test_empty_charts_say_when_they_fill() -> None:
    chart = charts.line_chart("Loss", [], x_name="step", empty="Starts with the distillation.")
    assert "Starts with the distillation." in chart
    assert "<svg" not in chart


def test_layers_that_stay_are_named_by_their_reason_the_first_three_of_each() -> None:
    sizes = {
        "memory_bytes": 1,
        "gpu_bytes": None,
        "fp16_bytes": 1,
        "int4_bytes": 1,
        "int2_bytes": 1,
    }
    skipped = [*(f"block.{index}: the router: decides" for index in range(5)), "other: shared"]
    panel = render.estimate_panel(Estimate(60.0, 90.0, **sizes, skipped=skipped, notes=[]))
    words = Structure(panel).words
    assert "Not quantized: block.0, block.1, block.2 and 2 more: the router: decides" in words
    assert "Not quantized: other: shared" in words


def test_the_estimate_shows_a_gpus_memory_where_there_is_one_and_what_was_chosen() -> None:
    sizes = {"memory_bytes": 1, "fp16_bytes": 1, "int4_bytes": 1, "int2_bytes": 1}
    times = {"seconds_low": 60.0, "seconds_high": 90.0}
    on_gpu, on_cpu = (
        Estimate(**times, **sizes, gpu_bytes=gpu_bytes, skipped=[], notes=[])
        for gpu_bytes in (66_000_000_000, None)
    )
    assert "GPU memory" in render.estimate_panel(on_gpu)
    assert "GPU memory" not in render.estimate_panel(on_cpu)
    chosen = {"int2.distill.checkpointing": True}
    assert "int2.distill.checkpointing=true; save_memory=false" in render.estimate_panel(
        on_gpu, chosen
    )
