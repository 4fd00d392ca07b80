"""Below the columns: the message box, the examples and the settings of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

EXAMPLES = (
    "Explain in two sentences why the sky is blue.",
    "Write three bullet points about staying healthy, each under eight words.",
    "A train leaves at 14:10 and arrives at 16:45. How long is the trip?",
)
AT_ONCE, IN_TURN = "all at once", "one at a time"
#: What the views are called and their names for `ui.chat.render`. A further view is a line here.
VIEWS = (("Text", "text"), ("Words", "words"), ("Blind", "blind"))
SEND, STOP = "Send", "Stop"


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
    problem: gr.HTML


def build() -> Composer:
    """Lay out the message box with all that belongs to a question."""
    with gr.Column(elem_classes="card", elem_id="composer"):
        with gr.Row(elem_classes="examples") as examples:
            buttons = [gr.Button(text, size="sm", min_width=200) for text in EXAMPLES]
        with gr.Row(elem_classes="send-row"):
            message = gr.Textbox(
                label="Message to all columns",
                show_label=False,
                container=False,
                placeholder="Message to all three",
                scale=8,
                min_width=240,
                max_lines=8,
                elem_id="message",
            )
            send = gr.Button(SEND, variant="primary", scale=1, min_width=90, elem_id="send")
            clear = gr.Button("New chat", scale=1, min_width=90, elem_id="new-chat")
        problem = gr.HTML(elem_id="chat-problem")
        keep = gr.Button("Keep the question as it was", size="sm", visible=False, elem_id="keep")
        with gr.Row():
            mode = gr.Radio([AT_ONCE, IN_TURN], value=AT_ONCE, label="Answer", elem_id="mode")
            view = gr.Radio(VIEWS, value="text", label="View", elem_id="view")
        settings = _lay_out_settings()
    return Composer(message, send, clear, keep, examples, buttons, mode, view, settings, problem)


def _lay_out_settings() -> list[Any]:
    with gr.Accordion("System prompt", open=False, elem_id="system-prompt"):
        system = gr.Textbox(
            "", label="System prompt", lines=2, info="empty: the model's own default"
        )
    with gr.Accordion("Decoding", open=False, elem_id="decoding"), gr.Row():
        limit = gr.Slider(8, 2048, 256, step=8, label="Longest answer, tokens")
        temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 is greedy")
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="1 keeps every token")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    return [system, limit, temperature, top_p, seed]
