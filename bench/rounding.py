"""What llama.cpp's 8-bit activations cost a run: its GGUF against the same weights in float32, both in llama.cpp.

    python -m bench.rounding RUN --precision INT2 --data-dir DIR --json build/bench/rounding.json

Both files are made from the run. KL and the share of equal most likely tokens are means over the tokens of the answers
that the float32 file gives to held-out questions; with the answers' first tokens apart, and against our engine in C at
those. Needs the extra in requirements-export.txt.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.agreement import ANSWER_TOKENS, Agreement, agreement, asked
from bench.llama_cpp import LlamaCpp
from bench.llama_files import export_of
from upq.artifact import assembly
from upq.decode import NativeEngine
from upq.export import PackedModel
from upq.jobs.exports import model_of
from upq.store import data_dir, open_store

TWIN, ENGINE = "float32 twin, tokens of answers", "our engine in C, first tokens"


def main() -> None:
    """Make both files, compare them, print three lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=int)
    parser.add_argument("--precision", default="INT2")
    parser.add_argument("--data-dir")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    model = model_of(open_store(data_dir(given.data_dir)), given.run, given.precision)
    figures = compared(model, given.prompts, ANSWER_TOKENS, given.threads)
    for name, found in figures.items():
        print(f"{name:42} KL {found.kl:.4f}, {found.same_top:.1%} of {found.places} places alike")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        values = {name: asdict(found) for name, found in figures.items()}
        given.json.write_text(json.dumps(values, indent=1), encoding="utf-8")


def compared(model: PackedModel, prompts: int, tokens: int, threads: int) -> dict[str, Agreement]:
    """What is compared -> how far the model's file agrees with it inside llama.cpp. tokens: of an answer, at most."""
    assembled, tokenizer = assembly.assemble(model.artifact)
    engine = NativeEngine(assembled)
    questions = asked(tokenizer, prompts)
    vocabulary = model.config["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        plain = export_of(unpacked(model), Path(folder, "plain"))
        twin = LlamaCpp(plain, threads)
        places = [ids for question in questions for ids in twin.answer_places(question, tokens)]
        first = [places.index(question) for question in questions]
        wanted = [twin.log_probabilities(ids, vocabulary) for ids in places]
        del twin
        packed = export_of(model, Path(folder, "packed"))
        file = LlamaCpp(packed, threads)
        found = [file.log_probabilities(ids, vocabulary) for ids in places]
    ours = [engine.session(1, len(ids) + 1).prefill(0, ids).log_softmax(-1) for ids in questions]
    starts = [found[place] for place in first]
    return {
        TWIN: agreement(wanted, found),
        "float32 twin, first tokens": agreement([wanted[place] for place in first], starts),
        ENGINE: agreement(ours, starts),
    }


def unpacked(model: PackedModel) -> PackedModel:
    """The same weights as plain float32 parameters."""
    tensors = {f"{name}.weight": model.weight(name) for name in model.layers}
    tensors |= {name: tensor.float() for name, tensor in model.plain.items()}
    artifact = dataclasses.replace(model.artifact, tensors=tensors)
    return dataclasses.replace(model, artifact=artifact, layers={})


if __name__ == "__main__":
    main()
