"""How long FP16, INT4 and INT2 take to read one answer and compare it token by token, as the Token KL view does.

python -m bench.token_kl RUN --data-dir FOLDER

The answer is FP16's own, greedy, written once and always of the same length. Wall time and processor time of all
threads, medians of the rounds; beside them what the engines alone take, so that the rest is the comparison.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from tabulate import tabulate

from upq.compare import Answer, compare
from upq.config import PRECISIONS
from upq.decode import Decoding, Reader, answers
from upq.jobs import Models
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
    writing = answers(
        reference.engine, {0: prompt}, set(), max_new_tokens=options.tokens, check=lambda _: None
    )
    [(_, ids)] = writing
    answer = Answer(reference.tokenizer.decode(ids), ended=False)

    def whole() -> None:
        compare(served, CONVERSATION, answer, Decoding())

    def engines() -> None:
        for one in served.values():
            Reader(one.engine).logits([*prompt, *ids], len(ids))

    print(f"{len(prompt)} tokens of prompt, {len(ids)} of answer; {reference.backend}")
    rows = [
        {"what": "read and compare", **_timed(whole, options.rounds)},
        {"what": "engines alone", **_timed(engines, options.rounds)},
    ]
    print(tabulate(rows, headers="keys", floatfmt=".2f"))


def _timed(work: Callable[[], None], rounds: int) -> dict[str, float]:
    """Medians and the least wall time of some rounds, after one that warms up, seconds."""
    work()
    wall, processor = [], []
    for _ in range(rounds):
        started, used = time.monotonic(), time.process_time()
        work()
        wall.append(time.monotonic() - started)
        processor.append(time.process_time() - used)
    return {
        "wall s": statistics.median(wall),
        "least wall s": min(wall),
        "processor s": statistics.median(processor),
    }


if __name__ == "__main__":
    main()
