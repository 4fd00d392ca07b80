"""Below the columns: the message box, the examples and the settings of the answers."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any

import gradio as gr

from ui.app_state import PRIVATE, Offer
from upq.decode import Decoding

#: Of the models that ship with the app, all know the first; in the others INT2 parts from FP16, INT4 hardly.
EXAMPLES = (
    "What is the capital of France?",
    "Write a JSON object with the keys name and age for a person named Anna, 30.",
    "Write a Python function that returns the sum of a list of numbers.",
)
AT_ONCE, IN_TURN = "all at once", "one at a time"
#: What the views are called and their names for `ui.chat.render`. A further view is a line here.
VIEWS = (
    ("Text", "text"),
    ("Token KL", "token kl"),
    ("Words", "words"),
    ("Blind", "blind"),
)
SEND, STOP = "Send", "Stop"
#: Tokens of the longest answer that the page asks for.
LONGEST = 2048


#: What the folded settings are called, and how much of a system prompt their name tells.
NO_SYSTEM, TOLD = "System prompt: the model's own", 60


@dataclass
class Composer:
    """The message box and the settings below it. settings: the system prompt, then how answers are drawn."""

    message: gr.Textbox
    send: gr.Button
    clear: gr.Button
    keep: gr.Button
    examples: gr.Row
    example_buttons: list[gr.Button]
    mode: gr.Radio
    view: gr.Radio
    settings: list[Any]
    seed: gr.Number
    problem: gr.HTML


def build(offer: Offer) -> Composer:
    """Lay out the message box with all that belongs to a question."""
    with gr.Column(elem_classes="card", elem_id="composer"):
        with gr.Row(elem_classes="examples", elem_id="examples") as examples:
            buttons = [gr.Button(text, size="sm", min_width=200) for text in EXAMPLES]
        problem = gr.HTML(elem_id="chat-problem")
        keep = gr.Button("Keep the question as it was", size="sm", visible=False, elem_id="keep")
        with gr.Row(elem_classes="send-row"):
            message = gr.Textbox(
                label="Message to all columns",
                show_label=False,
                container=False,
                placeholder="Message to all three",
                scale=8,
                min_width=180,
                max_lines=8,
                elem_id="message",
            )
            send = gr.Button(SEND, variant="primary", scale=1, min_width=80, elem_id="send")
            clear = gr.Button("New chat", scale=1, min_width=80, elem_id="new-chat")
        with gr.Row(elem_id="chat-choices"):
            mode = gr.Radio([AT_ONCE, IN_TURN], value=AT_ONCE, label="Answer", elem_id="mode")
            view = gr.Radio(VIEWS, value="text", label="View", elem_id="view")
        system, decoding = _lay_out_system(), _lay_out_decoding(offer.longest(LONGEST))
    *_, seed, _ = decoding
    return Composer(
        message=message,
        send=send,
        clear=clear,
        keep=keep,
        examples=examples,
        example_buttons=buttons,
        mode=mode,
        view=view,
        settings=[system, *decoding],
        seed=seed,
        problem=problem,
    )


def _lay_out_system() -> gr.Textbox:
    with gr.Accordion(NO_SYSTEM, open=False, elem_classes="chip", elem_id="system-prompt") as chip:
        system = gr.Textbox(
            "", label="System prompt", lines=2, info="empty: the model's own default"
        )
    system.change(
        lambda text: gr.update(label=system_words(text)),
        system,
        chip,
        trigger_mode="always_last",
        **PRIVATE,
    )
    return system


def system_words(text: str | None) -> str:
    """Name the folded system prompt so that one that is set is not forgotten."""
    words = " ".join((text or "").split())
    if not words:
        return NO_SYSTEM
    told = words if len(words) <= TOLD else words[:TOLD].rstrip() + "\u2026"
    return f"\u2713 System prompt: {told}"


def _lay_out_decoding(longest: int) -> list[Any]:
    start = Decoding()
    start = replace(start, max_new_tokens=min(start.max_new_tokens, longest))
    with (
        gr.Accordion(
            decoding_words(*astuple(start)), open=False, elem_classes="chip", elem_id="decoding"
        ) as chip,
        gr.Row(),
    ):
        limit = gr.Slider(8, longest, start.max_new_tokens, step=8, label="Longest answer, tokens")
        temperature = gr.Slider(
            0, 2, start.temperature, step=0.05, label="Temperature", info="0 is greedy"
        )
        top_p = gr.Slider(0.05, 1, start.top_p, step=0.05, label="Top-p", info="1: every token")
        penalty = gr.Slider(
            *(1, 2, start.repetition_penalty),
            step=0.05,
            label="Repetition penalty",
            info="1 is off",
        )
        seed = gr.Number(start.seed, label="Seed", precision=0, minimum=0)
    values = [limit, temperature, top_p, seed, penalty]
    gr.on(
        [value.change for value in values],
        lambda *values: gr.update(label=decoding_words(*values)),
        values,
        chip,
        trigger_mode="always_last",
        **PRIVATE,
    )
    return values


def decoding_words(limit: int, temperature: float, top_p: float, seed: int, penalty: float) -> str:
    """Name the folded settings by what they are set to."""
    words = ["greedy" if not temperature else f"temperature {temperature:g}"]
    words += [f"top-p {top_p:g}", f"seed {seed:g}"] if temperature and seed is not None else []
    words += [f"repetition penalty {penalty:g}"] if penalty != 1 else []
    return f"Decoding: {', '.join(words)}, at most {limit:,} tokens"
