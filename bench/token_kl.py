"""How long FP16, INT4 and INT2 take to read one answer and compare it token by token, as the Token KL view does.

python -m bench.token_kl RUN --data-dir FOLDER

The answer is FP16's own, greedy. First as in a chat, where each model has just answered and holds the conversation and
its own answer; then where none holds anything, and what the engines alone take of that. Wall time and processor time of
all threads, medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from tabulate import tabulate

from upq.compare import Answer, compare
from upq.config import PRECISIONS
from upq.decode import Decoding, LastReader, Reader, answers
from upq.jobs import Models, Served
from upq.models import chat_ids
from upq.store import data_dir, open_store

CONVERSATION = [{"role": "user", "content": "Tell me in detail how bread is made."}]


def main() -> None:
    """Read the flags, time, and print a table."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("run", type=int)
    flags.add_argument("--data-dir")
    flags.add_argument("--tokens", type=int, default=256)
    flags.add_argument("--rounds", type=int, default=7)
    options = flags.parse_args()
    store = open_store(data_dir(options.data_dir))
    models, run = Models(store), store.run(options.run)
    served = {name: models.get(run.id, name, run.model) for name in PRECISIONS}
    reference = served["FP16"]
    prompt = chat_ids(reference.tokenizer, CONVERSATION)
    written = {name: _written(one, prompt, options.tokens) for name, one in served.items()}
    ids = written["FP16"]
    answer = Answer(reference.tokenizer.decode(ids), ended=False, ids=ids)

    def have_answered() -> None:
        for name, one in served.items():
            with one.reader() as reader:
                reader.logits([*prompt, *written[name][:-1]])

    def whole() -> None:
        compare(served, CONVERSATION, answer, Decoding())

    def holding_nothing() -> None:
        new = {name: replace(one, last=LastReader(one.engine)) for name, one in served.items()}
        compare(new, CONVERSATION, answer, Decoding())

    def engines() -> None:
        for one in served.values():
            Reader(one.engine).logits([*prompt, *ids[:-1]], len(ids))

    print(f"{len(prompt)} tokens of prompt, {len(ids)} of answer; {reference.backend}")
    rows = [
        {"what": "behind the answers", **_timed(whole, options.rounds, have_answered)},
        {"what": "holding nothing", **_timed(holding_nothing, options.rounds)},
        {"what": "engines alone, holding nothing", **_timed(engines, options.rounds)},
    ]
    print(tabulate(rows, headers="keys", floatfmt=".2f"))


def _written(one: Served, prompt: list[int], tokens: int) -> list[int]:
    """The answer of a model, whatever would end it."""
    [(_, ids)] = answers(
        one.engine, {0: prompt}, set(), max_new_tokens=tokens, check=lambda _: None
    )
    return ids


def _timed(
    work: Callable[[], None], rounds: int, before: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Medians and the least wall time of some rounds, after one that warms up, seconds. before: not timed."""
    wall, processor = [], []
    for at in range(rounds + 1):
        before()
        started, used = time.monotonic(), time.process_time()
        work()
        if at:
            wall.append(time.monotonic() - started)
            processor.append(time.process_time() - used)
    return {
        "wall s": statistics.median(wall),
        "least wall s": min(wall),
        "processor s": statistics.median(processor),
    }


if __name__ == "__main__":
    main()
