"""Ways to damage a model's folder, each with the error code and the words that name it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config

WEIGHTS = "model.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**content, **changes}), "utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def set_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template, "utf-8")


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "notes.txt").write_text("hello")


def truncate(folder: Path, size: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def lie_about_header(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[:8] = (2**40).to_bytes(8, "little")
    (folder / WEIGHTS).write_bytes(content)


def pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def become_bert(folder: Path) -> None:
    config = BertConfig(
        vocab_size=262, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)


def poison(value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value

    return lambda folder: edit_weights(folder, change)


def config_with(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def config_text(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(text)


def without_tensor(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, lambda tensors: tensors.pop(name))


def with_tensor(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_weights(
        folder, lambda tensors: tensors.update({name: torch.zeros(4)})
    )


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def sharded(shards: Any) -> Callable[[Path], object]:
    index = json.dumps({"metadata": {}, "weight_map": shards})
    return lambda folder: (folder / "model.safetensors.index.json").write_text(index)


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty folder": (empty, "not_a_model", "notes.txt"),
    "no model_type": (config_with(model_type=None), "not_a_model", "kaputt ü"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "not_a_model", "tokenizer.json"),
    "config not JSON": (config_text("{nope"), "bad_config", "config.json of kaputt ü"),
    "config a list": (config_text("[]"), "bad_config", "list"),
    "config huge": (config_text(" " * 1_000_001 + "{}"), "bad_config", "1000000 bytes"),
    "config nested": (config_text("[" * 100_000), "bad_config", "config.json of kaputt ü"),
    "config not UTF-8": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "bad_config", "config.json"
    ),
    "config of wrong types": (config_with(hidden_size="wide"), "bad_config", "hidden_size"),
    "config of no list": (config_with(architectures=True), "bad_config", "is bool, expected a list"),
    "config of endless layers": (
        config_with(num_hidden_layers=2**30), "bad_config", "num_hidden_layers in the config"
    ),
    "config of endless labels": (config_with(num_labels=2**30), "bad_config", "num_labels"),
    "config of a far larger model": (
        config_with(intermediate_size=2**24), "weights_mismatch", "its files hold"
    ),
    "config of a number beyond all": (config_with(vocab_size=10**300), "bad_config", "vocab_size"),
    "weights a device": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to("/dev/zero")),
        "not_a_model", "no model.safetensors",
    ),
    "tokenizer a device": (
        lambda f: (
            (f / "tokenizer.json").unlink(), (f / "tokenizer.json").symlink_to("/dev/zero")
        ),
        "corrupt_file", "tokenizer.json",
    ),
    "config without heads": (config_with(num_attention_heads=0), "bad_config", "kaputt ü"),
    "unknown type": (config_with(model_type="frobnicator"), "unsupported_arch", "frobnicator"),
    "encoder": (become_bert, "unsupported_arch", "BertForMaskedLM"),
    "encoder and decoder": (
        lambda f: T5Config().save_pretrained(f), "unsupported_arch", "'t5'"
    ),
    "declared as something else": (
        config_with(architectures=["LlamaForSequenceClassification"]),
        "unsupported_arch", "LlamaForSequenceClassification",
    ),
    "other type than the weights": (
        config_with(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        "weights_mismatch", "transformer.",
    ),
    "code of its own": (
        config_with(model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "needs_remote_code", "kaputt ü",
    ),
    "quantized already": (
        config_with(quantization_config={"quant_method": "awq"}), "already_quantized", "kaputt ü"
    ),
    "tensor missing": (
        without_tensor("model.layers.0.mlp.up_proj.weight"),
        "weights_mismatch", "model.layers.0.mlp.up_proj.weight (missing)",
    ),
    "tensor too many": (
        with_tensor("model.layers.0.mlp.extra"),
        "weights_mismatch", "model.layers.0.mlp.extra (unexpected)",
    ),
    "tensor of another shape": (
        config_with(intermediate_size=256),
        "weights_mismatch", "model.layers.0.mlp.down_proj.weight (mismatched)",
    ),
    "zero bytes": (lambda f: truncate(f, 0), "corrupt_file", WEIGHTS),
    "cut in the header": (lambda f: truncate(f, 100), "corrupt_file", WEIGHTS),
    "cut in the data": (lambda f: truncate(f, 20_000), "corrupt_file", WEIGHTS),
    "header lies": (lie_about_header, "corrupt_file", WEIGHTS),
    "index names an absent shard": (
        sharded({"a": "model-00001-of-00002.safetensors"}), "corrupt_file", "model-00001-of-00002"
    ),
    "index leaves the folder": (
        sharded({"a": "../secret.safetensors"}), "corrupt_file", "model.safetensors.index.json"
    ),
    "NaN": (poison(float("nan")), "non_finite_weights", "model.layers.1.mlp.up_proj.weight"),
    "infinity": (poison(float("-inf")), "non_finite_weights", "model.layers.1.mlp.up_proj.weight"),
    "pickled weights": (pickle_only, "unsafe_format", "pytorch_model.bin"),
    "no tokenizer": (without_tokenizer, "missing_tokenizer", "kaputt ü"),
    "tokenizer not JSON": (
        lambda f: (f / "tokenizer.json").write_text("{nope"), "corrupt_file", "tokenizer.json"
    ),
    "tokenizer of nothing": (
        lambda f: (f / "tokenizer.json").write_text("{}"), "missing_tokenizer", "kaputt ü"
    ),
    "no chat template": (
        lambda f: (f / "chat_template.jinja").unlink(), "missing_chat_template", "kaputt ü"
    ),
    "template with an error": (
        lambda f: set_template(f, "{% for x in %}"), "bad_chat_template", "Expected an expression"
    ),
    "template that refuses": (
        lambda f: set_template(f, "{{ raise_exception('only poems here') }}"),
        "bad_chat_template", "only poems here",
    ),
    "template that escapes": (
        lambda f: set_template(f, "{{ ''.__class__.__mro__ }}"), "bad_chat_template", "__class__"
    ),
    "template without end": (
        lambda f: set_template(
            f, "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
        ),
        "bad_chat_template", "does not end within",
    ),
    "template for content in parts": (
        lambda f: set_template(
            f, "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
        ),
        "bad_chat_template", "drops or changes what the user says",
    ),
    "template that divides by zero": (
        lambda f: set_template(f, "{{ 1 // 0 }}"), "bad_chat_template", "zero"
    ),
}  # fmt: skip
