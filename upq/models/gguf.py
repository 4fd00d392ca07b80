"""Load a GGUF file as an ordinary float model.

The weights are dequantised and rounded to float16: that rounding is the FP16 reference. The
surprise: transformers parses the header three times and rebuilds its name table for every module,
which takes 18 s for a model of 135M; sharing one parse and one table takes a few seconds.
"""

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    modeling_gguf_pytorch_utils,
)

from upq.errors import UserError
from upq.models.gguf_header import read_header
from upq.models.skeleton import vet_amount

_PATCHING = threading.Lock()


class _Reader(gguf.GGUFReader):
    """GGUFReader over a plain array: slicing a memmap costs ten times as much."""

    def _get(self, *arguments: Any, **options: Any) -> Any:
        if isinstance(self.data, numpy.memmap):
            self.data = numpy.asarray(self.data)
        return super()._get(*arguments, **options)


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Parse a GGUF header. Raises UserError `corrupt_file` when it is cut short, damaged or not GGUF."""
    read_header(path)
    try:
        return _Reader(path)
    except (ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
        raise UserError(
            "corrupt_file",
            f"{path.name} is not a complete GGUF file: {error}.",
            "Download it again.",
        ) from error


def weight_type(reader: gguf.GGUFReader) -> str:
    """The most common storage type among the weight matrices, such as "Q4_1"."""
    types = Counter(entry.tensor_type.name for entry in reader.tensors if len(entry.shape) == 2)
    return types.most_common(1)[0][0] if types else "F32"


def load_gguf(path: Path, reader: gguf.GGUFReader) -> tuple[Any, Any, dict[str, Any]]:
    """Model (float32 holding float16 values), tokenizer and the report of keys that did not match.

    Raises UserError `unsupported_arch` when transformers cannot read this kind of GGUF, `weights_mismatch` where the
    metadata asks for more than the tensors, `missing_tokenizer` where it makes no tokenizer.
    """
    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    options["trust_remote_code"] = False
    if hasattr(transformers, "GgufConfig"):  # else dequantising is all that transformers can do
        weights: dict[str, Any] = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    else:
        weights = {}
    try:
        with _one_parse(path, reader):
            config = AutoConfig.from_pretrained(path.parent, **options)
            vet_amount(config, sum(int(entry.n_elements) for entry in reader.tensors), path.name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **weights,
                **options,
            )
            tokenizer = _tokenizer(path, options)
    except UserError:
        raise
    except Exception as error:  # whatever the models of transformers raise
        raise UserError(
            "unsupported_arch",
            f"{path.name} holds a model that cannot be read from GGUF: {error or type(error).__name__}",
            "Use the same model's safetensors folder or hub id.",
        ) from error
    model, report = loaded
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model, tokenizer, report


def _tokenizer(path: Path, options: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path.parent, **options)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise UserError(
            "missing_tokenizer",
            f"The tokenizer in {path.name} cannot be read: {error or type(error).__name__}",
            "Use the same model's safetensors folder or hub id.",
        ) from error


@contextmanager
def _one_parse(path: Path, reader: gguf.GGUFReader) -> Iterator[None]:
    """Let transformers share a parsed header and one name table, without a progress bar."""
    with _PATCHING, ExitStack() as stack:
        original = gguf.GGUFReader
        name_map = functools.lru_cache(maxsize=None)(gguf.get_tensor_name_map)

        def shared(other: Any, *arguments: Any, **options: Any) -> gguf.GGUFReader:
            return reader if Path(other) == path else original(other, *arguments, **options)

        stack.enter_context(_replaced(gguf, "GGUFReader", shared))
        stack.enter_context(_replaced(gguf, "get_tensor_name_map", name_map))
        stack.enter_context(
            _replaced(modeling_gguf_pytorch_utils, "tqdm", lambda items, **_options: items)
        )
        yield


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Set a module attribute for a while; an absent one stays absent."""
    if not hasattr(module, name):
        yield
        return
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
