"""The commands in which models answer: chat, compare and serve."""

from __future__ import annotations

from typing import Any

from upq.cli.commands import named_precisions, store_of, write_json
from upq.errors import UserError


def chat(options: Any) -> None:
    """A chat in the terminal with several precisions at once."""
    store, precisions = store_of(options), named_precisions(options.precision)
    store.run(options.run)

    from upq.cli import chat as terminal
    from upq.decode import Decoding

    decoding = Decoding(
        max_new_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        repetition_penalty=options.repetition_penalty,
    )
    terminal.chat(store, options.run, precisions, options.system, decoding)


def serve(options: Any) -> None:
    """Answer other programs until Ctrl-C."""
    store, precisions = store_of(options), named_precisions(options.precision)
    store.run(options.run)

    from upq.cli import serving

    serving.serve(store, options.run, precisions, options)


def compare(options: Any) -> None:
    """Let the models of a run read one answer, token by token."""
    precisions = named_precisions(options.precision)
    store = store_of(options)
    run = store.run(options.run)

    from upq.cli import compare as terminal
    from upq.decode import Decoding
    from upq.jobs import Models
    from upq.jobs.compared import Request, compared

    if not options.prompt.strip():
        raise UserError("empty_message", "The message is empty.", "Write something to answer.")
    decoding = Decoding(
        max_new_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
    request = Request(
        message=options.prompt,
        system=options.system,
        decoding=decoding,
        answer_of=options.answer_of,
        precisions=precisions,
    )
    found = compared(Models(store), run, request)
    print(terminal.page(found))
    write_json(options.json, {"run": run.id, **found.to_json()})
