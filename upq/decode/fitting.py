"""A conversation that is longer than its model reads loses its first turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upq.models import chat_ids

#: The part of what a model reads that is kept free for the answer, if it may be so long.
ANSWER_SHARE = 4


def fitted(
    tokenizer: Any, messages: Sequence[dict[str, str]], limit: int, longest_answer: int
) -> tuple[list[int], int]:
    """(token ids of the prompt, turns at its beginning that were left out), such that an answer has room in `limit`.

    A turn is a question and its answer. The system prompt and the last question are always there, however long.
    """
    room = limit - min(longest_answer, limit // ANSWER_SHARE)
    asked = [at for at, message in enumerate(messages) if message["role"] == "user"]

    def without(turns: int) -> list[int]:
        return chat_ids(tokenizer, [*messages[: asked[0]], *messages[asked[turns] :]])

    ids = chat_ids(tokenizer, list(messages))
    if len(ids) <= room or len(asked) <= 1:
        return ids, 0
    # Turns that have to go; without `most` the last question is alone.
    fewest, most = 1, len(asked) - 1
    while fewest < most:
        middle = (fewest + most) // 2
        if len(without(middle)) <= room:
            most = middle
        else:
            fewest = middle + 1
    return without(most), most
