"""A conversation in the terminal with several precisions at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress

from upq.decode import Decoding
from upq.jobs import Models
from upq.store import Store


def chat(store: Store, run_id: int, precisions: list[str]) -> None:
    """A conversation on the terminal: every line goes to each precision, an empty line ends it."""
    run = store.run(run_id)
    served = Models(store)
    histories: dict[str, list[dict[str, str]]] = {one: [] for one in precisions}
    for line in _typed_lines():
        for precision, history in histories.items():
            one = served.get(run_id, precision, run.model)
            history.append({"role": "user", "content": line})
            text = ""
            sys.stdout.write(f"{precision}: ")
            for piece in one.answer(history, Decoding()):
                sys.stdout.write(piece.text[len(text) :])
                sys.stdout.flush()
                text = piece.text
            sys.stdout.write(f"  [{piece.tokens_per_s:.1f} tokens/s]\n")
            history.append({"role": "assistant", "content": text})


def _typed_lines() -> Iterator[str]:
    with suppress(EOFError):
        while line := input("\n> ").strip():
            yield line
