"""A tokenizer as the lists and numbers that llama.cpp makes its own of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf

from upq.export.formats import cannot_export
from upq.export.gguf_pretokenizer import pre_tokenizer
from upq.export.model import PackedModel
from upq.models import load_tokenizer

#: Ends of the spelling of a token that belongs to a template, whether or not it is marked as special.
MARKERS = (("<|", "|>"), ("<\uff5c", "\uff5c>"))
#: Score of a token that no merge makes.
NEVER_MERGED = -1e9


@dataclass(frozen=True)
class Vocabulary:
    """model: "gpt2" for byte-level merges, "llama" for SentencePiece; pre: the rule of words, see gguf_pretokenizer.

    tokens, types: of every row of the embedding. merges: "a b", of gpt2; scores: of llama, the higher the earlier. ids:
    of special tokens, by the names of gguf-py's add_..._token_id. flags: by the names of its add_add_... functions.
    stops: the texts that end an answer.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    template: str
    ids: Mapping[str, int]
    flags: Mapping[str, bool]
    stops: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes of the lists and the template in a file, within some hundreds."""
        texts = [*self.tokens, *self.merges]
        numbers = 4 * (len(self.types) + len(self.scores))
        return sum(8 + len(text.encode()) for text in texts) + numbers + len(self.template.encode())

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write all of it as metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_token_scores(self.scores)
        writer.add_chat_template(self.template)
        for name, token in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(token)
        for name, value in self.flags.items():
            getattr(writer, f"add_add_{name}")(value)


def vocabulary_of(model: PackedModel, rows: int) -> Vocabulary:
    """The vocabulary of a model's tokenizer. rows: of the embedding.

    Raises UserError("cannot_export") for a tokenizer of another kind.
    """
    definition = _definition(model)
    tokenizer: Any = load_tokenizer(model.artifact.files)
    is_bytes = "ByteLevel" in json.dumps(definition.get("pre_tokenizer"))
    merges = [
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in definition["model"]["merges"]
    ]
    tokens, types = _tokens(tokenizer, definition, rows)
    flags = {"bos_token": _begins(tokenizer), "eos_token": _ends(tokenizer)}
    if not is_bytes:
        flags["space_prefix"] = _prepends_space(definition)
    stops = _stops(model, tokenizer)
    return Vocabulary(
        model="gpt2" if is_bytes else "llama",
        pre=pre_tokenizer(tokenizer, definition) if is_bytes else "default",
        tokens=tokens,
        types=types,
        merges=merges if is_bytes else [],
        scores=[] if is_bytes else _scores(tokens, merges),
        template=tokenizer.get_chat_template(),
        ids=_special_ids(tokenizer, stops),
        flags=flags,
        stops=[tokens[token] for token in stops],
    )


def _definition(model: PackedModel) -> dict[str, Any]:
    """tokenizer.json. Raises UserError("cannot_export") unless it is of byte-pair merges over bytes or with bytes."""
    content = model.artifact.files.get("tokenizer.json")
    if content is None:
        raise cannot_export(
            "The tokenizer has no tokenizer.json.", "Load the model with a fast tokenizer."
        )
    definition = json.loads(content)
    kind = definition["model"].get("type")
    is_bytes = "ByteLevel" in json.dumps(definition.get("pre_tokenizer"))
    if kind != "BPE" or not (is_bytes or definition["model"].get("byte_fallback")):
        raise cannot_export(
            f"The tokenizer is of the kind {kind}; expected byte-level BPE, or SentencePiece's BPE with bytes.",
            "Take the safetensors format.",
        )
    return definition


def _tokens(tokenizer: Any, definition: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The text and the type of the token of every row; rows without a token are named so and unused."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    unknown = definition["model"].get("unk_token")
    has_bytes = bool(definition["model"].get("byte_fallback"))
    for token, row in tokenizer.get_vocab().items():
        if row < rows:
            tokens[row] = token
            types[row] = int(gguf.TokenType.NORMAL)
            if has_bytes and len(token) == 6 and token.startswith("<0x"):
                types[row] = int(gguf.TokenType.BYTE)
    for row, added in tokenizer.added_tokens_decoder.items():
        if row >= rows:
            continue
        tokens[row] = added.content
        types[row] = int(gguf.TokenType.USER_DEFINED)
        if added.special or _is_marker(added.content):
            types[row] = int(gguf.TokenType.CONTROL)
        if has_bytes and added.content == unknown:
            types[row] = int(gguf.TokenType.UNKNOWN)
    return tokens, types


def _is_marker(text: str) -> bool:
    return any(text.startswith(first) and text.endswith(last) for first, last in MARKERS)


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece merges what makes the token of the highest score: the earlier a merge, the higher."""
    places: dict[str, int] = {}
    for place, merge in enumerate(merges):
        places.setdefault(merge.replace(" ", ""), place)
    return [-float(places[token]) if token in places else NEVER_MERGED for token in tokens]


def _begins(tokenizer: Any) -> bool:
    """Whether every text begins with the token for that."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode("a")[:1] == [bos]


def _ends(tokenizer: Any) -> bool:
    """Whether every text ends with the token for that."""
    eos = tokenizer.eos_token_id
    return eos is not None and tokenizer.encode("a")[-1:] == [eos]


def _prepends_space(definition: dict[str, Any]) -> bool:
    """Whether a text is read as if a space stood before it."""
    steps = json.dumps([definition.get("normalizer"), definition.get("pre_tokenizer")])
    return (
        '"Prepend"' in steps
        or '"prepend_scheme": "first"' in steps
        or '"prepend_scheme": "always"' in steps
    )


def _stops(model: PackedModel, tokenizer: Any) -> list[int]:
    """The tokens that end an answer, the tokenizer's own first."""
    found = json.loads(model.artifact.files["generation_config.json"]).get("eos_token_id")
    listed = found if isinstance(found, list) else [found]
    return [
        token for token in dict.fromkeys([tokenizer.eos_token_id, *listed]) if token is not None
    ]


def _special_ids(tokenizer: Any, stops: list[int]) -> dict[str, int]:
    """The ids of the special tokens that there are; a second token that ends an answer is the end of a turn."""
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "unk", "pad")}
    ids |= dict(zip(("eos", "eot"), stops, strict=False))
    return {name: token for name, token in ids.items() if token is not None}
