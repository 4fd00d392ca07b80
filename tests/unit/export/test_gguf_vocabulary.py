"""A tokenizer leaves as llama.cpp's own lists: its words, its rule, its special tokens, its template."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.conftest import CHATML, make_tokenizer
from upq.errors import UserError
from upq.export import PackedModel, gguf_pretokenizer
from upq.export.gguf_modelfile import modelfile
from upq.export.gguf_pretokenizer import pre_tokenizer
from upq.export.gguf_vocabulary import vocabulary_of
from upq.models import LoadedModel, tokenizer_files
from upq.models.gguf import open_gguf
from upq.models.source import BUNDLED, resolve

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def model_with(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> PackedModel:
    """As much of a model as its vocabulary is made of. changes: of tokenizer.json."""
    files = tokenizer_files(tokenizer)
    files["generation_config.json"] = json.dumps({"eos_token_id": [2, 0]}).encode()
    definition = {**json.loads(files["tokenizer.json"]), **changes}
    files["tokenizer.json"] = json.dumps(definition).encode()
    artifact: Any = SimpleNamespace(files=files)
    return PackedModel("name", artifact, {})


def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer of Llama 2's kind: bytes as a last resort, a space before every text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHATML,
    )


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}), "smollm"),
        (sequence(split(rf"{WORDS}\p{{N}}{{1,3}}{REST}"), BYTES), "llama-bpe"),
        (sequence(split(rf"{WORDS}\p{{N}}{REST}"), BYTES), "qwen2"),
    ],
)
def test_a_rule_is_known_by_its_steps(rule: dict[str, Any], name: str) -> None:
    assert pre_tokenizer(make_tokenizer(), {"pre_tokenizer": rule}) == name


def test_a_known_hash_comes_before_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    ids = str(tokenizer.encode(gguf_pretokenizer.TEXT)).encode()
    monkeypatch.setitem(gguf_pretokenizer.NAMES, hashlib.sha256(ids).hexdigest(), "tekken")
    assert pre_tokenizer(tokenizer, {"pre_tokenizer": {"type": "ByteLevel"}}) == "tekken"


def test_an_unknown_rule_is_refused() -> None:
    rule = sequence(split(r"\p{N}"), BYTES)
    with pytest.raises(UserError, match="a rule that we do not know") as caught:
        pre_tokenizer(make_tokenizer(), {"pre_tokenizer": rule})
    assert caught.value.code == "cannot_export"


def test_rows_without_a_token_are_unused() -> None:
    vocabulary = vocabulary_of(model_with(make_tokenizer()), 270)
    assert vocabulary.tokens[262:] == [f"[PAD{row}]" for row in range(262, 270)]
    assert vocabulary.types[260:264] == [1, 1, 5, 5]


def test_every_stop_of_the_model_ends_an_answer() -> None:
    vocabulary = vocabulary_of(model_with(make_tokenizer()), 262)
    assert vocabulary.stops == ["<|im_end|>", "<|endoftext|>"]
    assert vocabulary.ids == {"bos": 1, "unk": 0, "pad": 3, "eos": 2, "eot": 0}


def test_a_vocabulary_of_sentencepiece_has_scores() -> None:
    vocabulary = vocabulary_of(model_with(sentencepiece()), 270)
    assert (vocabulary.model, vocabulary.pre, vocabulary.merges) == ("llama", "default", [])
    assert vocabulary.types[:4] == [2, 3, 3, 6]
    assert vocabulary.flags == {"bos_token": False, "eos_token": False, "space_prefix": True}
    score = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    assert score["he"] > score["ll"] > score["hell"] > score["hello"] > score["▁hello"] > score["h"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"type": "Unigram", "vocab": []}, "of the kind Unigram"),
        ({"type": "WordPiece"}, "WordPiece"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(model: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        vocabulary_of(_untouched(model_with(make_tokenizer()), model), 262)


def _untouched(model: PackedModel, other: dict[str, Any]) -> PackedModel:
    """The model whose tokenizer.json is of another kind, though its tokenizer still loads."""
    definition = json.loads(model.artifact.files["tokenizer.json"])
    loading = dict(model.artifact.files)
    loading["tokenizer.json"] = json.dumps({**definition, "model": other}).encode()
    return dataclasses.replace(model, artifact=SimpleNamespace(files=loading))  # pyright: ignore


def test_the_bundled_model_leaves_with_the_tokenizer_that_it_came_with(
    bundled: LoadedModel,
) -> None:
    path = resolve(BUNDLED).path
    if path is None or path.suffix != ".gguf":
        pytest.skip("the bundled model is not a GGUF here")
    fields = open_gguf(path).fields
    model = model_with(bundled.tokenizer)  # pyright: ignore[reportArgumentType]
    mine = vocabulary_of(model, len(fields["tokenizer.ggml.tokens"].data))
    theirs = {
        name.removeprefix("tokenizer.ggml."): fields[name].contents()
        for name in fields
        if name.startswith("tokenizer.ggml.")
    }
    assert (mine.model, mine.pre) == (theirs["model"], theirs["pre"])
    assert mine.tokens == theirs["tokens"]
    assert mine.types == theirs["token_type"]
    assert mine.merges == theirs["merges"]
    assert mine.ids["bos"] == theirs["bos_token_id"]
    assert mine.ids["eos"] == theirs["eos_token_id"]
    assert mine.flags["bos_token"] == theirs["add_bos_token"]
    assert mine.template == fields["tokenizer.chat_template"].contents()


def test_a_chat_in_chatml_is_translated_for_ollama() -> None:
    assert modelfile("a.gguf", make_tokenizer(), ["<|im_end|>"], 512) == (
        "FROM ./a.gguf\n"
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n'
        "{{ .Content }}<|im_end|>\n"
        "{{ end }}<|im_start|>assistant\n"
        '"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        "PARAMETER num_ctx 512\n"
    )


def test_a_chat_of_llama_3_is_translated_for_ollama() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    assert (
        'TEMPLATE """{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n'
        "{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
        '"""\n'
    ) in modelfile("a.gguf", tokenizer, [], 512)


def test_words_that_a_template_says_by_itself_are_the_system_of_ollama() -> None:
    tokenizer = make_tokenizer()
    start = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    tokenizer.chat_template = start + CHATML
    assert 'SYSTEM """Be kind."""\n' in modelfile("a.gguf", tokenizer, [], 1 << 20)
    assert "PARAMETER num_ctx 8192\n" in modelfile("a.gguf", tokenizer, [], 1 << 20)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_of_another_kind_is_left_to_ollama(template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    text = modelfile("a.gguf", tokenizer, ["<|im_end|>"], 512)
    assert "TEMPLATE" not in text
    assert "# The chat template is of a kind that we cannot translate" in text
