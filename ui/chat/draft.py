"""The message that is being written and the settings of the answers, as the browser remembers them.

A link that carries a question wins over them. A conversation brings its own settings when it is opened; those that were
changed while it was open come back with it.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.app_state import IN_ORDER, in_places
from ui.chat import share
from ui.chat.history import History
from ui.drafts import Draft, Found
from ui.requests import Question
from upq.errors import UserError

#: The settings of the composer, in its order.
SETTINGS = tuple(name for name in Question.model_fields if name != "message")


def of_chat(history: History) -> Draft:
    """Remember the composer. Must be called inside the page."""
    box = history.chat.composer
    settings = dict(zip(SETTINGS, box.settings, strict=True))
    fields = {"message": box.message, "mode": box.mode, **settings}
    waiting = gr.State(None)  # a conversation that is being opened, and the settings for it
    outputs = [*fields.values(), waiting]

    def restore(found: Found) -> list[Any]:
        now, later = to_restore(found)
        values = {fields[name]: value for name, value in now.items()}
        if later:
            values[waiting] = (found.conversation, later)
        return in_places(outputs, values)

    def settle(opened: int | None, waits: tuple[str, dict[str, Any]] | None) -> list[Any]:
        if waits is None or str(opened) != waits[0]:
            return in_places(outputs, {})
        values = {fields[name]: value for name, value in waits[1].items()}
        return in_places(outputs, {**values, waiting: None})

    history.opened.change(settle, [history.opened, waiting], outputs, **IN_ORDER)
    return Draft("chat", fields, outputs, restore)


def to_restore(found: Found) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values that come back at once, and those that do when the conversation of the address is open."""
    opens = found.address.get("conversation", "")
    try:
        if not opens and share.question_of(found.address):
            return {}, {}
    except UserError:
        pass  # the address says what is wrong with the link, and brings nothing
    if not opens:
        return found.values, {}
    own = {name: value for name, value in found.values.items() if name in SETTINGS}
    others = {name: value for name, value in found.values.items() if name not in SETTINGS}
    return others, own if opens == found.conversation else {}
