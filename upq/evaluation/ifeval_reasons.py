"""Verdicts of if-verifiable on answers, and why they came out so.

The verdict is always the library's. `upq.evaluation.ifeval` imports this module when the first answer is judged: the
library is heavy, and does not exist for Python 3.10.
"""

import hashlib
import json
import logging
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import nltk
from if_verifiable.common import evaluate_instructions, strip_thinking
from if_verifiable.ifeval import INSTRUCTION_DICT
from langdetect import DetectorFactory

from upq.evaluation.check_finders import FINDERS, quote

SENTENCE_DATA = "tokenizers/punkt_tab/english/"
LIBRARY_ERRORS = (  # what an odd item or answer makes the library raise, e.g. on 5000 times "["
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    re.error,
)

_library_lock = Lock()  # the library draws from process-wide generators


def judge_text(
    instruction_id: str, kwargs: dict[str, Any], response: str, *seeds: int | str
) -> tuple[bool | None, bool | None, str]:
    """(strict, loose, reason) for one valid instruction; equal seeds give equal verdicts."""
    text = strip_thinking(response)
    if not text.strip():
        return False, False, "found an empty answer"
    try:
        with _seeded(*seeds):
            [result], _ = evaluate_instructions(
                text, [instruction_id], [kwargs], "", INSTRUCTION_DICT
            )
        with _seeded(*seeds):
            reason = _explain(instruction_id, kwargs, text, result.strict_pass)
    except LIBRARY_ERRORS as error:
        return None, None, f"the checker stopped: {type(error).__name__}"
    return result.strict_pass, result.loose_pass, reason


def has_sentence_data() -> bool:
    """Whether NLTK finds its English sentence model, in NLTK_DATA or its usual folders."""
    try:
        nltk.data.find(SENTENCE_DATA)
    except LookupError:
        return False
    return True


@contextmanager
def _seeded(*parts: int | str) -> Iterator[None]:
    """Fix every draw of the library inside the block and leave the generators as they were."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    root = logging.getLogger()
    with _library_lock:
        state, langdetect_seed = random.getstate(), DetectorFactory.seed
        random.seed(digest)
        DetectorFactory.seed = int.from_bytes(digest[:8], "big")
        root.addFilter(_is_not_about_language)
        try:
            yield
        finally:
            root.removeFilter(_is_not_about_language)
            DetectorFactory.seed = langdetect_seed
            random.setstate(state)


def _is_not_about_language(record: logging.LogRecord) -> bool:
    """The library logs a whole answer, up to nine times, when it finds no language in it."""
    return not str(record.msg).startswith("Unable to detect language")


def _explain(instruction_id: str, kwargs: dict[str, Any], text: str, followed: bool) -> str:
    """One clause on a judged answer: "found 3 bullets, expected 2", or the found part alone.

    Runs under the seed of the judgement: the reason has to name the letter that was drawn.
    """
    checker = INSTRUCTION_DICT[instruction_id](instruction_id)
    checker.build_description(**kwargs)
    checked: dict[str, Any] = checker.get_instruction_args() or {}
    found, expected = FINDERS[instruction_id](checked, text)
    reason = f"found {found}" if followed else f"found {found}, expected {expected}"
    if kwargs.get("letter", "").lower() != checked.get("letter", ""):
        reason += f" (the library replaces {quote(kwargs['letter'])} by a random letter)"
    return reason
