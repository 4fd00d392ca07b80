"""Whether an answer repeats itself: it ends in one block said over and over, as small models do until they are cut."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

#: The block has to stand there so often, and all its copies have to be so long together: a refrain, the cells of a
#: table and the zeros of a matrix are repeated as well, but not for so long, and something follows them.
COPIES, LEAST_UNITS, LEAST_BYTES = 3, 24, 120
#: No more of the end is looked at, which bounds the time: the longest block that is found has a third of it.
LONGEST_END = 4096
#: The number or the mark that begins an item of a list: items that differ in nothing else are the same.
_ITEM = re.compile(r"^[ \t]*(?:\d{1,4}[.):]|[-*+\u2022])[ \t]+", re.MULTILINE)


def repeats(units: Sequence[Hashable], least: int = LEAST_UNITS) -> bool:
    """Whether token ids or words end in a block that stands there three times or more, `least` units in all.

    The last copy may be cut anywhere. A loop that the answer left again is none.
    """
    end = list(reversed(units[-LONGEST_END:]))
    borders: list[int] = []  # of each prefix of `end`: the longest proper prefix that also ends it
    border = 0
    for length, unit in enumerate(end, 1):
        while border and unit != end[border]:
            border = borders[border - 1]
        border += length > 1 and unit == end[border]
        borders.append(border)
        if length >= max(COPIES * (length - border), least):
            return True
    return False


def text_repeats(text: str) -> bool:
    """The same for a text, by its bytes in UTF-8: scripts that say more in a character have more of them. Line breaks,
    and the numbers and marks of lists, make no difference.
    """
    return repeats(" ".join(_ITEM.sub("", text).split()).encode(), LEAST_BYTES)
