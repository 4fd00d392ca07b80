"""Renders a chat template, which is a stranger's program, with transformers' own sandbox and rules.

upq.models.tokenizer runs this file in a process that can be killed (upq.killable), so it imports nothing of ours.
"""

from __future__ import annotations

from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

#: Characters that a template may add to a conversation. The longest, of models with tools, have thirty thousand.
MOST_ADDED = 1_000_000
#: How often a template may repeat what was said.
MOST_TIMES = 4


def render(
    template: str,
    messages: list[dict[str, str]],
    add_generation_prompt: bool,
    special_tokens: dict[str, str],
) -> str:
    """The text of a conversation. Raises whatever the template does, and ValueError where it writes without end."""
    options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, **special_tokens}
    [text], _ = render_jinja_template([messages], chat_template=template, **options)
    most = MOST_ADDED + MOST_TIMES * sum(len(message["content"]) for message in messages)
    if len(text) > most:
        raise ValueError(f"it writes {len(text)} characters, more than {most}")
    return text
