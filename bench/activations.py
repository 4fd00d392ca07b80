"""What rounded activations cost on a CPU: a run's models with them against FP16 and against themselves without, token
by token.

python -m bench.activations --data-dir DIR --run 1

The tokens are FP16's own greedy answers to the held-out prompts, teacher-forced, as in every other fidelity figure.
Rows "of float32 activations" read the model's own greedy answers: "agreed" is then where rounding makes it write
another token for the first time. "float16" is the noise to compare that with: the decoded weights in transformers.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch

from bench import report
from upq.artifact import Artifact, assembly
from upq.config import RunConfig
from upq.data import read_rows
from upq.decode import Engine, NativeEngine, TransformersEngine, answers, end_ids
from upq.export import opened
from upq.export.dense import tensor_names
from upq.models import LoadedModel, chat_ids, loading
from upq.store import data_dir, open_store


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder of the runs; else UPQ_HOME")
    parser.add_argument("--run", type=int, required=True)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    store = open_store(data_dir(options.data_dir))
    config = RunConfig.from_values(store.run(options.run).config)
    loaded = loading.load(config.model.source, revision=config.model.revision)
    teacher = NativeEngine(loaded.model)
    texts = held_out(teacher, loaded.tokenizer, config)
    rows: list[dict[str, Any]] = []
    for row in store.artifacts(options.run):
        artifact = store.load_artifact(options.run, row.precision)
        model, _ = assembly.assemble(artifact)
        exact, rounded = (NativeEngine(model, exact=exact) for exact in (True, False))
        written = held_out(exact, loaded.tokenizer, config)
        for of, by, first, second, read in (
            ("FP16", "float32 activations", teacher, exact, texts),
            ("FP16", "rounded activations", teacher, rounded, texts),
            ("float32 activations", "rounded activations", exact, rounded, written),
            ("float32 activations", "float16", exact, in_float16(loaded, artifact), written),
        ):
            found = compare(first, second, read)
            rows.append({"precision": row.precision, "of": of, "by": by, **found})
    report.show(rows)
    report.save(options.json, rows)


def held_out(writer: Engine, tokenizer: Any, config: RunConfig) -> list[tuple[list[int], int]]:
    """(token ids, where the answer begins) of each held-out prompt with an engine's greedy answer."""
    _, questions = read_rows(config.data, config.seed)
    prompts = {at: chat_ids(tokenizer, list(one.messages)) for at, one in enumerate(questions)}
    written = answers(
        writer,
        prompts,
        end_ids(writer, tokenizer),
        max_new_tokens=config.measure.answer_tokens,
        check=lambda _: None,
    )
    return [(prompts[at] + ids, len(prompts[at])) for at, ids in written]


def in_float16(loaded: LoadedModel, artifact: Artifact) -> Engine:
    """transformers' own forward pass over an artifact's decoded weights, all of it in float16."""
    packed = opened(artifact, artifact.precision)
    plain = packed.plain
    tensors = {
        name: plain[name] if name in plain else packed.weight(name.removesuffix(".weight"))
        for name in tensor_names(packed)
    }
    model = copy.deepcopy(loaded.model)
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"the model has no {unknown[0]}")
    return TransformersEngine(model.half())


@torch.inference_mode()
def compare(first: Engine, second: Engine, texts: list[tuple[list[int], int]]) -> dict[str, Any]:
    """Mean KL(first || second) in nats over all answer tokens, its 95th percentile, the share of equal most likely
    tokens, and the median of an answer's tokens before the first that differs.
    """
    divergence, same, agreed = [], [], []
    for ids, start in texts:
        theirs, ours = (distributions(one, ids, start) for one in (first, second))
        divergence.append((theirs.exp() * (theirs - ours)).sum(-1))
        same.append((theirs.argmax(-1) == ours.argmax(-1)).float())
        agreed.append(same[-1].cumprod(0).sum())
    counted = torch.cat(divergence)
    return {
        "kl": counted.mean().item(),
        "kl_p95": counted.quantile(0.95).item(),
        "top1": torch.cat(same).mean().item(),
        "agreed": torch.stack(agreed).quantile(0.5).item(),
        "tokens": len(counted),
    }


def distributions(engine: Engine, ids: list[int], start: int) -> torch.Tensor:
    """Log-probabilities (answer tokens, vocabulary) of each answer token's place."""
    logits = engine.session(1, len(ids)).extend(0, ids[:-1], len(ids) - start)
    return logits.log_softmax(-1)


if __name__ == "__main__":
    main()
