"""The pieces of an answer give its text, whatever its tokens are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.conftest import SPECIAL_TOKENS, make_tokenizer
from upq.compare import text_pieces
from upq.compare.pieces import REPLACEMENT, decoded, token_texts
from upq.models import LoadedModel, encode

BYTES = make_tokenizer()
SCRIPTS = st.text(
    st.sampled_from("abc \n\t,.\u00e9\u4e16\u754c\u0645\u0631\u062d\u200d🦊👩🏽👧🇫🇷\u0301")
)


def with_byte_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes them: spaces are part of words, rare characters are bytes."""
    words = ["<unk>", "<s>", "</s>", "\u2581", "\u2581is", "is", "a", "\u2581a", "b"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


FALLBACK = with_byte_fallback()


def assert_pieces_are_whole(tokenizer: Any, ids: list[int]) -> None:
    pieces = text_pieces(tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == decoded(tokenizer, ids)
    tokens = [at for piece in pieces for at in range(piece.start, piece.end)]
    assert tokens == list(range(len(ids)))


@given(ids=st.lists(st.integers(0, len(BYTES) - 1), max_size=30))
def test_pieces_of_any_bytes_give_the_text(ids: list[int]) -> None:
    assert_pieces_are_whole(BYTES, ids)


@given(ids=st.lists(st.integers(1, len(FALLBACK) - 1), max_size=30))
def test_pieces_of_a_tokenizer_with_byte_fallback_give_the_text(ids: list[int]) -> None:
    assert_pieces_are_whole(FALLBACK, ids)


@given(text=SCRIPTS)
def test_no_piece_holds_half_of_a_character(text: str) -> None:
    ids = encode(BYTES, text)
    pieces = text_pieces(BYTES, ids)
    assert [piece.text for piece in pieces] == list(text)
    assert all(
        piece.end - piece.start == len(letter.encode())
        for piece, letter in zip(pieces, text, strict=True)
    )


def test_pieces_of_the_real_tokenizer_give_the_text(bundled: LoadedModel) -> None:
    tokenizer = bundled.tokenizer

    @given(ids=st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    def any_ids(ids: list[int]) -> None:
        assert_pieces_are_whole(tokenizer, ids)

    @given(text=SCRIPTS)
    def any_text(text: str) -> None:
        ids = encode(tokenizer, text)
        assert_pieces_are_whole(tokenizer, ids)
        pieces = text_pieces(tokenizer, ids)
        assert "".join(piece.text for piece in pieces) == text
        assert not any(REPLACEMENT in piece.text for piece in pieces)

    any_ids()
    any_text()


def test_a_special_token_is_a_piece_of_its_own_and_written_out() -> None:
    half_of_a_character = encode(BYTES, "🦊")[:2]
    end = SPECIAL_TOKENS.index("<|im_end|>")
    pieces = text_pieces(BYTES, [*half_of_a_character, end, end])
    assert [(piece.text, piece.start, piece.end) for piece in pieces] == [
        (REPLACEMENT, 0, 2),
        ("<|im_end|>", 2, 3),
        ("<|im_end|>", 3, 4),
    ]


@pytest.mark.parametrize(("word", "text"), [("\u2581is", " is"), ("is", "is"), ("</s>", "</s>")])
def test_a_token_by_itself_keeps_its_space(word: str, text: str) -> None:
    token = FALLBACK.get_vocab()[word]
    assert token_texts(FALLBACK, [token]) == {token: text}
