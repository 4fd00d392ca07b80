"""What a model's folder must hold, looked at before any weight is read: config, safetensors headers, tokenizer."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from upq.errors import UserError
from upq.files import file_problem
from upq.models.source import WEIGHTS, WEIGHTS_INDEX

CONFIG_LIMIT_BYTES = 1_000_000
SHOWN = 5  # files or tensor names listed in a message
#: Types of safetensors that a model is loaded in as they are.
SIXTEEN_BITS = {"F16": torch.float16, "BF16": torch.bfloat16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
#: Files that transformers may read beside the weights, 256 MiB each at most. The largest tokenizers have 35 MB.
TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.spm", "*.tiktoken", "*.txt")
MOST_TEXT_BYTES = 1 << 28
#: Bytes of a file of weights, 2 TiB.
MOST_WEIGHT_BYTES = 1 << 41
#: Names in a config that count what transformers makes one by one, and the largest such count: seconds of work.
PARTS = re.compile(r"(layers?|blocks?|experts?|labels)$")
MOST_PARTS = 1024
#: The largest whole number of any other name.
LARGEST = 1 << 40
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def vet_files(folder: Path, patterns: Iterable[str] = TEXT_FILES) -> None:
    """Refuse a folder in which a file that loading may read is a device, a pipe, empty or of an absurd size.

    patterns: names of such files. Raises UserError `corrupt_file`.
    """
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        if not path.is_dir() and (problem := file_problem(path, MOST_TEXT_BYTES)):
            raise _corrupt(path.name, f"it {problem}")


def vet_config(folder: Path, name: str) -> dict[str, Any]:
    """The parsed config.json of a causal language model that transformers knows natively.

    Raises UserError `not_a_model`, `bad_config`, `needs_remote_code` or `unsupported_arch`.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise _not_a_model(folder, name, "no config.json")
    config = _read_json(path, name)
    kind = config.get("model_type")
    if config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise UserError(
            "needs_remote_code",
            f"{name} needs code from its own repository (auto_map), which is never run.",
            "Choose a model that transformers supports without trust_remote_code.",
        )
    if not isinstance(kind, str) or not kind:
        raise _not_a_model(folder, name, "a config.json without model_type")
    declared = config.get("architectures") or []
    if not isinstance(declared, list):
        raise UserError(
            "bad_config",
            f"architectures in config.json of {name} is {type(declared).__name__}, expected a list of names.",
            "Download the model again.",
        )
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    known = kind in causal and not config.get("is_encoder_decoder")
    if not known or (declared and not set(map(str, declared)) & _class_names(causal)):
        raise UserError(
            "unsupported_arch",
            f"{name} is {', '.join(map(str, declared)) or kind} (model_type {kind!r}),"
            " not a causal language model that this version of transformers can load.",
            "Choose one of the families that docs/families.md lists, such as llama, qwen3, mistral or gemma3_text.",
        )
    _vet_numbers(config, name)
    if config.get("quantization_config"):
        raise UserError(
            "already_quantized",
            f"{name} is already quantized; an FP16, BF16 or FP32 model is needed.",
            "Choose the original model that it was made from.",
        )
    return config


def vet_weights(folder: Path, name: str) -> list[str]:
    """Names of the safetensors files that hold the weights, each with a sound header.

    Raises UserError `unsafe_format`, `not_a_model` or `corrupt_file`.
    """
    if (folder / WEIGHTS_INDEX).is_file():
        shards = _read_json(folder / WEIGHTS_INDEX, name).get("weight_map")
        if not isinstance(shards, dict) or not all(map(_plain_name, shards.values())):
            raise _corrupt(WEIGHTS_INDEX, "it has no usable weight_map")
        names = sorted(set(shards.values()))
    elif (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif any(path.suffix in PICKLES for path in folder.iterdir()):
        raise UserError(
            "unsafe_format",
            f"{name} holds its weights only as pickles ({_listing(folder, PICKLES)}), which"
            " can run code when they are read.",
            "Where you trust it, load it and save it again with save_pretrained.",
        )
    else:
        raise _not_a_model(folder, name, f"no {WEIGHTS}")
    for shard in names:
        if problem := file_problem(folder / shard, MOST_WEIGHT_BYTES):
            raise _corrupt(shard, f"it {problem}")
        try:
            with safe_open(folder / shard, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise _corrupt(shard, str(error)) from error
    return names


def stored_values(folder: Path, names: list[str]) -> tuple[torch.dtype, int]:
    """(the 16-bit type that all tensors of the safetensors files have, else float32, which holds any of them; the
    number of their values)
    """
    kinds: set[str] = set()
    values = 0
    for name in names:
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_slice(key)
                kinds.add(tensor.get_dtype())
                values += math.prod(tensor.get_shape())
    one = SIXTEEN_BITS.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
    return one, values


def vet_tokenizer_files(folder: Path, name: str) -> None:
    """Raises UserError `missing_tokenizer`, or `corrupt_file` for a JSON that cannot be read."""
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(
            "missing_tokenizer",
            f"{name} holds no tokenizer: none of {', '.join(TOKENIZER_FILES)} was found.",
            "Copy the tokenizer's files from the model that the weights come from.",
        )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            try:
                json.loads((folder / file).read_text("utf-8"))
            except (ValueError, RecursionError) as error:
                raise _corrupt(file, str(error)) from error


def _read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of modest size. Raises UserError `bad_config`."""
    try:
        # An index of a large model is longer than any config, and is never nested.
        if path.name == "config.json" and path.stat().st_size > CONFIG_LIMIT_BYTES:
            raise ValueError(f"it is larger than {CONFIG_LIMIT_BYTES} bytes")
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(
            "bad_config",
            f"{path.name} of {name} is not a usable JSON file: {error}",
            "Download the model again.",
        ) from error
    return content


def _vet_numbers(value: Any, name: str, key: str = "") -> None:
    """Refuse counts that transformers would build for hours. Raises UserError `bad_config`."""
    if isinstance(value, dict):
        for inner, item in value.items():
            _vet_numbers(item, name, inner)
    elif isinstance(value, list):
        for item in value:
            _vet_numbers(item, name, key)
    elif isinstance(value, int):
        most = MOST_PARTS if PARTS.search(key) else LARGEST
        if abs(value) > most:
            raise UserError(
                "bad_config",
                f"{key[:50]} in the config of {name} is {str(value)[:20]}; at most {most} is read.",
                "Download the model again.",
            )


def _class_names(mapping: dict[str, Any]) -> set[str]:
    """Flatten transformers' table, where a type may name one class or several."""
    values = mapping.values()
    return {name for entry in values for name in ([entry] if isinstance(entry, str) else entry)}


def _plain_name(name: Any) -> bool:
    """A file beside the index: no folder, no way out."""
    return isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) is not None


def _listing(folder: Path, suffixes: set[str] | None = None) -> str:
    names = sorted(p.name for p in folder.iterdir() if suffixes is None or p.suffix in suffixes)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def _not_a_model(folder: Path, name: str, what: str) -> UserError:
    return UserError(
        "not_a_model",
        f"{name} has {what}; files seen: {_listing(folder)}.",
        "Give a folder made by save_pretrained, with config.json and safetensors weights.",
    )


def _corrupt(name: str, detail: str) -> UserError:
    return UserError("corrupt_file", f"{name} is damaged: {detail}", "Download it again.")
