"""Verdicts of if-verifiable on answers, and why they came out so.

The verdict is always the library's. It searches with the patterns of a suite, which can take for ever, and it draws
from process-wide generators. So `upq.evaluation.ifeval` runs this file in a process that can be killed (upq.killable);
it imports nothing of ours. The library is heavy, and does not exist for Python 3.10.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable
from typing import Any

import nltk
from if_verifiable.common import evaluate_instructions, strip_thinking
from if_verifiable.ifeval import INSTRUCTION_DICT
from if_verifiable.ifeval.instructions_util import LANGUAGE_CODES, count_sentences, count_words
from langdetect import DetectorFactory, LangDetectException, detect

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
CONSTRAINED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
QUOTE_CHARACTERS = 40  # longest piece of an answer or of an item that a reason repeats


def judge_text(
    instruction_id: str, kwargs: dict[str, Any], response: str, *seeds: int | str
) -> tuple[bool | None, bool | None, str]:
    """(strict, loose, reason) for one valid instruction; equal seeds give equal verdicts."""
    text = strip_thinking(response)
    if not text.strip():
        return False, False, "found an empty answer"
    try:
        _seed(*seeds)
        [result], _ = evaluate_instructions(text, [instruction_id], [kwargs], "", INSTRUCTION_DICT)
        _seed(*seeds)
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


def _seed(*parts: int | str) -> None:
    """Fix all that the library draws from here on."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    random.seed(digest)
    DetectorFactory.seed = int.from_bytes(digest[:8], "big")


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


def _words(args: dict[str, Any], text: str) -> tuple[str, str]:
    return _count(count_words(text), "word"), f"{args['relation']} {args['num_words']}"


def _sentences(args: dict[str, Any], text: str) -> tuple[str, str]:
    return _count(count_sentences(text), "sentence"), f"{args['relation']} {args['num_sentences']}"


def _divided_paragraphs(args: dict[str, Any], text: str) -> tuple[str, str]:
    first, *middle, last = re.split(r"\s?\*\*\*\s?", text) if "***" in text else [text, ""]
    filled = sum(bool(part.strip()) for part in (first, *middle, last))
    empty = sum(not part.strip() for part in middle)
    found = _count(filled, "paragraph") + (f" and {empty} empty between dividers" if empty else "")
    return found, f"{args['num_paragraphs']} divided by ***"


def _nth_paragraph(args: dict[str, Any], text: str) -> tuple[str, str]:
    paragraphs = text.split("\n\n")
    nth = args["nth_paragraph"]
    start = paragraphs[nth - 1].split()[:1] if 0 < nth <= len(paragraphs) else []
    filled = _count(sum(bool(part.strip()) for part in paragraphs), "paragraph")
    beginning = f"paragraph {nth} starting with {quote(start[0])}" if start else f"no text as {nth}"
    expected = f"{args['num_paragraphs']}, paragraph {nth} starting with"
    return f"{filled}, {beginning}", f"{expected} {quote(args['first_word'])}"


def _placeholders(args: dict[str, Any], text: str) -> tuple[str, str]:
    found = len(re.findall(r"\[.*?\]", text))
    return _count(found, "placeholder"), f"at least {args['num_placeholders']}"


def _postscript(args: dict[str, Any], text: str) -> tuple[str, str]:
    marker: str = args["postscript_marker"]
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    found = re.search(patterns.get(marker) or marker.lower(), text.lower())
    return f"{'a' if found else 'no'} postscript", f"one starting with {quote(marker)}"


def _bullets(args: dict[str, Any], text: str) -> tuple[str, str]:
    stars = re.findall(r"^\s*\*[^\*].*$", text, flags=re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, flags=re.MULTILINE)
    return _count(len(stars) + len(dashes), "bullet"), str(args["num_bullets"])


def _highlights(args: dict[str, Any], text: str) -> tuple[str, str]:
    single = re.findall(r"\*([^\n\*]*)\*", text)
    double = re.findall(r"\*\*([^\n\*]*)\*\*", text)
    found = sum(bool(part.strip()) for part in single + double)
    return _count(found, "highlighted part"), f"at least {args['num_highlights']}"


def _sections(args: dict[str, Any], text: str) -> tuple[str, str]:
    spliter = args["section_spliter"]
    found = len(re.split(r"\s?" + spliter + r"\s?\d+\s?", text)) - 1
    expected = f"at least {args['num_sections']} marked {quote(spliter + ' 1')} and so on"
    return _count(found, "section"), expected


def _json(args: dict[str, Any], text: str) -> tuple[str, str]:
    body = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        return f"invalid JSON ({error.msg} at {place})", "nothing but valid JSON"
    except ValueError as error:
        return f"invalid JSON ({error})", "nothing but valid JSON"
    return "valid JSON", "nothing but valid JSON"


def _title(args: dict[str, Any], text: str) -> tuple[str, str]:
    titles = (match.lstrip("<").rstrip(">").strip() for match in re.findall(r"<<[^\n]+>>", text))
    title = next(filter(None, titles), None)
    found = f"the title {quote(title)}" if title else "no title"
    return found, "one in double angular brackets, <<like this>>"


def _constrained(args: dict[str, Any], text: str) -> tuple[str, str]:
    chosen = next((answer for answer in CONSTRAINED_ANSWERS if answer in text), None)
    return quote(chosen or text.strip()), f"one of {_list(CONSTRAINED_ANSWERS)}"


def _keywords(args: dict[str, Any], text: str) -> tuple[str, str]:
    keywords = args["keywords"]
    missing = [word for word in keywords if not re.search(word, text, flags=re.IGNORECASE)]
    found = f"no {_list(missing)}" if missing else f"all of {_list(keywords)}"
    return found, f"all of {_list(keywords)}"


def _forbidden_words(args: dict[str, Any], text: str) -> tuple[str, str]:
    words = args["forbidden_words"]
    used = [word for word in words if re.search(rf"\b{word}\b", text, flags=re.IGNORECASE)]
    return _list(used) if used else f"none of {_list(words)}", f"none of {_list(words)}"


def _keyword_frequency(args: dict[str, Any], text: str) -> tuple[str, str]:
    found = _count(len(re.findall(args["keyword"], text, flags=re.IGNORECASE)), "time")
    return f"{quote(args['keyword'])} {found}", f"{args['relation']} {args['frequency']}"


def _letter_frequency(args: dict[str, Any], text: str) -> tuple[str, str]:
    found = _count(text.lower().count(args["letter"]), "time")
    expected = f"{args['let_relation']} {args['let_frequency']}"
    return f"the letter {args['letter']!r} {found}", expected


def _capital_words(args: dict[str, Any], text: str) -> tuple[str, str]:
    found = sum(word.isupper() for word in nltk.word_tokenize(text))
    expected = f"{args['capital_relation']} {args['capital_frequency']}"
    return f"{_count(found, 'word')} in capital letters", expected


def _language(args: dict[str, Any], text: str) -> tuple[str, str]:
    return _detected(text), LANGUAGE_CODES[args["language"]]


def _capitals(args: dict[str, Any], text: str) -> tuple[str, str]:
    small = sum(character.islower() for character in text)
    case = _detected(text) if text.isupper() else _count(small, "small letter")
    return case, "English in capital letters only"


def _lowercase(args: dict[str, Any], text: str) -> tuple[str, str]:
    large = sum(character.isupper() for character in text)
    case = _detected(text) if text.islower() else _count(large, "capital letter")
    return case, "English in small letters only"


def _commas(args: dict[str, Any], text: str) -> tuple[str, str]:
    return _count(text.count(","), "comma"), "none"


def _two_responses(args: dict[str, Any], text: str) -> tuple[str, str]:
    first, *middle, last = text.split("******") if "******" in text else [text, ""]
    answers = [part.strip() for part in (first, *middle, last) if part.strip()]
    same = len(answers) == 2 and answers[0] == answers[1]
    found = "the same answer twice" if same else _count(len(answers), "answer")
    empty = " and an empty one between" if not all(part.strip() for part in middle) else ""
    return found + empty, "2 different ones separated by ******"


def _repeated_prompt(args: dict[str, Any], text: str) -> tuple[str, str]:
    return f"{quote(text.strip())} at the start", quote(args["prompt_to_repeat"])


def _ending(args: dict[str, Any], text: str) -> tuple[str, str]:
    ending = " ".join(text.split())[-QUOTE_CHARACTERS:]
    return f"{quote(ending)} at the end", quote(args["end_phrase"])


def _quotation(args: dict[str, Any], text: str) -> tuple[str, str]:
    body = text.strip()
    return f"{body[0]!r} at the start and {body[-1]!r} at the end", 'one " at each'


def _detected(text: str) -> str:
    try:
        code = detect(text)
    except LangDetectException:
        return "no recognisable language (which counts as followed)"
    return LANGUAGE_CODES.get(code, f"the language {code!r}")


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}" + ("" if number == 1 else "s")


def quote(text: str) -> str:
    """The text in quotation marks, on one line and shortened."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= QUOTE_CHARACTERS else flat[: QUOTE_CHARACTERS - 1] + "…")


def _list(words: list[str] | tuple[str, ...]) -> str:
    return ", ".join(map(quote, words))


FINDERS: dict[str, Callable[[dict[str, Any], str], tuple[str, str]]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capitals,
    "change_case:english_lowercase": _lowercase,
    "combination:repeat_prompt": _repeated_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": _keywords,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:frequency": _keyword_frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "length_constraints:number_paragraphs": _divided_paragraphs,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _words,
    "punctuation:no_comma": _commas,
    "startend:end_checker": _ending,
    "startend:quotation": _quotation,
}
