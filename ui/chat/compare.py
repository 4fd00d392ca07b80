"""What the models make of one another's answers, beside the conversation: the Token KL view, and instructions.

Both are drawn when a turn is over, and the view anew when somebody chooses another turn or another answer. While the
columns answer both are empty, and an empty view gives its place to the columns (theme.css).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.app_state import PRIVATE, App, Outputs
from ui.chat import render_compare
from ui.chat.keep import FILES, authors_of, decoding_of
from ui.chat.render import Message
from ui.chat.render_compare import WORSE
from ui.chat.turn import Turn, column, conversation_of, place_of
from ui.html import PRECISIONS, Html, Precision, notice
from upq.compare import (
    REFERENCE,
    Answer,
    Report,
    as_lines,
    as_markdown,
    instructions_of,
    outcomes,
)
from upq.decode import Decoding
from upq.errors import UserError
from upq.jobs import compared

#: The name of the view among those of the composer.
TOKEN_KL = "token kl"
NEWEST = 0
#: Characters of a question in the list of turns.
QUESTION_CHARACTERS = 60
#: Arrow keys, Home and End go from piece to piece, of which one can be reached by Tab; n goes to the next flip.
KEYS = """
const pieces = () => [...element.querySelectorAll('.token')];
let current = null;
const go = (piece) => {
  if (!piece) return;
  current = piece;
  for (const other of pieces()) other.tabIndex = -1;
  piece.tabIndex = 0;
  piece.focus();
};
const flips = () => {
  const by = element.querySelector('.token-view')?.dataset.by;
  const marks = by === 'worse' ? ['int4', 'int2'] : [by];
  return pieces().filter((piece) => marks.some((name) => piece.classList.contains(`flip-${name}`)));
};
const nextFlip = () => {
  const all = pieces(), marked = flips(), at = all.indexOf(current);
  go(marked.find((piece) => all.indexOf(piece) > at) || marked[0]);
};
element.addEventListener('click', (event) => {
  if (event.target.closest('[data-action=next-flip]')) nextFlip();
  else if (!event.target.closest('.seen')) go(event.target.closest('.token'));
});
element.addEventListener('keydown', (event) => {
  const all = pieces(), at = all.indexOf(event.target.closest('.token'));
  if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  const moves = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0 };
  moves.End = all.length - 1;
  if (!(event.key in moves)) return;
  event.preventDefault();
  go(all[moves[event.key]]);
});
document.addEventListener('keydown', (event) => {
  const typed = event.target.closest?.('input:not([type=radio]), textarea, select, [contenteditable=true]');
  if (event.key !== 'n' || typed || event.ctrlKey || event.metaKey || event.altKey) return;
  if (element.offsetParent && pieces().length) nextFlip();
});
"""


@dataclass
class Panel(Outputs):
    """The components beside the conversation. turn: how many turns ago; source: whose answer is read; take: the row
    that offers the view as a file.
    """

    turn: gr.Dropdown
    source: gr.Radio
    by: gr.Radio
    view: gr.HTML
    take: gr.Row
    ending: gr.Radio
    file: gr.DownloadButton
    instructions: gr.HTML


def build() -> Panel:
    """Lay out the panel; it is empty, which hides it."""
    with gr.Column(elem_classes="card", elem_id="token-panel"):
        with gr.Row():
            turn = gr.Dropdown(
                [("the last question", NEWEST)],
                value=NEWEST,
                label="Answer to",
                visible=False,
                min_width=220,
                elem_id="kl-turn",
            )
            source = gr.Radio(
                list(PRECISIONS), value=REFERENCE, label="Answer of", elem_id="kl-source"
            )
            by = gr.Radio(["INT4", "INT2", WORSE], value=WORSE, label="Read by", elem_id="kl-by")
        view = gr.HTML(js_on_load=KEYS, elem_id="kl-view")
        with gr.Row(visible=False, elem_id="kl-take") as take:
            names = [(name, ending) for ending, (name, _) in FILES.items()]
            ending = gr.Radio(
                names, value="md", label="Take along as", min_width=260, elem_id="kl-as"
            )
            file = gr.DownloadButton("Download", size="sm", min_width=110, elem_id="kl-file")
    instructions = gr.HTML(elem_id="instructions")
    return Panel(turn, source, by, view, take, ending, file, instructions)


def wire(app: App, panel: Panel, chat: Any) -> None:
    """Let the panel listen to the chat: `asked`, `over`, `turn` and the composer's `view` of its Chat."""
    choices = [panel.turn, panel.source, panel.by]
    asked = [chat.turn, chat.composer.view, *choices]
    shown = [panel.view, panel.take, panel.file]

    def choose(turn: Turn | None) -> list[Any]:
        return Panel.fill(**_choices(turn))

    def judge(turn: Turn | None, ago: int) -> Iterator[Html | str]:
        yield from _judge(app, turn, ago)

    def read(*values: Any) -> Iterator[list[Any]]:
        yield from _read(app, *values)

    def write(*values: Any) -> Any:
        return _write(app, *values)

    nothing = {"view": "", "take": gr.update(visible=False), "instructions": ""}
    chat.asked.change(lambda: Panel.fill(**nothing), None, panel.outputs, **PRIVATE)
    chosen = chat.over.change(choose, chat.turn, panel.outputs, **PRIVATE)
    options: dict[str, Any] = {
        "trigger_mode": "always_last",
        "concurrency_id": "compare",
        **PRIVATE,
    }
    chosen.then(read, [*asked, panel.ending], shown, **options)
    chosen.then(judge, [chat.turn, panel.turn], panel.instructions, **options)
    chat.composer.view.change(read, [*asked, panel.ending], shown, **options)
    gr.on([one.input for one in choices], read, [*asked, panel.ending], shown, **options)
    panel.ending.input(write, [chat.turn, *choices, panel.ending], panel.file, **options)
    panel.turn.input(judge, [chat.turn, panel.turn], panel.instructions, **options)


def _choices(turn: Turn | None) -> dict[str, Any]:
    """Offer what the turn has: its questions, newest first, and the models that answered."""
    if turn is None:
        return {"view": "", "instructions": ""}
    questions = [*(exchange.question for exchange in turn.earlier), turn.message]
    names = [_short(text) for text in reversed(questions)]
    present = [precision for precision in PRECISIONS if precision in turn.models]
    readers = present[1:] + ([WORSE] if len(present) > len((REFERENCE, "INT4")) else [])
    return {
        "turn": gr.update(
            choices=[(name, ago) for ago, name in enumerate(names)],
            value=NEWEST,
            visible=len(names) > 1,
        ),
        "source": gr.update(choices=present),
        "by": gr.update(choices=readers, value=readers[-1]) if readers else gr.skip(),
    }


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= QUESTION_CHARACTERS else flat[: QUESTION_CHARACTERS - 1] + "\u2026"


def _read(
    app: App, turn: Turn | None, view: str, ago: int, source: Precision, by: str, ending: str
) -> Iterator[list[Any]]:
    """Yield what the view shows and the file that it is: that the models read, then what they think of the answer."""
    hidden = gr.update(visible=False)
    if view != TOKEN_KL or turn is None or not turn.is_over:
        yield ["", hidden, gr.skip()]
        return
    if not app.shared.has(_key(turn, ago, source)):
        yield [notice("busy", "The models read the answer."), hidden, gr.skip()]
    try:
        drawn = app.shared.get(
            ("drawn", *_key(turn, ago, source)),
            lambda: render_compare.token_view(_report(app, turn, ago, source)),
        )
        file = _write(app, turn, ago, source, by, ending)
        yield [render_compare.read_by(drawn, by), gr.update(visible=True), file]
    except Exception as error:  # a panel is a boundary: what fails here is said here
        yield [_failure(error), hidden, gr.skip()]


def _key(turn: Turn, ago: int, source: Precision) -> tuple[object, ...]:
    return ("token kl", turn.id, ago, source)


def _write(app: App, turn: Turn | None, ago: int, source: Precision, by: str, ending: str) -> Any:
    """Write the comparison that is shown as a file; return the button with it."""
    if turn is None or not app.shared.has(_key(turn, ago, source)):
        return gr.skip()
    report, place = _report(app, turn, ago, source), turn.thread.place
    conversation = place.id if place else "not-kept"
    name = f"upq-token-kl-{conversation}-question-{turn.number - ago}-{source}.{ending}"
    path = app.own_folder() / name
    path.write_text(_text(report, by, ending), encoding="utf-8")
    return gr.update(value=str(path))


def _text(report: Report, by: str, ending: str) -> str:
    if ending == "html":
        return render_compare.page(report, by)
    return as_lines(report) if ending == "jsonl" else as_markdown(report)


def _report(app: App, turn: Turn, ago: int, source: Precision) -> Report:
    """What the models of a turn think of an answer, which they read once. Raises UserError as `_compared` does."""
    return app.shared.get(_key(turn, ago, source), lambda: _compared(app, turn, ago, source))


def _compared(app: App, turn: Turn, ago: int, source: Precision) -> Report:
    """Let the models of a turn read an answer. Raises UserError where there is none, or nobody to compare with."""
    said = _said(turn, source, ago)
    if not said or said[-1].get("finish") == "failed":
        raise UserError("no_answer", f"{source} gave no answer here.", "Choose another one.")
    if set(turn.models) == {REFERENCE}:
        found = "There is neither INT4 nor INT2 to compare FP16 with."
        raise UserError("artifact_not_found", found, "Start a run in Quantize.")
    served = {}
    for precision in turn.models:
        state = column(app, precision, turn.run_id)
        served[precision] = app.models.get(state.run_id, precision, state.source)
    last = said[-1]
    answer = Answer(
        last["content"],
        ended=last.get("finish") == "stop",
        ids=last.get("ids", ()),
        tokens=last.get("tokens", 0),
    )
    system, decoding = _asked(turn, ago)
    authors = authors_of(app, turn).items()
    return Report(
        comparison=compared.read(served, conversation_of(system, said[:-1]), answer, decoding),
        question=said[-2]["content"],
        system=system,
        source=source,
        decoding=decoding,
        run=turn.run_id,
        models={name: author.model_dump() for name, author in authors if name in served},
    )


def _said(turn: Turn, precision: Precision, ago: int) -> list[Message]:
    """Return a column's messages up to its answer of some turns ago; empty where it gave none then."""
    messages, number = turn.histories.get(precision, []), turn.number - ago
    at = place_of(messages, number)
    has_answer = len(messages) > at + 1 and messages[at + 1]["role"] == "assistant"
    return list(messages[: at + 2]) if has_answer else []


def _asked(turn: Turn, ago: int) -> tuple[str, Decoding]:
    """The system prompt and the decoding of some turns ago."""
    if not ago:
        return turn.system, turn.decoding
    exchange = turn.earlier[-ago]
    return exchange.system, decoding_of(exchange.decoding)


def _judge(app: App, turn: Turn | None, ago: int) -> Iterator[Html | str]:
    """Yield which model followed which instruction of a question; nothing where it has none."""
    said = {precision: _said(turn, precision, ago) for precision in PRECISIONS} if turn else {}
    answered = {
        precision: messages[-1]["content"]
        for precision, messages in said.items()
        if messages and messages[-1].get("finish") != "failed"
    }
    instructions = instructions_of(said[REFERENCE][-2]["content"]) if REFERENCE in answered else []
    if turn is None or not turn.is_over or not instructions:
        yield ""
        return
    yield notice("busy", "The answers are judged.")
    key = ("instructions", turn.id, ago)
    try:
        yield app.shared.get(
            key, lambda: render_compare.verdicts(instructions, outcomes(instructions, answered))
        )
    except Exception as error:  # a panel is a boundary: what fails here is said here
        yield _failure(error)


def _failure(error: Exception) -> Html:
    """Draw an error; details of an unexpected one go to the log."""
    if isinstance(error, UserError):
        kind = "empty" if error.code in ("no_answer", "artifact_not_found") else "failed"
        return notice(kind, error.message, error.hint)
    logging.getLogger(__name__).error("a comparison failed", exc_info=error)
    what = f"The comparison stopped at an unexpected error ({type(error).__name__})."
    return notice("failed", what, "The terminal shows the details.")
