"""A conversation in the terminal with several precisions at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress

from upq.decode import Decoding, Piece
from upq.jobs import Models, Served
from upq.store import Store

#: Why an answer ended, where that has to be said.
_ENDS = {"length": ", stopped at the token limit"}


def chat(store: Store, run_id: int, precisions: list[str], system: str, decoding: Decoding) -> None:
    """A conversation on the terminal: every line goes to each precision, an empty line ends it.

    system: empty for the model's own default.
    """
    run = store.run(run_id)
    models = Models(store)
    start = [{"role": "system", "content": system}] if system.strip() else []
    histories = {precision: list(start) for precision in precisions}
    for line in _typed_lines():
        for precision, history in histories.items():
            served = models.get(run_id, precision, run.model)
            history.append({"role": "user", "content": line})
            sys.stdout.write(f"{precision}: ")
            last = _told(served, history, decoding)
            history.append({"role": "assistant", "content": last.text})
            sys.stdout.write(
                f"  [{last.tokens} tokens, first after {last.first_token_s:.2f} s,"
                f" then {last.tokens_per_s:.1f} tokens/s{_ENDS.get(last.finish, '')}]\n"
            )


def _told(served: Served, history: list[dict[str, str]], decoding: Decoding) -> Piece:
    """Write an answer as it comes, and return its last piece."""
    text, last = "", None
    for last in served.answer(history, decoding):
        sys.stdout.write(last.text[len(text) :])
        sys.stdout.flush()
        text = last.text
    assert last is not None, "an answer has a last piece"
    return last


def _typed_lines() -> Iterator[str]:
    with suppress(EOFError):
        while line := input("\n> ").strip():
            yield line
