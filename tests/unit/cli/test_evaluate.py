"""The text that `eval --text` measures: a file of UTF-8, or one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import make_tokenizer
from upq.cli.evaluate import _text_ids
from upq.errors import UserError


def test_a_text_that_cannot_be_measured_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes("one\nGr\xfc\xdfe".encode("latin-1"))
    words = {
        "/dev/zero": "is a device",
        "pipe": "is a device, a pipe",
        "gone": "does not exist",
        ".": "is a folder",
        "latin": "line 2, byte 0xFC",
    }
    for name, expected in words.items():
        with pytest.raises(UserError) as caught:
            _text_ids(make_tokenizer(), tmp_path / name, 100)
        assert (caught.value.code, expected in caught.value.message) == ("not_readable", True), name


def test_a_byte_order_mark_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfHello")
    tokenizer = make_tokenizer()
    assert _text_ids(tokenizer, tmp_path / "text", 100) == tokenizer("Hello")["input_ids"]
