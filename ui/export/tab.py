"""Export: what each format makes of the chosen run's model, its files made by one click, and how programs take them.

An export is made in the background of the app, so closing the page stops nothing; while one is at work the page asks
once a second how far it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ui.app_state import PRIVATE, App, Outputs, plain_errors
from ui.export import render
from ui.export.offers import is_known, offers_of
from ui.export.render import Line
from ui.header import NO_RUN, Header
from ui.html import parts
from upq.config import QUANTIZED
from upq.errors import UserError
from upq.export import FORMATS
from upq.jobs.export_folder import Packing, Sending, Wanted
from upq.store import Run

POLL_S = 1.0
#: The longest name of a model on the hub, its owner with it. Characters.
MAX_REPO = 200
#: Buttons in what was rendered: those that copy work in the page, the others are told to the server.
CLICKS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if ('copy' in button.dataset) {
    const box = button.parentElement.querySelector('pre');
    const selected = () => { getSelection().selectAllChildren(box); document.execCommand('copy'); };
    const copied = navigator.clipboard?.writeText(box.textContent).catch(selected) ?? selected();
    Promise.resolve(copied).then(() => {
      button.textContent = 'Copied';
      setTimeout(() => { button.textContent = 'Copy'; }, 1500);
    });
    return;
  }
  const { action, format } = button.dataset;
  if (!action || action.startsWith('delete') && !confirm('Delete this?')) return;
  trigger('click', { action, format });
});"""


@dataclass
class Page(Outputs):
    """What the chosen run fills. elsewhere: the card of what follows; timer asks how far work is while there is any."""

    run: gr.HTML
    precision: gr.Radio
    formats: gr.HTML
    files: gr.HTML
    elsewhere: gr.Column
    published: gr.HTML
    whole: gr.HTML
    timer: gr.Timer


@dataclass
class Publish:
    """The form of a publication, and what is wrong with it."""

    repo: gr.Textbox
    format: gr.Dropdown
    private: gr.Checkbox
    send: gr.Button
    problem: gr.HTML


def build(app: App, header: Header, tab: gr.Tab) -> None:
    """Lay out the tab and wire it. Must be called inside `tab`."""
    looked = gr.State(0.0)  # when the tab was opened: an artifact is read only for those who look
    precision = gr.State("")  # apart from its radio for the reason that ui.header gives
    with gr.Column(elem_classes="card", elem_id="export"):
        gr.HTML(parts.panel_title("Export"))
        run = gr.HTML(render.nothing(is_fp16=False), elem_id="export-run")
        radio = gr.Radio([], label="Model", visible=False, elem_id="export-precision")
        formats = gr.HTML(js_on_load=CLICKS, elem_id="export-formats")
    files = gr.HTML(js_on_load=CLICKS, elem_id="export-files")
    with gr.Column(elem_classes="card", elem_id="export-elsewhere", visible=False) as elsewhere:
        publish, published, whole = _lay_out_elsewhere(app)
    timer = gr.Timer(POLL_S, active=False)
    page = Page(run, radio, formats, files, elsewhere, published, whole, timer)
    _wire(app, header, tab, page, looked, precision)
    if publish:
        _wire_publish(app, page, publish, [looked, header.chosen, precision])


def _lay_out_elsewhere(app: App) -> tuple[Publish | None, gr.HTML, gr.HTML]:
    gr.HTML(parts.panel_title("Elsewhere"))
    gr.HTML(parts.section_title("Publish on the Hugging Face Hub"))
    gr.HTML(render.publishing_hint(app.may_publish, app.signs_in))
    if app.may_publish and app.signs_in:
        with gr.Row():
            gr.LoginButton(
                logout_value="Sign out ({})", size="md", scale=0, min_width=280, elem_id="sign-in"
            )
    publish = _lay_out_publish() if app.may_publish else None
    published = gr.HTML(js_on_load=CLICKS, elem_id="published")
    if app.has_commands:
        gr.HTML(parts.section_title("The whole run as one file"))
        gr.HTML(render.whole_run_hint())
    return publish, published, gr.HTML(js_on_load=CLICKS, elem_id="whole-run")


def _lay_out_publish() -> Publish:
    with gr.Row(elem_classes="publish"):
        repo = gr.Textbox(
            label="Model on the hub",
            placeholder="OWNER/NAME",
            max_length=MAX_REPO,
            scale=3,
            min_width=220,
            elem_id="publish-repo",
        )
        form = gr.Dropdown(
            [(form.title, form.key) for form in FORMATS],
            value=FORMATS[0].key,
            label="Format",
            scale=2,
            min_width=200,
            elem_id="publish-format",
        )
        private = gr.Checkbox(True, label="Private", min_width=90, elem_id="publish-private")
        send = gr.Button("Publish", variant="primary", min_width=110, elem_id="publish")
    return Publish(repo, form, private, send, gr.HTML(elem_id="publish-problem"))


def _wire(
    app: App, header: Header, tab: gr.Tab, page: Page, looked: gr.State, precision: gr.State
) -> None:
    def act(event: gr.EventData, *asked: Any) -> Iterator[list[Any]]:
        _act(app, event, *asked)
        yield from _show(app, *asked)

    asked = [looked, header.chosen, precision]
    tab.select(time.time, None, looked, **PRIVATE)
    page.precision.input(lambda name: name, page.precision, precision, **PRIVATE)
    gr.on(
        [
            looked.change,
            precision.change,
            header.chosen.change,
            header.catalogs["export"].change,
            page.timer.tick,
        ],
        partial(_show, app),
        asked,
        page.outputs,
        trigger_mode="always_last",
        **PRIVATE,
    )
    for clicked in (page.formats, page.files, page.whole):
        clicked.click(act, asked, page.outputs, trigger_mode="multiple", **PRIVATE)  # none is lost


def _wire_publish(app: App, page: Page, publish: Publish, asked: list[gr.State]) -> None:
    gr.on(
        [state.change for state in asked],
        partial(_first_format, app),
        asked,
        publish.format,
        trigger_mode="always_last",
        **PRIVATE,
    )
    publish.send.click(
        partial(_publish, app),
        [*asked, publish.repo, publish.format, publish.private],
        [publish.problem, page.timer],
        **PRIVATE,
    )


def _looked_at(app: App, chosen: int | None, precision: str) -> tuple[Run, str] | None:
    """The chosen run and the precision of it that is shown; None where there is nothing to export."""
    run = app.context_run(chosen) if chosen else None
    there = [] if run is None else _precisions(app, run)
    if run is None or not there:
        return None
    return run, precision if precision in there else there[0]


def _first_format(app: App, looked: float, chosen: int | None, precision: str) -> Any:
    """The first format that holds a model, where somebody looks at one."""
    found = _looked_at(app, chosen, precision) if looked else None
    if found is None:
        return gr.skip()
    run, name = found
    try:
        offers = offers_of(app, run.id, name)
    except UserError:
        return gr.skip()  # the formats say why
    return next((row["key"] for row in offers if "why_not" not in row), gr.skip())


def _publish(
    app: App, _: float, chosen: int | None, precision: str, *asked: Any
) -> tuple[Any, Any]:
    """What is wrong with a publication, or nothing; and the timer, which follows it."""
    found = _looked_at(app, chosen, precision)
    if found is None:
        return gr.skip(), gr.skip()
    run, name = found
    repo, form, private = asked
    try:
        app.exports.send(Sending(Wanted(run.id, name, form), (repo or "").strip(), bool(private)))
    except UserError as error:
        return parts.notice("failed", error.message, error.hint), gr.skip()
    return "", gr.Timer(active=True)


def _show(app: App, looked: float, chosen: int | None, precision: str) -> Iterator[list[Any]]:
    """Values for a Page, first without the formats where reading the artifact takes a while."""
    run = app.context_run(chosen) if looked and chosen else None
    there = [] if run is None else _precisions(app, run)
    if not looked:
        yield Page.fill()
    elif run is None or not there:
        yield _filled(render.nothing(is_fp16=chosen == NO_RUN))
    else:
        name = precision if precision in there else there[0]
        absent = [other.name for other in QUANTIZED if other.name not in there]
        words = render.about(parts.run_label(run), absent, run.state)
        radio = gr.update(choices=there, value=name, visible=True)
        try:
            if not is_known(app, run.id, name):
                yield _filled(words, radio, formats=render.reading())
            drawn = _drawn(app, run, name)
        except UserError as error:
            drawn = {"formats": parts.notice("failed", error.message, error.hint)}
        yield _filled(words, radio, **drawn)


def _precisions(app: App, run: Run) -> list[str]:
    there = app.precisions(run.id)
    return [precision.name for precision in QUANTIZED if precision.name in there]


def _drawn(app: App, run: Run, precision: str) -> dict[str, Any]:
    """What depends on the formats. Raises UserError as offers_of."""
    lines = []
    for row in offers_of(app, run.id, precision):
        wanted = Wanted(run.id, precision, row["key"])
        lines.append(Line(row, app.exports.kept(wanted), app.exports.work(wanted)))
    key = next(
        (line.row["key"] for line in lines if "why_not" not in line.row), lines[0].row["key"]
    )
    commands = render.Place(app.exports.folder.parent, run.id, precision)
    place = commands if app.has_commands else None
    sendings, packing = app.exports.sendings(run.id, precision), Packing(run.id)
    file, work = app.exports.packed(packing), app.exports.work(packing)
    works = [line.work for line in lines] + [*sendings.values(), work]
    return {
        "formats": render.formats(lines, is_portable=run.method == "portable_upq"),
        "files": render.files(lines),
        "elsewhere": gr.update(visible=app.has_commands or app.may_publish),
        "published": render.publishing(place, key, sendings, lines),
        "whole": render.whole_run(place, run.state == "done", file, work) if place else "",
        "timer": gr.Timer(active=any(work is not None and work.is_busy for work in works)),
    }


def _filled(run: Any, precision: Any = None, **drawn: Any) -> list[Any]:
    """Values for a Page; what is not given is empty."""
    empty = dict.fromkeys(("formats", "files", "published", "whole"), "")
    closed = {"elsewhere": gr.update(visible=False), "timer": gr.Timer(active=False)}
    radio = gr.update(visible=False) if precision is None else precision
    return Page.fill(run=run, precision=radio, **(empty | closed | drawn))


def _act(app: App, event: gr.EventData, _: float, chosen: int | None, precision: str) -> None:
    """Carry out a button. Whatever no longer fits, because the page is old, does nothing."""
    data: Any = event._data
    run = app.context_run(chosen) if chosen else None
    if run is None or not isinstance(data, dict):
        return
    there = _precisions(app, run)
    name = precision if precision in there else next(iter(there), "")
    action = str(data.get("action", ""))
    with plain_errors():
        if action == "pack":
            app.exports.pack(Packing(run.id))
            return
        if action == "delete-file":
            app.exports.delete(Packing(run.id))
            return
        wanted = Wanted(run.id, name, str(data.get("format", "")))
        if action == "make":
            app.exports.make(wanted)
        elif action == "delete":
            app.exports.delete(wanted)
        elif action == "cancel":
            app.exports.cancel(wanted)
