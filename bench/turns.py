"""How long the first token of each turn of a conversation takes, read anew and where the model holds what was said.

python -m bench.turns RUN --data-dir FOLDER

Greedy answers of the same length, of each precision to its own conversation. Each turn is asked twice, first of a
reader that holds nothing and then of the model as the chat asks it; both write the same tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from bench import report
from upq.config import PRECISIONS
from upq.decode import Decoding, Reader, stream
from upq.jobs import Models, Served
from upq.store import data_dir, open_store

QUESTIONS = (
    "Explain how rain forms, step by step.",
    "Which of these steps takes longest, and why?",
    "Tell it again as a story for a child of six.",
    "What would happen if the sea were frozen?",
    "Give me three questions to test what I have understood.",
)


def main() -> None:
    """Hold the conversations and print a table."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("run", type=int)
    flags.add_argument("--data-dir")
    flags.add_argument("--tokens", type=int, default=160)
    options = flags.parse_args()
    store = open_store(data_dir(options.data_dir))
    models, run = Models(store), store.run(options.run)
    decoding = Decoding(max_new_tokens=options.tokens)
    rows: list[dict[str, Any]] = []
    for name in PRECISIONS:
        served = models.get(run.id, name, run.model)
        rows += [{"model": name, **turn} for turn in conversation(served, decoding)]
    report.show(rows)


def conversation(served: Served, decoding: Decoding) -> Iterator[dict[str, Any]]:
    """Of each turn the tokens of its prompt, and the seconds until its first token in both ways."""
    list(stream(Reader(served.engine), served.tokenizer, _asked([], "Hi"), decoding, lambda: True))
    said: list[dict[str, str]] = []
    for turn, question in enumerate(QUESTIONS, 1):
        asked = _asked(said, question)
        anew = stream(Reader(served.engine), served.tokenizer, asked, decoding, lambda: False)
        *_, first = anew
        *_, second = served.answer(asked, decoding)
        if first.ids != second.ids:
            raise SystemExit(f"Turn {turn} of {served.label} has another answer where it was held.")
        yield {
            "turn": turn,
            "tokens of prompt": second.prompt_tokens,
            "read anew, s": round(first.first_token_s, 3),
            "held, s": round(second.first_token_s, 3),
        }
        said = [*asked, {"role": "assistant", "content": second.text}]


def _asked(said: list[dict[str, str]], question: str) -> list[dict[str, str]]:
    return [*said, {"role": "user", "content": question}]


if __name__ == "__main__":
    main()
