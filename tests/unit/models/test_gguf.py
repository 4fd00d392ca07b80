"""A GGUF file is read with bounds: what its header announces and the file does not hold is refused at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import make_tokenizer
from tests.support.gguf_cases import LIES, a_file, llama, tensor, write_tiny_gguf
from upq.errors import UserError
from upq.models import chat_ids, inspect, load

HELLO = [{"role": "user", "content": "Hello"}]
#: Far more than reading a header takes, and far less than what used to happen.
AT_ONCE_S = 5


def by_estimate(path: str) -> object:
    return inspect(path, None, 32, 32)


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_sound_file_loads_and_is_estimated(tiny_gguf: Path) -> None:
    loaded = load(str(tiny_gguf))
    assert chat_ids(loaded.tokenizer, HELLO) == chat_ids(make_tokenizer(), HELLO)
    assert inspect(str(tiny_gguf), None, 32, 32).parameters == loaded.info.parameters


@pytest.mark.parametrize("read", [load, by_estimate])
@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_at_once(
    lie: str, read: Callable[[str], object], tmp_path: Path
) -> None:
    content, words = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        read(str(path))
    assert caught.value.code == "corrupt_file"
    assert words in caught.value.message
    assert time.monotonic() - started < AT_ONCE_S


@pytest.mark.parametrize("read", [load, by_estimate])
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3, 0.99])
def test_a_file_that_is_cut_anywhere_is_refused(
    share: float, read: Callable[[str], object], tiny_gguf: Path, tmp_path: Path
) -> None:
    whole = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"cut\.gguf is not a complete GGUF file") as caught:
        read(str(path))
    assert caught.value.code == "corrupt_file"


@pytest.mark.parametrize("read", [load, by_estimate])
def test_a_model_without_heads_is_not_supported(
    read: Callable[[str], object], tmp_path: Path
) -> None:
    path = tmp_path / "headless.gguf"
    path.write_bytes(a_file(llama(attention__head_count=0), [tensor("token_embd.weight", [8, 16])]))
    with pytest.raises(UserError, match="has 0 attention heads") as caught:
        read(str(path))
    assert caught.value.code == "unsupported_arch"


@pytest.mark.parametrize("read", [load, by_estimate])
def test_an_architecture_that_nobody_knows_is_not_supported(
    read: Callable[[str], object], tmp_path: Path
) -> None:
    path = tmp_path / "strange.gguf"
    keys = [key.replace(b"llama", b"lamal") for key in llama()]
    path.write_bytes(a_file(keys, [tensor("token_embd.weight", [8, 16])]))
    with pytest.raises(UserError, match="lamal is not supported") as caught:
        read(str(path))
    assert caught.value.code == "unsupported_arch"


def test_metadata_of_a_far_larger_model_than_the_tensors_is_refused(tmp_path: Path) -> None:
    """Without these sizes transformers takes those of a model of its own: gigabytes of random numbers."""
    keys = [key for key in llama(embedding_length=256) if b"feed_forward" not in key]
    path = tmp_path / "hollow.gguf"
    path.write_bytes(a_file(keys, [tensor("token_embd.weight", [256, 16])], 1 << 15))
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert caught.value.code == "weights_mismatch"


@pytest.mark.parametrize("read", [load, by_estimate])
def test_what_is_no_file_is_refused_before_it_is_opened(
    read: Callable[[str], object], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    for name in ("pipe.gguf", "zero.gguf"):
        with pytest.raises(UserError, match="is a device, a pipe") as caught:
            read(str(tmp_path / name))
        assert caught.value.code == "corrupt_file"


def test_the_command_line_says_it_in_one_sentence(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:3000])
    command = [sys.executable, "-m", "upq", "run", "--data-dir", str(tmp_path / "data")]
    command += ["--model", str(tmp_path / "cut.gguf"), "--preset", "smoke"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("cut.gguf is not a complete GGUF file: ")
    assert done.stderr.count("\n") == 1
