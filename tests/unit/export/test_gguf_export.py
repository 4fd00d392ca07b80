"""A model leaves as a GGUF that others load: the same weights, names, numbers and words; what cannot leave says why."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from kernels.transform import Transform
from tests.support.gguf_export_cases import FAMILIES, decoded_model, packed_model, small_model
from upq.decode.native import FAMILY
from upq.errors import UserError
from upq.export import PackedModel, export, format_named
from upq.export.gguf_architecture import ARCHITECTURES, config_of, rope_factors
from upq.export.gguf_read import Reader
from upq.layers import INT2, INT4, Grid, grid_of
from upq.models import load

IDS = torch.randint(6, 262, (2, 24), generator=torch.Generator().manual_seed(0))
SIGNED4, SIGNED2 = grid_of("signed", 4), grid_of("signed", 2)
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    return packed_model(small_model(tmp_path_factory.mktemp("gguf") / "Tiny-Llama"), SIGNED4, 32)


def with_config(model: PackedModel, **changes: Any) -> PackedModel:
    """The model with other words in its config."""
    files = {
        **model.artifact.files,
        "config.json": json.dumps({**model.config, **changes}).encode(),
    }
    return dataclasses.replace(model, artifact=dataclasses.replace(model.artifact, files=files))


def values_of(path: Path) -> dict[str, Any]:
    """The metadata of a file."""
    return {name: field.contents() for name, field in Reader(path).fields.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("grid", "group", "name", "bits"),
    [
        (SIGNED4, 32, "Q4_0", 4.5),
        (INT4, 64, "Q5_0", 5.5),
        (INT2, 64, "Q4_0", 4.5),
        (grid_of("integer_zero", 2), 64, "Q4_0", 4.5),
    ],
    ids=["INT4 signed", "INT4 odd", "INT2 odd", "INT2 with zeros"],
)
def test_our_own_loader_reads_the_same_model(
    family: str, grid: Grid, group: int, name: str, bits: float, tmp_path: Path
) -> None:
    model = packed_model(small_model(tmp_path / f"a-{family}", family), grid, group, 16)
    exported = export(model, "gguf", tmp_path / "out")
    assert "all" in exported.found
    assert "exactly" in exported.found
    file = tmp_path / "out" / f"a-{family}-{name}.gguf"
    assert set(exported.files) == {file, file.with_name("Modelfile")}
    offer = format_named("gguf").offer(model)
    assert offer.bits_per_weight == bits
    assert abs(offer.size_bytes / exported.size_bytes - 1) < 0.01
    found = load(str(file)).model
    with torch.inference_mode():
        logits = found(input_ids=IDS).logits
        wanted = decoded_model(model)(input_ids=IDS).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_the_families_are_those_of_the_c_engine() -> None:
    classes = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    assert {f"{classes[kind]}ForCausalLM" for kind in ARCHITECTURES} == FAMILY


def test_two_bits_of_llama_cpp_leave_exactly(tmp_path: Path) -> None:
    model = packed_model(small_model(tmp_path / "two"), SIGNED2, 64)
    exported = export(model, "gguf", tmp_path / "out")
    assert [path.name for path in exported.files] == ["two-Q2_0.gguf"], "Ollama does not know Q2_0"
    assert [use.program for use in exported.uses] == ["llama.cpp", "LM Studio"]
    assert "all" in exported.found
    assert format_named("gguf").offer(model).bits_per_weight == 2.25
    assert values_of(exported.files[0])["general.file_type"] == 41


def test_two_levels_of_scales_leave_exactly_where_256_divides_the_rows(tmp_path: Path) -> None:
    wide = small_model(tmp_path / "wide", hidden_size=256, intermediate_size=512, head_dim=64)
    model = packed_model(wide, grid_of("q2_k", 2), 16)
    exported = export(model, "gguf", tmp_path / "out")
    assert exported.files[-1].name == "wide-Q2_K.gguf"
    assert "all" in exported.found
    assert format_named("gguf").offer(model).bits_per_weight == 2.625


def test_what_is_rounded_is_named_before_and_after(tmp_path: Path) -> None:
    narrow = packed_model(small_model(tmp_path / "narrow"), grid_of("q2_k", 2), 16)
    offer = format_named("gguf").offer(narrow)
    assert offer.bits_per_weight == 16
    reason = (
        "rounded to float16 (rows of 64 have blocks of 64 with two levels of scales; Q2_K has 256)"
    )
    assert f"12 layers as F16 at 16 bits, {reason}" in offer.exactness
    assert "model.embed_tokens as Q8_0 at 8.5 bits, exactly" in offer.exactness
    found = export(narrow, "gguf", tmp_path / "out").found
    assert "14 are rounded to float16, by at most 0.0005" in found


def test_an_older_embedding_of_8_bits_is_rounded(tmp_path: Path) -> None:
    model = packed_model(small_model(tmp_path / "old"), INT4, 64, embedding_grid=Grid(8))
    assert "model.embed_tokens as F16 at 16 bits, rounded to float16 (no type has" in (
        format_named("gguf").offer(model).exactness
    )
    assert "1 are rounded" in export(model, "gguf", tmp_path / "out").found


def test_the_metadata_says_what_llama_cpp_needs(llama: PackedModel, tmp_path: Path) -> None:
    export(llama, "gguf", tmp_path / "out")
    values = values_of(tmp_path / "out" / "Tiny-Llama-Q4_0.gguf")
    expected = {
        "general.architecture": "llama",
        "general.name": "Tiny-Llama",
        "general.type": "model",
        "general.quantized_by": "UPQ Studio",
        "general.quantization_version": 2,
        "general.file_type": 2,
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny-Llama",
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 263,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.merges": ["h e"],
    }
    assert {name: values.get(name) for name in expected} == expected
    assert values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert "<|im_start|>" in values["tokenizer.chat_template"]
    assert values["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert values["tokenizer.ggml.token_type"][:7] == [3, 3, 3, 3, 3, 3, 1]


def test_a_model_of_the_hub_names_its_page(llama: PackedModel, tmp_path: Path) -> None:
    base = llama.artifact.manifest["base_model"] | {
        "source": "somebody/A-Model",
        "name": "A-Model",
        "revision": "abc",
    }
    manifest = {**llama.artifact.manifest, "base_model": base}
    artifact = dataclasses.replace(llama.artifact, manifest=manifest)
    export(dataclasses.replace(llama, artifact=artifact), "gguf", tmp_path / "out")
    values = values_of(tmp_path / "out" / "Tiny-Llama-Q4_0.gguf")
    assert values["general.base_model.0.repo_url"] == "https://huggingface.co/somebody/A-Model"
    assert values["general.base_model.0.organization"] == "somebody"


def test_an_untied_head_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    loaded = small_model(tmp_path / "untied", tie_word_embeddings=False)
    export(packed_model(loaded, SIGNED4, 32), "gguf", tmp_path / "out")
    stored = Reader(tmp_path / "out" / "untied-Q4_0.gguf").stored
    assert stored["output.weight"].shape == stored["token_embd.weight"].shape == (263, 64)


def test_biases_of_a_llama_are_turned_with_their_rows(tmp_path: Path) -> None:
    loaded = small_model(tmp_path / "biased", attention_bias=True, mlp_bias=True)
    model = packed_model(loaded, SIGNED4, 32)
    assert "all" in export(model, "gguf", tmp_path / "out").found
    stored = Reader(tmp_path / "out" / "biased-Q4_0.gguf").stored
    bias = model.artifact.tensors["model.layers.0.self_attn.q_proj.bias"].float()
    heads = bias.view(4, 2, 8)
    turned = torch.stack([heads[:, 0], heads[:, 1]], -1).flatten()  # pairs lie beside each other
    assert stored["blk.0.attn_q.bias"].decoded().tolist() == turned.tolist()


def test_rotary_positions_of_llama_3_are_a_tensor(llama: PackedModel, tmp_path: Path) -> None:
    model = with_config(llama, rope_parameters=LLAMA3)
    export(model, "gguf", tmp_path / "out")
    stored = Reader(tmp_path / "out" / "Tiny-Llama-Q4_0.gguf").stored["rope_freqs.weight"]
    factors = torch.tensor(stored.decoded())
    assert factors[0] == pytest.approx(1.0, rel=1e-5), "fast turns stay"
    assert factors[-1] == pytest.approx(8.0, rel=1e-5), "slow turns are slowed by the factor"
    assert bool((factors.diff() >= -1e-5).all())


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256},
            {"type": "yarn", "factor": 2.0, "original_context_length": 256},
        ),
    ],
    ids=["linear", "yarn"],
)
def test_longer_rotary_positions_are_numbers(
    llama: PackedModel, tmp_path: Path, rope: dict[str, Any], expected: dict[str, Any]
) -> None:
    export(
        with_config(llama, rope_parameters={"rope_theta": 1e4, **rope}), "gguf", tmp_path / "out"
    )
    values = values_of(tmp_path / "out" / "Tiny-Llama-Q4_0.gguf")
    assert {name: values[f"llama.rope.scaling.{name}"] for name in expected} == expected


def test_the_context_ends_with_the_window_that_llama_cpp_lacks(tmp_path: Path) -> None:
    loaded = small_model(tmp_path / "window", "mistral", sliding_window=128)
    export(packed_model(loaded, SIGNED4, 32), "gguf", tmp_path / "out")
    assert values_of(tmp_path / "out" / "window-Q4_0.gguf")["llama.context_length"] == 128


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma"}, "type 'gemma' cannot leave as GGUF"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "type 'dynamic'",
        ),
        ({"model_type": "qwen2", "rope_parameters": LLAMA3}, "type 'llama3' in a qwen2"),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                    "attention_factor": 1.5,
                }
            },
            "with attention_factor",
        ),
    ],
    ids=["family", "activation", "dynamic", "llama3 of a Qwen", "yarn of another kind"],
)
def test_a_model_that_llama_cpp_does_not_know_is_refused(
    llama: PackedModel, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        export(with_config(llama, **changes), "gguf", tmp_path / "out")
    assert caught.value.code == "cannot_export"
    assert not (tmp_path / "out").exists()


def test_a_rotated_layer_is_refused_with_what_to_do(llama: PackedModel) -> None:
    name = next(iter(llama.linears))
    rotated = dataclasses.replace(llama.layers[name], transform=Transform(16))
    with pytest.raises(UserError, match="1 layers are computed in a rotated space") as caught:
        format_named("gguf").offer(
            dataclasses.replace(llama, layers={**llama.layers, name: rotated})
        )
    assert "method portable_upq" in caught.value.hint


def test_an_unknown_parameter_is_refused(llama: PackedModel) -> None:
    tensors = {**llama.artifact.tensors, "model.extra.weight": torch.ones(2)}
    artifact = dataclasses.replace(llama.artifact, tensors=tensors)
    with pytest.raises(UserError, match=r"no place for model\.extra\.weight"):
        format_named("gguf").offer(dataclasses.replace(llama, artifact=artifact))


@pytest.mark.parametrize(
    "name", ["blk.1.ffn_down.weight", "token_embd.weight", "blk.0.attn_k.weight"]
)
def test_a_byte_that_differs_is_found(llama: PackedModel, tmp_path: Path, name: str) -> None:
    form = format_named("gguf")
    form.write(llama, tmp_path, lambda _: None)
    path = tmp_path / "Tiny-Llama-Q4_0.gguf"
    [tensor] = [one for one in gguf.GGUFReader(path).tensors if one.name == name]
    content = bytearray(path.read_bytes())
    content[int(tensor.data_offset) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
        form.check(llama, tmp_path, lambda _: None)
    assert caught.value.code == "export_differs"


def test_a_stop_leaves_nothing_behind(llama: PackedModel, tmp_path: Path) -> None:
    def stop(share: float) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(llama, "gguf", tmp_path / "out", stop)
    assert list(tmp_path.iterdir()) == []


def test_llama_3_factors_turn_as_transformers_does(llama: PackedModel) -> None:
    config = config_of(with_config(llama, rope_parameters=LLAMA3))
    factors = rope_factors(config)
    assert factors is not None
    wave = 2 * torch.pi * 500000.0 ** (torch.arange(0, 16, 2) / 16)
    smooth = (64 / wave - 1) / 3
    between = 1 / ((1 - smooth) / 8 + smooth)
    wanted = torch.where(wave < 16, 1.0, torch.where(wave > 64, 8.0, between))
    torch.testing.assert_close(factors, wanted.float(), rtol=1e-5, atol=0)
