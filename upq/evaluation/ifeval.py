"""IFEval-style checks: did an answer follow instructions that a program can verify?

A suite is a list of prompts, an answer is plain text, a verdict comes from if-verifiable (Google's
IFEval rules), in a process that is killed where a suite's pattern takes for ever. Two of its
checkers draw at random, so every verdict is seeded by its own prompt and instruction, and depends
on nothing else. Nothing here uses a network except `ifeval_suite()` without a path; two types need
NLTK's sentence data and say so where it is missing.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upq.errors import UserError
from upq.evaluation.endings import Ending
from upq.evaluation.suite_data import hub_rows, read_suite_file
from upq.files import is_whole
from upq.killable import Killable, Stopped

HUB_DATASET = "google/IFEval"
MAX_CHARACTERS = 20_000  # some of the library's patterns take quadratic time: seconds at this size
#: Seconds of work that a verdict may take, and those that a pattern may take to be understood.
JUDGE_SECONDS, PATTERN_SECONDS = 20, 2
NEEDS_SENTENCE_DATA = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)

RELATIONS = ("less than", "at least")
# fmt: off
LANGUAGES = frozenset({  # ISO 639-1 codes that the library knows
    "ar", "bg", "bn", "de", "en", "es", "fa", "fi", "fr", "gu", "he", "hi", "it", "ja", "kn",
    "ko", "ml", "mr", "ne", "pa", "pl", "pt", "ru", "sw", "ta", "te", "th", "uk", "ur", "vi",
})
# fmt: on
# instruction type -> its arguments and their types; all are required, the library would
# otherwise draw a missing one at random
ARGUMENTS: dict[str, dict[str, type]] = {
    "change_case:capital_word_frequency": {"capital_frequency": int, "capital_relation": str},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "combination:repeat_prompt": {"prompt_to_repeat": str},
    "combination:two_responses": {},
    "detectable_content:number_placeholders": {"num_placeholders": int},
    "detectable_content:postscript": {"postscript_marker": str},
    "detectable_format:constrained_response": {},
    "detectable_format:json_format": {},
    "detectable_format:multiple_sections": {"section_spliter": str, "num_sections": int},
    "detectable_format:number_bullet_lists": {"num_bullets": int},
    "detectable_format:number_highlighted_sections": {"num_highlights": int},
    "detectable_format:title": {},
    "keywords:existence": {"keywords": list},
    "keywords:forbidden_words": {"forbidden_words": list},
    "keywords:frequency": {"keyword": str, "frequency": int, "relation": str},
    "keywords:letter_frequency": {"letter": str, "let_frequency": int, "let_relation": str},
    "language:response_language": {"language": str},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": int,
        "nth_paragraph": int,
        "first_word": str,
    },
    "length_constraints:number_paragraphs": {"num_paragraphs": int},
    "length_constraints:number_sentences": {"num_sentences": int, "relation": str},
    "length_constraints:number_words": {"num_words": int, "relation": str},
    "punctuation:no_comma": {},
    "startend:end_checker": {"end_phrase": str},
    "startend:quotation": {},
}
KIND_NAMES = {int: "a whole number", str: "a text", list: "a list of words"}
RELATION_NAMES = frozenset({"relation", "let_relation", "capital_relation"})
PATTERN_NAMES = frozenset(  # the library reads these as regular expressions
    {"keyword", "keywords", "forbidden_words", "section_spliter", "postscript_marker"}
)
_HERE = Path(__file__)
_JUDGE = Killable(_HERE.with_name("ifeval_reasons.py"), "judge_text", JUDGE_SECONDS)
_PATTERN_PROBLEM = Killable(_HERE.with_name("patterns.py"), "problem", PATTERN_SECONDS)


@dataclass(frozen=True, kw_only=True)
class CheckPrompt:
    """One row of a suite: kwargs[i] are the arguments of instruction_ids[i]."""

    key: int
    prompt: str
    instruction_ids: tuple[str, ...]
    kwargs: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One instruction on one answer. strict and loose are both None if it could not be judged."""

    instruction_id: str
    strict: bool | None
    loose: bool | None
    reason: str  # found and expected, or why there is no verdict


@dataclass(frozen=True, kw_only=True)
class PromptResult:
    """All verdicts on one answer. ending is None where it was not kept, as in checks of older versions."""

    key: int
    response: str
    verdicts: tuple[Verdict, ...]
    ending: Ending | None = None

    @property
    def strict(self) -> bool | None:
        """Whether every instruction was followed to the letter; None if one was not judged."""
        return _all_followed([verdict.strict for verdict in self.verdicts])

    @property
    def loose(self) -> bool | None:
        """The same, after leaving out first line, last line or asterisks if that helps."""
        return _all_followed([verdict.loose for verdict in self.verdicts])

    @property
    def is_cut(self) -> bool:
        """Whether the answer is known to have been cut."""
        return self.ending is not None and self.ending.is_cut

    @property
    def repeats(self) -> bool:
        """Whether the answer is known to repeat itself."""
        return self.ending is not None and self.ending.repeats

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values; an ending that is not known is left out."""
        values = {
            "key": self.key,
            "response": self.response,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }
        return values if self.ending is None else values | {"ending": self.ending.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PromptResult":
        """Read what to_json wrote, here or in an older version, which kept no ending."""
        verdicts = tuple(Verdict(**verdict) for verdict in data["verdicts"])
        ending = Ending(**data["ending"]) if "ending" in data else None
        return cls(key=data["key"], response=data["response"], verdicts=verdicts, ending=ending)


def builtin_suite() -> list[CheckPrompt]:
    """Our own prompts: short tasks, all 25 instruction types, no network."""
    text = (resources.files("upq") / "resources" / "checks.jsonl").read_text("utf-8")
    return _parse_lines(text, "checks.jsonl")


def ifeval_suite(path: Path | None = None) -> list[CheckPrompt]:
    """The prompts of a JSONL file in IFEval's format, or IFEval itself from the hub.

    Raises UserError: bad_suite (which line and what is wrong), offline (the hub did not answer).
    """
    if path is None:
        return _parse_rows(enumerate(hub_rows(HUB_DATASET, "train"), 1), HUB_DATASET)
    return _parse_lines(read_suite_file(path), path.name)


def judge(prompt: CheckPrompt, response: str, seed: int = 0) -> PromptResult:
    """Verdicts on one answer. Never raises: what cannot be judged says why in its reason."""
    ids, kwargs = prompt.instruction_ids, prompt.kwargs
    if len(ids) == len(kwargs):
        verdicts = tuple(
            _judge_instruction(prompt.key, instruction_id, arguments, response, seed)
            for instruction_id, arguments in zip(ids, kwargs, strict=True)
        )
    else:
        reason = f"the item has {len(ids)} instructions but {len(kwargs)} kwargs"
        verdicts = tuple(_unjudged(instruction_id, reason) for instruction_id in ids)
    return PromptResult(key=prompt.key, response=response, verdicts=verdicts)


def instruction_types() -> dict[str, str | None]:
    """All 25 IFEval types -> None if this machine can judge them, else the reason."""
    return {instruction_id: _unavailable(instruction_id) for instruction_id in ARGUMENTS}


def _judge_instruction(
    key: int, instruction_id: str, kwargs: dict[str, Any], response: str, seed: int
) -> Verdict:
    if problem := _argument_problem(instruction_id, kwargs) or _unavailable(instruction_id):
        return _unjudged(instruction_id, problem)
    if len(response) > MAX_CHARACTERS:
        found = f"the answer has {len(response)} characters, more than {MAX_CHARACTERS}"
        return _unjudged(instruction_id, found)
    try:
        strict, loose, reason = _JUDGE(instruction_id, kwargs, response, seed, key, instruction_id)
    except Stopped as error:
        return _unjudged(instruction_id, f"the checker was stopped: {error}")
    return Verdict(instruction_id=instruction_id, strict=strict, loose=loose, reason=reason)


def _unjudged(instruction_id: str, reason: str) -> Verdict:
    return Verdict(instruction_id=instruction_id, strict=None, loose=None, reason=reason)


def _unavailable(instruction_id: str) -> str | None:
    if find_spec("if_verifiable") is None:
        return "needs the package if-verifiable, which needs Python 3.11 or newer"
    if instruction_id not in NEEDS_SENTENCE_DATA:
        return None
    from upq.evaluation import ifeval_reasons  # noqa: PLC0415  heavy, and absent on Python 3.10

    if ifeval_reasons.has_sentence_data():
        return None
    return "needs NLTK's punkt_tab data, not found in NLTK_DATA or its usual folders"


def _parse_lines(text: str, source: str) -> list[CheckPrompt]:
    lines = text.split(
        "\n"
    )  # not splitlines: JSON may hold other breaks, such as U+2028, in its texts
    rows = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    return _parse_rows(rows, source)


def _parse_rows(rows: Iterable[tuple[int, Any]], source: str) -> list[CheckPrompt]:
    prompts: list[CheckPrompt] = []
    line_of_key: dict[int, int] = {}
    for number, row in rows:
        try:
            prompt = _parse_row(json.loads(row) if isinstance(row, str) else row)
            if prompt.key in line_of_key:
                raise ValueError(
                    f"key {prompt.key} is already that of line {line_of_key[prompt.key]}"
                )
        except (ValueError, RecursionError) as error:
            message = f"Line {number} of {source} is not an IFEval row: {error}."
            hint = (
                "Each line needs key, prompt, instruction_id_list and kwargs, as IFEval has them."
            )
            raise UserError("bad_suite", message, hint) from error
        line_of_key[prompt.key] = number
        prompts.append(prompt)
    if not prompts:
        raise UserError("bad_suite", f"{source} holds no prompts.", "Give a JSONL file with rows.")
    return prompts


def _parse_row(row: Any) -> CheckPrompt:
    """Raises ValueError saying what is wrong."""
    kinds = {"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list}
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    for name, kind in kinds.items():
        if type(row.get(name)) is not kind:
            raise ValueError(f"{name} is missing or not of type {kind.__name__}")
    ids, kwargs = row["instruction_id_list"], row["kwargs"]
    if not is_whole(row["prompt"]):
        raise ValueError("its prompt holds half of a character (a lone surrogate, such as \\ud83d)")
    if not row["prompt"].strip() or not ids:
        raise ValueError("it has no prompt text or no instruction")
    if len(ids) != len(kwargs):
        raise ValueError(f"it has {len(ids)} instructions but {len(kwargs)} kwargs")
    if not all(isinstance(item, str) for item in ids) or not all(
        isinstance(item, dict) for item in kwargs
    ):
        raise ValueError("instruction ids must be texts and kwargs objects")
    kwargs = [{name: value for name, value in item.items() if value is not None} for item in kwargs]
    for instruction_id, arguments in zip(ids, kwargs, strict=True):
        if problem := _argument_problem(instruction_id, arguments):
            raise ValueError(problem)
    return CheckPrompt(
        key=row["key"], prompt=row["prompt"], instruction_ids=tuple(ids), kwargs=tuple(kwargs)
    )


def _argument_problem(instruction_id: str, kwargs: dict[str, Any]) -> str | None:
    """What keeps this instruction from being judged as written, or None if nothing does."""
    if instruction_id not in ARGUMENTS:
        return f"the instruction type {instruction_id!r:.50} is not known"
    expected = ARGUMENTS[instruction_id]
    if missing := sorted(expected.keys() - kwargs.keys()):
        return f"{instruction_id} lacks its argument {missing[0]!r}"
    if extra := sorted(kwargs.keys() - expected.keys()):
        return f"{instruction_id} takes no argument {extra[0]!r:.50}"
    problems = (_value_problem(name, kwargs[name], kind) for name, kind in expected.items())
    return next((f"{instruction_id}: {problem}" for problem in problems if problem), None)


def _value_problem(name: str, value: Any, kind: type) -> str | None:
    if type(value) is not kind:
        return f"{name} must be {KIND_NAMES[kind]}, not {value!r:.50}"
    if isinstance(value, int):
        return f"{name} must not be negative, but is {value}" if value < 0 else None
    texts: list[Any] = [value] if isinstance(value, str) else value
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        return f"{name} must hold text, and has {value!r:.50}"
    if name in RELATION_NAMES and value not in RELATIONS:
        return f"{name} must be one of {RELATIONS}, not {value!r:.50}"
    if name == "language" and value not in LANGUAGES:
        return f"the language code {value!r:.50} is not known"
    patterns = texts if name in PATTERN_NAMES else []
    return next(
        (f"{name}: {problem}" for problem in map(_pattern_problem, patterns) if problem), None
    )


@lru_cache(maxsize=1024)
def _pattern_problem(pattern: str) -> str | None:
    try:
        problem = _PATTERN_PROBLEM(pattern)
    except Stopped as error:
        problem = str(error)
    return f"{pattern!r:.50} is not a valid regular expression ({problem})" if problem else None


def _all_followed(verdicts: Sequence[bool | None]) -> bool | None:
    return None if not verdicts or None in verdicts else all(verdicts)
