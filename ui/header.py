"""The header on every tab, and the heartbeat of the page.

The page asks for a number that grows with every change of any run, as often as ui.html.beat says. When it grew, one
page works out what is new, for all pages, and the tab that somebody looks at reads again what has changed for it: the
panel of a quantization hangs on `revision`, the report of a check on `checks`, the columns that wait for a model on
`progress`, lists on the tab's own `catalogs`. A tab that nobody looks at hears what it missed when it is opened.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App
from ui.html import Html, model_name, parts
from ui.html.beat import BEATING
from ui.html.clock import TICKING
from ui.html.folds import FOLDING
from upq.store import Run

NO_RUN = 0
TABS = ("quantize", "chat", "checks", "results", "export")
#: Where a page lands whose address names no tab.
FIRST_TAB = "chat"
#: What moves for one tab alone, beside the catalog, which each tab hears of.
HEARD_IN = {"revision": "quantize", "checks": "checks", "progress": "chat", "votes": "results"}
#: All of it: the catalog that the header itself hears of, and each tab's.
MOVING = ("catalog", *HEARD_IN, *(f"{tab} catalog" for tab in TABS))
#: Buttons of what was rendered: they may ask first (data-confirm), or for a text (data-ask; data-text is offered).
CLICKS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button) return;
  const { action, run, confirm: warning, ask, text } = button.dataset;
  if (warning && !confirm(warning)) return;
  const answer = ask ? prompt(ask, text) : null;
  if (ask && answer === null) return;
  trigger('click', { action, run, text: answer });
});"""


@dataclass
class Header:
    """What the tabs listen to: the chosen run, what moves (News says what), and the line of the header.

    chosen holds a run id, NO_RUN for FP16 alone, or None until there is something to choose. It is apart from
    the selector, because Gradio refuses an event whose selector was refilled meanwhile. tab holds the id of the tab
    that is looked at, "" before anybody chose one; catalogs holds for each tab the catalog that it has heard of.
    """

    chosen: gr.State
    selector: gr.Dropdown
    status: gr.HTML
    tab: gr.State
    revision: gr.State
    checks: gr.State
    progress: gr.State
    votes: gr.State
    catalogs: dict[str, gr.State]


@dataclass(frozen=True)
class News:
    """What all pages are told alike. Each text differs from the one before when something changed.

    revision and checks tell of any change of a quantization and of a check; progress of the share of its stage that a
    quantization at work has done, in percent, and of what was timed; catalog of which runs and artifacts there are, in
    which state, and what is written on them, and of the unpacking of those that ship with the app;
    votes of the blind votes.
    """

    revision: str
    checks: str
    progress: str
    catalog: str
    votes: str
    status: Html

    def heard(self, tab: str) -> dict[str, str]:
        """What a page hears that looks at this tab, by the names of what moves (see `build`)."""
        return {"catalog": self.catalog, f"{tab} catalog": self.catalog} | {
            name: getattr(self, name) for name, place in HEARD_IN.items() if place == tab
        }


def build(app: App, demo: gr.Blocks) -> Header:
    """Lay out the header. Must be called inside `demo`, the page; one that was just opened is filled at once."""
    with gr.Row(elem_id="header"):
        gr.HTML(parts.brand(), min_width=130, elem_id="brand")
        selector = gr.Dropdown(
            [(f"{model_name('bundled')} · no run yet", NO_RUN)],
            value=NO_RUN,
            label="Run for Chat, Checks and Export",
            show_label=False,
            container=False,
            min_width=250,
            scale=2,
            elem_id="run-selector",
        )
        scripts = CLICKS + TICKING + FOLDING + BEATING
        status = gr.HTML(js_on_load=scripts, min_width=300, elem_id="status")
    moving = {name: gr.State("") for name in MOVING}
    header = Header(
        gr.State(None),
        selector,
        status,
        gr.State(""),
        **{name: moving[name] for name in HEARD_IN},
        catalogs={tab: moving[f"{tab} catalog"] for tab in TABS},
    )
    seen = gr.State("")
    poll: dict[str, Any] = {
        "fn": partial(_poll, app),
        "inputs": [header.tab, seen, *moving.values()],
        "outputs": [seen, *moving.values(), status],
        **PRIVATE,
    }
    gr.on([demo.load, status.tick], **poll)
    header.tab.change(**poll, trigger_mode="always_last")
    both = [header.chosen, selector]
    moving["catalog"].change(lambda chosen: choices(app, chosen), header.chosen, both, **IN_ORDER)
    selector.input(
        lambda value: value, selector, header.chosen, trigger_mode="always_last", **IN_ORDER
    )
    return header


def clicked_run(event: gr.EventData) -> tuple[str, int]:
    """Return the action and run id of a click on a rendered button, and ("", 0) for anything else."""
    data: Any = event._data
    run = str(data.get("run", "")) if isinstance(data, dict) else ""
    if not re.fullmatch("[0-9]{1,19}", run):
        return "", 0
    return str(data.get("action", "")), int(run)


def given_text(event: gr.EventData) -> str:
    """Return the text that was typed when a rendered button asked for one."""
    data: Any = event._data
    text = data.get("text") if isinstance(data, dict) else None
    return text if isinstance(text, str) else ""


def _poll(app: App, tab: str, seen: str, *known: str) -> list[Any]:
    """Values for what a page has seen, for the texts of MOVING that it knows, and for the line of the header."""
    worker = app.supervisor
    beside = f"{app.timed} {app.unpack_state}"
    state = f"{app.store.latest_revision()} {worker.is_ready} {worker.trouble} {beside}"
    now = f"{tab} {state}"
    if now == seen:
        return [gr.skip() for _ in (seen, *known, "status")]
    news = app.shared.get(("news", state), partial(_news, app))
    heard = news.heard(tab or FIRST_TAB)
    texts = [(heard.get(name, old), old) for name, old in zip(MOVING, known, strict=True)]
    changed = [gr.skip() if new == old else new for new, old in texts]
    return [now, *changed, news.status]


def _news(app: App) -> News:
    live = app.store.live_run()
    runs = app.store.runs()
    waiting = sum(run.state == "queued" for run in runs)
    others = "busy with another visitor's run" if live is None and app.is_busy() else ""
    words = others or parts.worker_words(live, waiting, app.supervisor.is_ready)
    worker = app.supervisor.trouble or words
    at_work = live or waiting or others or app.unpack_state == "busy"
    rests = not at_work and app.supervisor.is_ready and not app.supervisor.trouble
    status = parts.status_line(app.device_line, worker, rests=rests)
    artifacts = [(row.run_id, row.precision) for row in app.store.artifacts()]
    told = [(run.id, run.state, run.name, run.note, run.starred) for run in runs]
    catalog = repr((told, artifacts, app.unpack_state))

    def newest(kind: str) -> str:
        mine = (run.revision for run in [*runs, *filter(None, [live])] if run.kind == kind)
        return f"{max(mine, default=0)} {catalog}"

    return News(
        revision=newest("quantize"),
        checks=newest("check"),
        progress=f"{_progress(live)} {app.timed}",
        catalog=catalog,
        votes=str(app.store.votes.newest()),
        status=status,
    )


def _progress(live: Run | None) -> str:
    if live is None or live.kind == "check":
        return ""
    return f"{live.id} {live.stage} {parts.stage_share(live):.0%}"


def choices(app: App, chosen: int | None) -> tuple[Any, Any]:
    """Offer the runs that left an artifact, newest first. Until somebody chooses, the newest one is taken."""
    artifacts = {row.run_id for row in app.store.artifacts()}
    runs = [run for run in app.store.runs(kind="quantize") if run.id in artifacts]
    if not runs:
        return None, gr.skip()
    keep = chosen is not None and chosen in {NO_RUN, *artifacts}
    value = chosen if keep else runs[0].id
    offered = [(parts.run_label(run), run.id) for run in runs]
    offered.append((f"{model_name('bundled')} · FP16 only", NO_RUN))
    return value, gr.update(choices=offered, value=value)
