"""One model at the same size twice: made by llama.cpp from FP16, and by us; KL and speed, measured inside llama.cpp.

    python -m bench.same_size --model bundled --ours RUN-Q4_0.gguf RUN-Q2_0.gguf --json build/bench/same_size.json

llama.cpp's files are made by its own code without an importance matrix, one type for all linears where its blocks
divide their rows (else Q4_0 for two bits, Q5_0 and Q8_0 for Q4_K and Q6_K, as llama-quantize does). Q4_K_M has Q6_K
where llama-quantize has it. Q2_K is of one type, so smaller than the mixture of that name. The embedding is Q8_0
everywhere. KL is of the tokens of answers that the FP16 file gives itself. Needs the extra in requirements-export.txt.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
import torch.nn.functional as F

from bench.llama_cpp import LlamaCpp, library
from upq.artifact import Artifact
from upq.export import PackedModel, format_named
from upq.export.gguf_architecture import add_architecture, add_general, architecture_of, config_of
from upq.export.gguf_tensors import Entry, entries_of
from upq.export.gguf_vocabulary import vocabulary_of
from upq.files import RESOURCES
from upq.models import LoadedModel, chat_ids, load, tokenizer_files

#: Type -> (its number, weights in a block, bytes of a block), as ggml has them.
TYPES = {
    "F32": (0, 1, 4),
    "Q4_0": (2, 32, 18),
    "Q5_0": (6, 32, 22),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q4_K": (12, 256, 144),
    "Q6_K": (14, 256, 210),
    "Q2_0": (42, 64, 18),
}
#: What takes the place of a type whose blocks do not divide the rows.
FALLBACKS = {"Q2_0": "Q4_0", "Q2_K": "Q4_0", "Q4_K": "Q5_0", "Q6_K": "Q8_0"}
THEIRS = ("Q4_0", "Q4_K_M", "Q2_K", "Q2_0")
#: Tokens of an answer at which distributions are compared.
ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Row:
    """One file. kl: mean over tokens, in nats, against the FP16 file; tokens_per_s: of writing an answer."""

    file: str
    size_bytes: int
    kl: float
    same_top: float
    tokens_per_s: float


def main() -> None:
    """Make the files, measure all, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--ours", type=Path, nargs="*", default=[], help="GGUF files of our runs")
    parser.add_argument("--theirs", nargs="*", choices=THEIRS, default=THEIRS)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here")
    given = parser.parse_args()
    loaded = load(given.model)
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_model(loaded)
        [reference] = export_of(plain, Path(folder, "fp16"))
        theirs = [
            quantized(plain, name, Path(folder, f"llama.cpp-{name}.gguf")) for name in given.theirs
        ]
        questions = [chat_ids(loaded.tokenizer, message) for message in messages(given.prompts)]
        vocabulary = config_of(plain).vocab_size
        rows = measured(reference, [*theirs, *given.ours], questions, vocabulary, given.threads)
    for row in rows:
        print(
            f"{row.file:40} {row.size_bytes / 1e6:8.1f} MB  KL {row.kl:.4f}  {row.tokens_per_s:.1f} tokens/s"
        )
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


def messages(count: int) -> list[list[dict[str, str]]]:
    """Held-out questions, each a conversation."""
    lines = (RESOURCES / "prompts_held_out.jsonl").read_text(encoding="utf-8").splitlines()
    return [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines[:count]]


def plain_model(loaded: LoadedModel) -> PackedModel:
    """A model without packed layers, to be exported as it is, in 16 bits."""
    files = tokenizer_files(loaded.tokenizer)
    files["config.json"] = json.dumps(loaded.model.config.to_dict(), default=str).encode()
    generation: Any = loaded.model.generation_config
    files["generation_config.json"] = json.dumps(generation.to_dict(), default=str).encode()
    tensors = {name: value.detach().half() for name, value in loaded.model.named_parameters()}
    base = {
        "source": loaded.info.source,
        "name": loaded.info.name,
        "revision": loaded.info.revision,
    }
    return PackedModel(loaded.info.name, Artifact("FP16", {"base_model": base}, tensors, files), {})


def export_of(model: PackedModel, folder: Path) -> list[Path]:
    """The GGUF of a model, without the card that an export has."""
    folder.mkdir(exist_ok=True)
    format_named("gguf").write(model, folder, lambda _: None)
    return list(folder.glob("*.gguf"))


def quantized(model: PackedModel, name: str, path: Path) -> Path:
    """The file that llama.cpp's own code makes of a plain model. name: one of THEIRS."""
    config = config_of(model)
    entries = entries_of(model, config)
    rows = next(entry.shape[0] for entry in entries if entry.name == "token_embd.weight")
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture_of(config)])
    add_general(writer, model, int(gguf.LlamaFileType.GUESSED))
    add_architecture(writer, config, rows)
    vocabulary_of(model, rows).add_to(writer)
    kinds = {entry.name: type_of(entry, name, config.num_hidden_layers) for entry in entries}
    for entry in entries:
        number: Any = TYPES[kinds[entry.name]][0]
        size = bytes_of(entry.shape, kinds[entry.name])
        writer.add_tensor_info(entry.name, entry.shape, numpy.dtype(numpy.float32), size, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        content = entry.content()
        assert isinstance(content, torch.Tensor)
        writer.write_tensor_data(rounded(content.float().numpy(), kinds[entry.name]))
    writer.close()
    return path


def type_of(entry: Entry, name: str, blocks: int) -> str:
    """The type of a tensor in llama.cpp's file of that name."""
    if len(entry.shape) == 1:
        return "F32"
    if not entry.name.startswith("blk."):
        kind = "Q8_0"
    elif name == "Q4_K_M":
        often = entry.name.endswith(("attn_v.weight", "ffn_down.weight"))
        kind = "Q6_K" if often and has_more_bits(int(entry.name.split(".")[1]), blocks) else "Q4_K"
    else:
        kind = name
    return kind if entry.shape[1] % TYPES[kind][1] == 0 else FALLBACKS[kind]


def has_more_bits(block: int, blocks: int) -> bool:
    """Whether llama-quantize's Q4_K_M gives a block's values and its last layer more bits."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def bytes_of(shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor in a type."""
    _, block, size = TYPES[kind]
    return int(numpy.prod(shape)) // block * size


def rounded(values: numpy.ndarray, kind: str) -> numpy.ndarray:
    """What llama.cpp's code makes of float32 values."""
    values = numpy.ascontiguousarray(values)
    if kind == "F32":
        return values
    data = numpy.empty(bytes_of(values.shape, kind), numpy.uint8)
    rows, columns = (ctypes.c_int64(width) for width in values.shape)
    places = (ctypes.c_void_p(array.ctypes.data) for array in (values, data))
    quantize = library().ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    made = quantize(TYPES[kind][0], *places, ctypes.c_int64(0), rows, columns, None)
    assert made == data.nbytes, f"llama.cpp made {made} bytes of {kind}, expected {data.nbytes}"
    return data


def measured(
    reference: Path,
    files: Sequence[Path],
    questions: Sequence[list[int]],
    vocabulary: int,
    threads: int,
) -> list[Row]:
    """A row for the reference and for each file, loaded one after the other."""
    fp16 = LlamaCpp(reference, threads)
    places = [place for ids in questions for place in fp16.answer_places(ids, ANSWER_TOKENS)]
    wanted = [fp16.log_probabilities(ids, vocabulary) for ids in places]
    rows = [
        Row(reference.name, reference.stat().st_size, 0.0, 1.0, fp16.tokens_per_s(questions[0]))
    ]
    del fp16
    for path in files:
        model = LlamaCpp(path, threads)
        found = [model.log_probabilities(ids, vocabulary) for ids in places]
        pairs = list(zip(wanted, found, strict=True))
        kl = sum(float(F.kl_div(b, a, log_target=True, reduction="sum")) for a, b in pairs)
        same = sum(int(a.argmax() == b.argmax()) for a, b in pairs)
        speed = model.tokens_per_s(questions[0])
        rows.append(Row(path.name, path.stat().st_size, kl / len(pairs), same / len(pairs), speed))
    return rows


if __name__ == "__main__":
    main()
