"""Files of a model as llama.cpp's own code makes them from FP16, and the weights of any GGUF, decoded.

One type for all linears where its blocks divide their rows (else Q4_0 for two bits, Q5_0 and Q8_0 for Q4_K and Q6_K, as
llama-quantize does). Q4_K_M has Q6_K where llama-quantize has it. Q2_K is of one type, so smaller than the mixture of
that name. The embedding is Q8_0 everywhere. Needs the extra in requirements-export.txt.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch

from bench.llama_cpp import library
from upq.artifact import Artifact
from upq.export import PackedModel, format_named
from upq.export.gguf_architecture import add_architecture, add_general, architecture_of, config_of
from upq.export.gguf_kinds import KINDS, Kind
from upq.export.gguf_read import Reader
from upq.export.gguf_tensors import Entry, entries_of
from upq.export.gguf_vocabulary import vocabulary_of
from upq.models import LoadedModel, tokenizer_files

#: The types that llama.cpp's files are made of, those that we do not write ourselves among them.
TYPES = {kind.name: kind for kind in KINDS.values()} | {
    "Q4_K": Kind("Q4_K", 12, 14, 256, 144),
    "Q6_K": Kind("Q6_K", 14, 18, 256, 210),
}
#: What takes the place of a type whose blocks do not divide the rows.
FALLBACKS = {"Q2_0": "Q4_0", "Q2_K": "Q4_0", "Q4_K": "Q5_0", "Q6_K": "Q8_0"}
#: Mean squares of the inputs of linears, by the names of their tensors in a GGUF.
Importance = Mapping[str, numpy.ndarray]


class AnyReader(Reader):
    """Reads the types of llama.cpp's files as well."""

    kinds = {kind.number: kind for kind in TYPES.values()}  # noqa: RUF012 - as its parent has it


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


def export_of(model: PackedModel, folder: Path) -> Path:
    """The GGUF of a model, without the card that an export has."""
    folder.mkdir(exist_ok=True)
    format_named("gguf").write(model, folder, lambda _: None)
    [path] = folder.glob("*.gguf")
    return path


def quantized(
    model: PackedModel, name: str, path: Path, importance: Importance | None = None
) -> Path:
    """The file that llama.cpp's own code makes of a plain model. name: Q4_K_M, or one of TYPES."""
    config = config_of(model)
    entries = entries_of(model, config)
    rows = next(entry.shape[0] for entry in entries if entry.name == "token_embd.weight")
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture_of(config)])
    add_general(writer, model, int(gguf.LlamaFileType.GUESSED))
    add_architecture(writer, config, rows)
    vocabulary_of(model, rows).add_to(writer)
    kinds = {entry.name: TYPES[type_of(entry, name, config.num_hidden_layers)] for entry in entries}
    for entry in entries:
        kind, number = kinds[entry.name], kinds[entry.name].number
        size, dtype = kind.size_bytes(entry.shape), numpy.dtype(numpy.float32)
        writer.add_tensor_info(entry.name, entry.shape, dtype, size, number)  # pyright: ignore[reportArgumentType]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        content = entry.content()
        assert isinstance(content, torch.Tensor)
        weights = (importance or {}).get(entry.name)
        writer.write_tensor_data(rounded(content.float().numpy(), kinds[entry.name], weights))
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
    return kind if entry.shape[1] % TYPES[kind].block == 0 else FALLBACKS[kind]


def has_more_bits(block: int, blocks: int) -> bool:
    """Whether llama-quantize's Q4_K_M gives a block's values and its last layer more bits."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def rounded(
    values: numpy.ndarray, kind: Kind, importance: numpy.ndarray | None = None
) -> numpy.ndarray:
    """What llama.cpp's code makes of float32 values. importance: (columns,) of a row's values, or None."""
    values = numpy.ascontiguousarray(values)
    if kind.name == "F32":
        return values
    data = numpy.empty(kind.size_bytes(values.shape), numpy.uint8)
    rows, columns = (ctypes.c_int64(width) for width in values.shape)
    places = (ctypes.c_void_p(array.ctypes.data) for array in (values, data))
    squares = None if importance is None else numpy.ascontiguousarray(importance, numpy.float32)
    matrix = None if squares is None else ctypes.c_void_p(squares.ctypes.data)
    quantize = library().ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    made = quantize(kind.number, *places, ctypes.c_int64(0), rows, columns, matrix)
    assert made == data.nbytes, (
        f"llama.cpp made {made} bytes of {kind.name}, expected {data.nbytes}"
    )
    return data


@torch.no_grad()
def importance_of(loaded: LoadedModel, texts: Iterable[tuple[int, ...]]) -> Importance:
    """What llama-imatrix counts: the mean square of each input of each linear over the tokens of these texts."""
    config = loaded.model.config
    names = gguf.get_tensor_name_map(architecture_of(config), config.num_hidden_layers)
    sums: dict[str, torch.Tensor] = {}
    with _squares_of(loaded.model, names, sums):
        tokens = 0
        for ids in texts:
            loaded.model.model(torch.tensor([ids]), use_cache=False)
            tokens += len(ids)
    return {name: (total / tokens).float().numpy() for name, total in sums.items()}


@contextmanager
def _squares_of(
    model: Any, names: gguf.TensorNameMap, sums: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Add up the squares of what enters the linears of the blocks while the block lasts."""

    def hook(name: str) -> Any:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            squares = inputs[0].double().square().flatten(0, -2).sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    handles = []
    for module_name, module in model.named_modules():
        name = names.get_name(f"{module_name}.weight", try_suffixes=(".weight",))
        if isinstance(module, torch.nn.Linear) and name and name.startswith("blk."):
            handles.append(module.register_forward_pre_hook(hook(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def read_into(model: Any, path: Path, plain: PackedModel) -> None:
    """Overwrite a transformers model's parameters with the decoded weights of a GGUF of the same model."""
    stored = AnyReader(path).stored
    parameters = dict(model.named_parameters())
    for parameter, entry in zip(plain.plain, entries_of(plain, config_of(plain)), strict=False):
        values = torch.from_numpy(numpy.array(stored[entry.name].decoded(), numpy.float32))
        if entry.order is not None:
            inverse = torch.argsort(entry.order)
            values = values[inverse]
        parameters[parameter].copy_(values.view_as(parameters[parameter]))
