"""The two instructions that decode codes on a GPU, read from their text and carried out on the host.

Triton's interpreter cannot run assembly, so where it interprets the kernels this text is never used.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl

from kernels.gpu import products

WORD_BITS, HALF_BITS = 32, 16
DTYPES = {tl.float16: torch.float16, tl.bfloat16: torch.bfloat16}
HEX = "(0x[0-9a-f]+)"


def text_of(function: Any, *arguments: Any) -> Any:
    """What a constexpr function of Triton gives, as plain Python has it."""
    result = function(*arguments)
    return getattr(result, "value", result)


def number(pattern: str, text: str) -> int:
    """The one number, in any base of C, that stands in a text where the pattern has its group."""
    (found,) = re.findall(pattern, text)
    return int(found, 0)


def halves(words: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """32-bit words (n,) as pairs of 16-bit floats (2n,), the low half first."""
    return torch.from_numpy(words.view(np.int16).copy()).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("bits", "zero"), [(2, 0.0), (2, 1.5), (2, 2.0), (4, 7.5), (4, 8.0)], ids=str
)
def test_each_field_of_a_word_is_decoded_exactly(bits: int, zero: float, dtype: Any) -> None:
    words = np.random.default_rng(0).integers(0, 2**WORD_BITS, 4096, dtype=np.uint32)
    shared = text_of(products.fields_per_shift, bits, dtype)
    shifted = words
    for field in range(HALF_BITS // bits):
        if field % shared == 0:
            text = text_of(products.shift_assembly, field, bits, dtype)
            places = np.uint32(number(r", (\d+);", text))
            shifted = words << places if text.startswith("shl") else words >> places
        text = text_of(products.level_assembly, field, bits, dtype, zero)
        mask = number(rf"lop3\.b32 t, \$1, {HEX}, 0x[0-9a-f]+, 0xea", text)
        magic = number(rf"lop3\.b32 t, \$1, 0x[0-9a-f]+, {HEX}, 0xea", text)
        taken = halves((shifted & np.uint32(mask)) | np.uint32(magic), DTYPES[dtype])
        constant = np.array([number(rf"mov\.b32 c, {HEX}", text)], dtype=np.uint32)
        added = halves(constant, DTYPES[dtype])[0]
        found = taken - added if "sub.rn" in text else taken + added
        codes = (words.view(np.uint16) >> np.uint16(bits * field)) & np.uint16(2**bits - 1)
        expected = torch.from_numpy(codes.astype(np.float32)) - zero
        assert torch.equal(found.float(), expected), field
