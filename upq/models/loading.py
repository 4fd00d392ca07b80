"""Load a model and its tokenizer, vetted so that no run starts on a broken one.

transformers fills missing tensors with random numbers, accepts NaN weights and a template that
raises, all without an error. `load` refuses each with its own code before anything is trained.
`upq.models.source` finds the files, `upq.models.vet` looks at them, `upq.models.gguf` reads GGUF,
`upq.models.experts` takes stacked experts apart, `upq.models.structure` finds the layers, `upq.models.trial` runs them.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from upq.errors import UserError
from upq.models.gguf import load_gguf, open_gguf, weight_type
from upq.models.skeleton import config_errors, vet_amount
from upq.models.source import (
    BUILDING,
    TEXT_PATTERNS,
    fetch,
    hash_file,
    hash_files,
    resolve,
)
from upq.models.tokenizer import chat_ids
from upq.models.trial import unstack_alike, vet_parts
from upq.models.vet import (
    SHOWN,
    stored_values,
    vet_config,
    vet_files,
    vet_tokenizer_files,
    vet_weights,
)

# Buffers that old checkpoints store and current models compute.
HARMLESS_KEYS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")
#: Large and small letters and signs, which a template may neither change nor leave out.
TRIAL = [
    {"role": "user", "content": "Hello, is 'A & b' so?"},
    {"role": "assistant", "content": 'Hello! "Yes", it is; how can I help?'},
    {"role": "user", "content": "Thank you."},
]


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded; `key` identifies its content wherever it came from."""

    source: str  # what the user typed: "bundled", a hub id, a path
    name: str  # short name to show
    revision: str | None  # resolved commit of a hub model
    files: dict[str, str]  # file name -> sha256
    reference_note: str  # how the FP16 reference came about, where that is not plain
    parameters: int
    architecture: str  # class name, such as "LlamaForCausalLM"

    @property
    def key(self) -> str:
        """sha256 over the sorted names and hashes of the files."""
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class LoadedModel:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo


def load(
    source: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> LoadedModel:
    """Find, load and vet a model; in eval mode, no parameter asks for a gradient.

    dtype: None keeps every value as it is: in 16 bits where all tensors are stored so, else in float32.
    Raises UserError; the codes are listed in docs/errors.md.
    """
    place = fetch(resolve(source, revision))
    path = place.path
    assert path is not None, "fetch gives every source a path"
    with BUILDING, _quiet():
        if place.kind == "gguf":
            model, tokenizer, report, files, note = _load_gguf_file(path, dtype or torch.float32)
        else:
            model, tokenizer, report, files = _load_folder(path, place.name, dtype)
            note = ""
    _vet_keys(report, place.name)
    _vet_finite(model)
    _vet_tokenizer(tokenizer, model, place.name)
    _settle_stop_tokens(model, tokenizer)
    model.to(torch.device(device)).eval().requires_grad_(False)
    unstack_alike(model)
    vet_parts(model)
    info = ModelInfo(
        source=place.text,
        name=place.name,
        revision=place.revision,
        files=files,
        reference_note=note,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        architecture=type(model).__name__,
    )
    return LoadedModel(model, tokenizer, info)


def _load_gguf_file(path: Path, dtype: torch.dtype) -> tuple[Any, Any, dict, dict[str, str], str]:
    """Model, tokenizer, key report, file hashes and the note on where the FP16 values come from."""
    vet_files(path.parent, TEXT_PATTERNS)
    reader = open_gguf(path)
    kind = weight_type(reader)
    model, tokenizer, report = load_gguf(path, reader)
    # Parameter by parameter, because rotary frequencies must stay float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    note = "" if kind == "F16" else f"FP16 reference dequantised from {kind}"
    return model, tokenizer, report, {path.name: hash_file(path)}, note


def _load_folder(
    folder: Path, name: str, dtype: torch.dtype | None
) -> tuple[Any, Any, dict, dict[str, str]]:
    """Model, tokenizer, key report and file hashes of a local folder."""
    vet_files(folder)
    vet_config(folder, name)
    weights = vet_weights(folder, name)
    vet_tokenizer_files(folder, name)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with config_errors(name):
        config = AutoConfig.from_pretrained(folder, **options)
    dtype_there, stored = stored_values(folder, weights)
    vet_amount(config, stored, name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype or dtype_there,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused, by name
            output_loading_info=True,
            **options,
        )
    except SafetensorError as error:
        raise UserError(
            "corrupt_file", f"{', '.join(weights)}: {error}", "Download it again."
        ) from error
    except Exception as error:  # whatever the models of transformers raise
        raise UserError(
            "bad_config",
            f"No model can be built from {name}/config.json: {error or type(error).__name__}",
            "Download the model again, or update transformers.",
        ) from error
    model, report = loaded
    return model, _load_folder_tokenizer(folder, name, options), report, hash_files(folder, weights)


def _load_folder_tokenizer(
    folder: Path, name: str, options: dict[str, Any]
) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise UserError(
            "missing_tokenizer",
            f"The tokenizer of {name} cannot be loaded: {error}",
            "Copy the tokenizer's files from the model that the weights come from.",
        ) from error


def _vet_keys(report: dict[str, Any], name: str) -> None:
    """Refuse a model some of whose tensors are random, unused or of another shape."""
    problems = []
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(
            key if isinstance(key, str) else str(key[0]) for key in report[f"{kind}_keys"]
        )
        problems += [f"{key} ({kind})" for key in keys if not HARMLESS_KEYS.search(key)]
    problems += [str(message) for message in report.get("error_msgs") or ()]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            "weights_mismatch",
            f"The weights of {name} do not fit its config: {', '.join(problems[:SHOWN])}{more}.",
            "Config and weights must come from one model; download it again.",
        )


def _vet_finite(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                "non_finite_weights",
                f"{name} holds NaN or infinite values.",
                "The file is damaged, or its values do not fit the chosen number format.",
            )


def _vet_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """Raises UserError `missing_chat_template`, `bad_chat_template` or `vocab_mismatch`."""
    if not tokenizer.chat_template:
        raise UserError(
            "missing_chat_template",
            f"{name} has no chat template, so it is probably a base model.",
            "Choose its instruction-tuned version, often named -Instruct, -it or -chat.",
        )
    trial = chat_ids(tokenizer, TRIAL)
    # Added tokens may lie beyond the embedding (Gemma 3 has one for images) while nobody uses them.
    words: Any = tokenizer
    used = {words.eos_token_id, words.bos_token_id, words.pad_token_id}
    added = set(words.get_added_vocab().values()) - used
    largest = max((set(words.get_vocab().values()) - added) | set(trial))
    rows = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    if largest >= rows:
        raise UserError(
            "vocab_mismatch",
            f"The tokenizer of {name} has token ids up to {largest}, but the model only has"
            f" {rows} embedding rows.",
            "Tokenizer and weights must come from one model.",
        )


def _settle_stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Generation ends at the tokenizer's end of turn as well, and padding is always defined."""
    generation = model.generation_config
    if generation is None:
        raise UserError("unsupported_arch", f"{type(model).__name__} cannot generate text.")
    configured = generation.eos_token_id
    stops = configured if isinstance(configured, list) else [configured]
    stops = [
        token for token in dict.fromkeys([*stops, tokenizer.eos_token_id]) if token is not None
    ]
    generation.eos_token_id = stops[0] if len(stops) == 1 else (stops or None)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no loading report: what matters is raised by name."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
