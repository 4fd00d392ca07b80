"""A good model loads exactly; each bad input has its own code and names what is wrong."""

import hashlib
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file

from tests.conftest import make_tokenizer
from tests.support.model_cases import DAMAGES, WEIGHTS, edit_json, edit_weights, with_tensor
from upq.errors import UserError
from upq.models import LoadedModel, chat_ids, inspect, load, resolve, source
from upq.models.source import BUNDLED


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy to damage, in a folder whose name has a space and a letter beyond ASCII."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "kaputt ü"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused_with_its_own_code(damage: str, folder: Path) -> None:
    inflict, code, words = DAMAGES[damage]
    inflict(folder)
    with pytest.raises(UserError) as caught:
        load(str(folder))
    assert caught.value.code == code
    assert words in caught.value.message
    assert caught.value.hint


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path) -> None:
    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:200].clone()

    edit_json(folder / "config.json", vocab_size=200)
    edit_weights(folder, shrink)
    with pytest.raises(UserError, match=r"kaputt ü has token ids up to 261.*200 embedding rows"):
        load(str(folder))


def test_an_added_token_that_nobody_uses_may_lie_beyond_the_embedding(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    assert len(load(str(folder)).tokenizer) == 263


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("not a model!!", "bad_model_id"),
        ("a/b--c..d", "bad_model_id"),
        ("", "bad_model_id"),
        ("nul\0byte/x", "bad_model_id"),
        ("/nonexistent/x", "model_not_found"),
        ("./nowhere", "model_not_found"),
        ("~/nowhere-at-all", "model_not_found"),
        ("a/b/c", "model_not_found"),
        ("missing.gguf", "model_not_found"),
        (r"C:\models\x", "model_not_found"),
        ("a" * 300, "bad_model_id"),
        ("./" + "a" * 300, "model_not_found"),
        ("~nobody-here/x", "model_not_found"),
        (__file__, "not_a_model"),
        ("someone/absent-model", "offline"),
    ],
)
def test_a_source_that_cannot_be_is_refused_by_name(text: str, code: str) -> None:
    with pytest.raises(UserError) as caught:
        load(text)
    assert caught.value.code == code
    assert text[:100] in caught.value.message or repr(text)[:100] in caught.value.message


def test_resolve_tells_sources_apart_without_reading_them(tmp_path: Path) -> None:
    (tmp_path / "m-Q4_K_M.gguf").write_bytes(b"")
    gguf = resolve(str(tmp_path / "m-Q4_K_M.gguf"))
    assert (gguf.kind, gguf.name) == ("gguf", "m-Q4_K_M".removesuffix("-Q4_K_M"))
    assert (resolve(str(tmp_path)).kind, resolve(str(tmp_path)).name) == ("folder", tmp_path.name)
    hub = resolve(" Qwen/Qwen3-0.6B ", revision="main")
    assert (hub.kind, hub.text, hub.name, hub.revision, hub.path) == (
        "hub", "Qwen/Qwen3-0.6B", "Qwen3-0.6B", "main", None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (hub_errors.GatedRepoError, "gated"),
        (hub_errors.RepositoryNotFoundError, "not_found"),
        (hub_errors.RevisionNotFoundError, "not_found"),
        (hub_errors.HfHubHTTPError, "offline"),
    ],
)
def test_the_answers_of_the_hub_are_told_apart(
    error: type[hub_errors.HfHubHTTPError], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_arguments: object, **_options: object) -> str:
        request = httpx.Request("GET", "https://hub.invalid")
        response: Any = httpx.Response(403, request=request)
        raise error("said the hub", response=response)

    monkeypatch.setattr(source, "snapshot_download", answer)
    with pytest.raises(UserError, match="someone/model") as caught:
        load("someone/model", revision="v1")
    assert caught.value.code == code


def test_a_hub_model_in_the_cache_loads_offline_under_its_commit(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_model_dir, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    download = source.snapshot_download
    monkeypatch.setattr(
        source, "snapshot_download", lambda *a, **k: download(*a, cache_dir=tmp_path, **k)
    )
    info = load("someone/tiny").info
    assert (info.source, info.name, info.revision) == ("someone/tiny", "tiny", commit)
    assert info.key == load(str(tiny_model_dir)).info.key


def test_without_its_package_the_bundled_model_comes_from_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    place = resolve(BUNDLED)
    assert (place.kind, place.text) == ("hub", "HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf file" * 9])
def test_a_file_that_is_not_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.gguf") as caught:
        load(str(tmp_path / "broken.gguf"))
    assert caught.value.code == "corrupt_file"


@pytest.mark.parametrize("size", [1_000, 1_000_000, 50_000_000])
def test_a_truncated_gguf_is_refused(size: int, bundled: LoadedModel, tmp_path: Path) -> None:
    whole = resolve(BUNDLED).path
    assert whole is not None
    with whole.open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(size))
    with pytest.raises(UserError, match=r"cut\.gguf") as caught:
        load(str(tmp_path / "cut.gguf"))
    assert caught.value.code == "corrupt_file"


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "spiece.model"])
def test_a_pipe_among_the_files_of_a_model_is_never_opened(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"{name} is damaged: it is a device, a pipe") as caught:
        load(str(folder))
    assert caught.value.code == "corrupt_file"


def test_old_rotary_buffers_in_a_checkpoint_are_harmless(folder: Path) -> None:
    with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq")(folder)
    assert load(str(folder)).info.parameters > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mixed", [False, True])
def test_every_weight_is_loaded_exactly_and_in_16_bits_where_all_are_stored_so(
    folder: Path, dtype: torch.dtype, mixed: bool
) -> None:
    tensors = {key: value.to(dtype) for key, value in load_file(folder / WEIGHTS).items()}
    if mixed:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-6
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    loaded = load(str(folder)).model.state_dict()
    expected = torch.float32 if mixed else dtype
    assert {loaded[key].dtype for key in tensors} == {expected}
    assert all(torch.equal(loaded[key].float(), value.float()) for key, value in tensors.items())


def test_the_files_are_hashed_and_the_key_follows_their_content(folder: Path) -> None:
    info = load(str(folder)).info
    assert info.files[WEIGHTS] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= info.files.keys()
    (folder / "README.md").write_text("no part of the model")
    assert load(str(folder)).info.key == info.key
    assert replace(info, source="elsewhere", name="other").key == info.key
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].mul_(2))
    os.utime(folder / WEIGHTS, ns=(1, 1))
    assert load(str(folder)).info.key != info.key


def test_generation_stops_at_the_end_of_turn_even_if_the_config_names_another_token(
    folder: Path,
) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=0, pad_token_id=None)
    loaded = load(str(folder))
    generation = loaded.model.generation_config
    assert generation is not None
    assert generation.eos_token_id == [0, loaded.tokenizer.eos_token_id]
    assert generation.pad_token_id == loaded.tokenizer.pad_token_id


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(str(folder))
    assert capfd.readouterr() == ("", "")


def test_a_model_loads_unharmed_while_other_threads_estimate(folder: Path) -> None:
    """Models without memory are built in another thread for an estimate, as the page does while the chat loads."""
    ended = threading.Event()

    def estimate_again_and_again() -> None:
        while not ended.is_set():
            os.utime(folder)  # what estimates remember hangs on the folder's time
            inspect(str(folder), None, 32, 32)

    thread = threading.Thread(target=estimate_again_and_again)
    thread.start()
    try:
        for _ in range(8):
            model = load(str(folder)).model
            assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    finally:
        ended.set()
        thread.join()


def test_the_bundled_model_knows_the_capital_of_france(bundled: LoadedModel) -> None:
    ids = chat_ids(
        bundled.tokenizer, [{"role": "user", "content": "What is the capital of France?"}]
    )
    model: Any = bundled.model
    answer = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
    text = str(bundled.tokenizer.decode(answer[0, len(ids) :]))
    assert "Paris" in text
    assert text.endswith("<|im_end|>")


def test_the_bundled_reference_is_float16_values_of_the_gguf(bundled: LoadedModel) -> None:
    info, tokenizer = bundled.info, bundled.tokenizer
    assert info.reference_note == "FP16 reference dequantised from Q4_1"
    assert (info.name, info.architecture) == ("SmolLM2-135M-Instruct", "LlamaForCausalLM")
    assert info.parameters == 134_515_008
    for parameter in bundled.model.parameters():
        assert torch.equal(parameter, parameter.half().float())
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")
    generation = bundled.model.generation_config
    assert generation is not None
    assert generation.eos_token_id == tokenizer.eos_token_id
    assert generation.pad_token_id is not None
