"""Instructions in plain English that IFEval's rules can judge: "in two sentences", "without commas", "as JSON".

To miss an instruction costs nothing, to see one that is not there gives a wrong verdict. So a wording counts only where
the prompt asks for it: behind a verb in the imperative, not in a quotation, a pasted passage, a condition or a clause
about somebody else. What could be meant in two ways is left out, as are amounts of a part of the answer ("each under
eight words") and amounts that are about right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Longer prompts are read by nobody here: they hold pasted passages.
LONGEST_PROMPT = 4000
#: Stands for each character of a quotation, so that its words are not taken for the prompt's own.
_QUOTED = "\0"

_SMALL = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
)
NUMBERS = {word: number for number, word in enumerate(_SMALL.split(), 1)} | {
    "a single": 1, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80,
    "ninety": 90, "a hundred": 100, "one hundred": 100,
}  # fmt: skip
_N = rf"(?:\d{{1,4}}|{'|'.join(sorted(NUMBERS, key=len, reverse=True))})"
#: What is said before an amount -> (relation of IFEval, what is added to the amount).
RELATIONS = {
    "no more than": ("less than", 1), "not more than": ("less than", 1), "at most": ("less than", 1),
    "up to": ("less than", 1), "a maximum of": ("less than", 1), "no less than": ("at least", 0),
    "no fewer than": ("at least", 0), "at least": ("at least", 0), "a minimum of": ("at least", 0),
    "less than": ("less than", 0), "fewer than": ("less than", 0), "under": ("less than", 0),
    "more than": ("at least", 1), "over": ("at least", 1),
}  # fmt: skip
AFTER = {"or less": ("less than", 1), "or fewer": ("less than", 1), "or more": ("at least", 0)}
_RELATION = "|".join(RELATIONS)

#: Verbs that ask for a text, and those that say how the whole answer is to be.
_MAKING = (
    "write|explain|describe|tell|say|give|list|name|define|compose|draft|suggest|introduce|recommend|summari[sz]e"
    "|outline|discuss|compare|create|invent|plan|provide|generate|make"
)
_SHAPING = (
    "use|keep|limit|restrict|answer|respond|reply|return|output|format|include|mention|put|wrap|enclose"
    "|start|begin|end|finish|conclude"
)
_FORBIDDING = "do not|don't|never|avoid"
_BEFORE_VERB = (
    r"(?:^|[,;:.!?]\s+|\b(?:and|then|but|also|please)\s+|\b(?:can|could|would|will) you\s+)"
)
_ASKS = re.compile(
    rf"{_BEFORE_VERB}(?:(?:please|also|then|just|briefly)\s+)?(?P<verb>{_MAKING}|{_SHAPING}|{_FORBIDDING})\b"
    r"|\b(?:your|the)(?: (?:whole|entire))? (?:answer|response|reply) (?:must|should|has to|needs to|shall)\b"
)
_MAKES = re.compile(rf"{_BEFORE_VERB}(?:(?:please|also|then|just|briefly)\s+)?(?:{_MAKING})\b")
#: A sentence with one of these tells of something else than this answer.
_ASIDE = re.compile(
    r"\b(?:if|unless|whenever|how many|mean|means|meaning|said|says|asked|told|wants?|wanted)\b"
)
_EACH = re.compile(r"\b(?:each|every|per)\b")
_QUESTION = re.compile(
    r"(?:how|what|why|when|where|which|who|is|are|do|does|did|should|was|were)\b"
)
#: Between a verb and a wording: the wording belongs to a clause of its own.
_CLAUSE = re.compile(
    r"\b(?:who|whose|that|which|where|how to|can|could|would|not|never|instead|rather)\b"
)
_ABOUT_WHAT = re.compile(
    r"\b(?:why|how|when|what|title|name|heading|first|letter|line|words?|code|function|program)\b"
)
#: Passages that are worked on are no part of the request.
_WORKS_ON_TEXT = re.compile(
    r"(?:please\s+)?(?:translate|summari[sz]e|rewrite|rephrase|paraphrase|correct|proofread|edit|fix|improve|classify"
    r"|explain|analy[sz]e|repeat|shorten)\b[^:]*$"
)
_QUOTATIONS = re.compile(
    r"```.*?(?:```|$)|`[^`\n]+`|\"[^\"\n]+\"|\u201c[^\u201d\n]+\u201d|(?<!\w)'[^'\n]+'(?!\w)|\u2018[^\u2019\n]+\u2019",
    re.DOTALL,
)
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_ENDS = r"(?=\s*(?:$|[.,;:!?)]))"


@dataclass(frozen=True)
class Instruction:
    """An instruction.

    words: as the prompt has it; rules: what has to hold for it, types of IFEval with their arguments.
    """

    words: str
    rules: tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class _Sentence:
    """A sentence in small letters with quotations hidden, the same as it was written, and the whole request, hidden as
    well, without a passage that it is about.
    """

    text: str
    written: str
    request: str

    def is_asked(self, start: int, *, strictly: bool = False) -> bool:
        """Whether what begins at an index is asked of this answer. strictly: not even behind "why" and the like."""
        if _ASIDE.search(self.text) or (_QUESTION.match(self.text) and self.text.endswith("?")):
            return False
        if start == 0 and _ASKS.search(self.text):
            return True
        before = [match for match in _ASKS.finditer(self.text) if match.start() <= start]
        if not before or _EACH.search(self.text, 0, start):
            return False
        if before[-1].start() < start and (before[-1]["verb"] or "") in _FORBIDDING.split("|"):
            return False
        between = self.text[before[-1].end() : start].rpartition(",")[2]
        return not (_CLAUSE.search(between) or (strictly and _ABOUT_WHAT.search(between)))


def wordings(prompt: str) -> list[Instruction]:
    """The instructions that a prompt words so that there is no doubt, in their order."""
    if len(prompt) > LONGEST_PROMPT:
        return []
    request = _request(prompt)
    found = [one for sentence in _sentences(prompt, request) for one in _of_sentence(sentence)]
    kinds = {one.rules[0][0] for one in found}
    unclear = _unclear_amounts(request.lower(), [one.rules[0][0] for one in found])
    return [one for one in found if one.rules[0][0] in kinds - unclear]


def _request(prompt: str) -> str:
    """The prompt with quotations hidden, up to a passage that it is about."""
    hidden = _QUOTATIONS.sub(lambda match: _QUOTED * len(match.group()), prompt)
    passage = re.search(r":[ \t]*\n", hidden)
    return hidden[: passage.start()] if passage else hidden


def _sentences(prompt: str, request: str) -> Iterator[_Sentence]:
    for match in _SENTENCE.finditer(request):
        text = match.group()
        start = match.start() + len(text) - len(text.lstrip())
        text, stop = text.strip().lower(), match.start() + len(text.rstrip())
        head, colon, _ = text.partition(":")
        if colon and _WORKS_ON_TEXT.match(head):
            yield _Sentence(head, prompt[start : start + len(head)], head)
            return
        if len(text) == stop - start:  # a letter whose small form is two would shift all behind it
            yield _Sentence(text, prompt[start:stop], request.lower())


def _of_sentence(sentence: _Sentence) -> Iterator[Instruction]:
    for finder in (_amounts, _plain, _words, _phrases):
        yield from finder(sentence)


_UNITS = {
    "sentence": ("length_constraints:number_sentences", "num_sentences"),
    "word": ("length_constraints:number_words", "num_words"),
    "bullet": ("detectable_format:number_bullet_lists", "num_bullets"),
    "paragraph": ("length_constraints:number_paragraphs", "num_paragraphs"),
}
_AMOUNT = re.compile(
    rf"(?P<lead>^(?:in|with|using) |\b(?:in|using) |\bwith (?={_RELATION}|exactly)|, (?={_RELATION}|exactly)"
    rf"|\b(?:limit|keep|restrict) [\w ]{{1,40}} to |\ban? (?:[a-z]+ ){{1,3}}of |\bas (?:an? )?"
    rf"|\b(?:{_MAKING}|{_SHAPING}) (?:(?:me|us|it|this|your answer|the answer|your response|only|just) ){{0,2}})"
    rf"(?P<whole>(?:(?P<relation>{_RELATION}) |exactly |only |just )?(?P<low>{_N})"
    rf"(?:(?: to | or | ?[-\u2013] ?)(?P<high>{_N}))?"
    r"(?: (?:short|long|simple|clear|complete|full|english|brief|concise|markdown))?"
    r" (?P<unit>sentence|word|bullet|paragraph)(?: points?|s)?(?P<after> or (?:less|fewer|more))?)"
    rf"(?:{_ENDS}|(?= (?:and|but|why|how|what|for|to|please|that|which|explaining|describing|with)\b)"
    rf"|(?= (?:about|on)\b(?! {_N}\b)))"
)
#: Words of which more is said are not all words of the answer.
_OF_SOME = re.compile(r" (?:with|that|which|for)\b")
_APPROXIMATE = re.compile(
    rf"\b(?:about|around|roughly|approximately|nearly|almost|circa|some) {_N} (?:\w+ )?(?:words?|sentences?)\b"
)


def _unclear_amounts(request: str, seen: list[str]) -> set[str]:
    """Types of amounts that the request names more often than they were seen: they may be those of parts."""
    if _APPROXIMATE.search(request):
        return {kind for kind, _ in _UNITS.values()}
    unclear = {
        kind
        for unit, (kind, _) in _UNITS.items()
        if len(re.findall(rf"\b{_N} (?:\w+ )?{unit}", request)) > 1 or seen.count(kind) > 1
    }
    sentences = {_UNITS["sentence"][0]} if _UNITS["bullet"][0] in seen else set[str]()
    return unclear | sentences


def _amounts(sentence: _Sentence) -> Iterator[Instruction]:
    """So many sentences, words, bullet points, or paragraphs where the prompt names their divider."""
    for match in _AMOUNT.finditer(sentence.text):
        verb = match["lead"].split()[0] if match["lead"].strip(" ,") else ""
        shapes = re.fullmatch(_SHAPING, verb) is not None or "limit" in verb
        if match["unit"] == "word" and _OF_SOME.match(sentence.text, match.end()):
            continue
        if not sentence.is_asked(match.start()) or not (shapes or _makes_one(sentence.request)):
            continue
        rules = tuple(_amount_rules(match, sentence.request))
        if rules:
            group = 0 if match["lead"] in ("in ", "with ", "using ") else "whole"
            yield Instruction(_written(sentence, match, group), rules)


def _makes_one(request: str) -> bool:
    """Whether one text is asked for: else an amount may belong to one of them."""
    return sum(len(_MAKES.findall(line.strip())) for line in request.splitlines()) <= 1


def _amount_rules(match: re.Match[str], prompt: str) -> Iterator[tuple[str, dict[str, Any]]]:
    kind, name = _UNITS[match["unit"]]
    low = _number(match["low"])
    high = _number(match["high"]) if match["high"] else low
    relation = RELATIONS.get(match["relation"] or "") or AFTER.get((match["after"] or "").strip())
    if match["unit"] in ("bullet", "paragraph"):
        divided = "***" in prompt and "****" not in prompt
        if not relation and low == high and (match["unit"] == "bullet" or divided):
            yield kind, {name: low}
    elif relation:
        word, more = relation
        if low == high:
            yield kind, {name: low + more, "relation": word}
    elif low <= high:
        yield kind, {name: low, "relation": "at least"}
        yield kind, {name: high + 1, "relation": "less than"}


def _number(text: str) -> int:
    return int(text) if text.isdigit() else NUMBERS[text]


_NO_COMMA = (
    r"\b(?:with|use|using) no commas?\b|, no commas?\b|\bwithout (?:any |a single |using (?:any )?)?commas?\b"
    r"|\b(?:do not|don't|never) use (?:any |a single )?commas?\b|\bavoid (?:using )?(?:any )?commas\b"
)
_LETTERS = r"(?: letters?)?(?: only)?" + _ENDS
_SMALL_LETTERS = (
    rf"\b(?:in|use|using) (?:only |all )?(?:lower ?-?case|small(?= letters)){_LETTERS}|\ball lower ?-?case{_LETTERS}"
    r"|\b(?:with no|(?:without|without using|do not use|don't use)(?: any)?) (?:capital|upper ?-?case) letters"
    + _ENDS
)
_CAPITALS = (
    rf"(?<!without )\b(?:in|use|using) (?:only |all )?(?:capital(?= letters)|upper ?-?case){_LETTERS}"
    rf"|\bin (?:all )?(?:caps|capitals){_ENDS}|\bin all-caps{_ENDS}"
)
_ANSWER = r"(?:your|the)(?: (?:whole|entire))? (?:answer|response|reply|output)"
_JSON = (
    rf"\b(?:answer|respond|reply|return|output)(?: only| me)?(?: in| as| with)?(?: valid| only| an?)? json{_ENDS}"
    rf"|\b(?:as|in)(?: an?| valid)? json(?: format| object| array| list)?{_ENDS}|\bonly(?: valid)? json{_ENDS}"
    rf"|\bnothing but(?: valid)? json{_ENDS}"
)
_QUOTATION = rf"\b(?:put|wrap|enclose) {_ANSWER} (?:in|with|inside|between) (?:double )?(?:quotation marks|quotes)\b"
_TITLE = r"\btitle\b[^.?!]*(?:double angular brackets|<<)"
#: Wordings without an amount -> the type of IFEval.
_PLAIN = {
    re.compile(_NO_COMMA): "punctuation:no_comma",
    re.compile(_SMALL_LETTERS): "change_case:english_lowercase",
    re.compile(_CAPITALS): "change_case:english_capital",
    re.compile(_JSON): "detectable_format:json_format",
    re.compile(_QUOTATION): "startend:quotation",
    re.compile(_TITLE): "detectable_format:title",
}


def _plain(sentence: _Sentence) -> Iterator[Instruction]:
    for pattern, kind in _PLAIN.items():
        match = pattern.search(sentence.text)
        if match and sentence.is_asked(match.start(), strictly=True):
            yield Instruction(_written(sentence, match).strip(", "), ((kind, {}),))


_WORD = r"[a-z][\w'-]*"
_ITEM = rf"(?:{_QUOTED}+|{_WORD})"
_LIST = rf"(?P<list>{_ITEM}(?:(?:, (?:and |or )?| and | or ){_ITEM})*)"
_OF_WORDS = rf"(?: both| all)?(?: of)? the(?: following)? (?:key)?words?:? {_LIST}"
_TIMES = rf"(?: for)?(?: (?P<relation>{_RELATION}|exactly))? (?:(?P<times>{_N}) times|(?P<few>once|twice))\b"
_INCLUDED = re.compile(rf"\b(?:include|mention|use|contain){_OF_WORDS}(?:{_TIMES})?(?P<end>.?)")
_FORBIDDEN = re.compile(
    r"\b(?:(?:do not|don't|never) (?:use|include|mention|say|write)|without(?: using| mentioning| saying)?"
    rf"|avoid(?: using)?){_OF_WORDS}(?P<times>)(?P<end>.?)"
)
#: Behind the words: how often they are wanted, or where, in a way that is not known here.
_FURTHER = re.compile(
    r"\b(?:times?|once|twice|each|every|or (?:less|more|fewer))\b|^\s*(?:as|at|for) "
)
#: Behind "the word" these are no word that is meant.
_NO_WORD = frozenset({"count", "limit", "order", "choice", "that", "which", "you", "for", "of"})


def _words(sentence: _Sentence) -> Iterator[Instruction]:
    """Words that have to be there, so often, or must not be there."""
    forbidden = _FORBIDDEN.search(sentence.text)
    match = forbidden or _INCLUDED.search(sentence.text)
    if not match or not sentence.is_asked(match.start(), strictly=True):
        return
    words = _listed(sentence, match)
    if not words or _FURTHER.search(sentence.text[match.start("end") :]):
        return
    rules: list[tuple[str, dict[str, Any]]] = []
    if forbidden:
        rules = [("keywords:forbidden_words", {"forbidden_words": words})]
    elif not (match["times"] or match["few"]):
        rules = [("keywords:existence", {"keywords": words})]
    elif len(words) == 1:
        rules = [
            ("keywords:frequency", {"keyword": words[0], "frequency": number, "relation": relation})
            for number, relation in _frequencies(match)
        ]
    if rules:
        yield Instruction(_written(sentence, match).rstrip(" .,;:!?"), tuple(rules))


def _listed(sentence: _Sentence, match: re.Match[str]) -> list[str]:
    """The words of a list as patterns that match just them; none where it is not clear which words are meant."""
    spans = [one.span() for one in re.finditer(_ITEM, match["list"])]
    start = match.start("list")
    items = [sentence.written[start + first : start + last] for first, last in spans]
    items = [item for item in items if item.lower() not in ("and", "or")]
    quoted = all(len(item) > 2 and not item[0].isalnum() for item in items)
    if not quoted:
        counted = match["times"] or match.groupdict().get("few")
        clear = match["end"] in ("", ".", ",", ";", "!", "?") or counted
        if not clear or any(not item[0].isalnum() or item.lower() in _NO_WORD for item in items):
            return []
    words = [
        item.strip("\"'`\u201c\u201d\u2018\u2019.,!?").strip() if quoted else item for item in items
    ]
    return [re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", word) for word in words if word]


def _frequencies(match: re.Match[str]) -> Iterator[tuple[int, str]]:
    number = {"once": 1, "twice": 2}.get(match["few"] or "") or _number(match["times"])
    if match["relation"] in RELATIONS:
        relation, more = RELATIONS[match["relation"]]
        yield number + more, relation
    else:
        yield number, "at least"
        yield number + 1, "less than"


_TEXTS = "answer|response|reply|text|story|poem|letter|message|e-?mail"
_OBJECT = rf"(?: (?:your|the)(?: (?:whole|entire))? (?:{_TEXTS})| it)?"
_THIS = r" with(?: exactly)?(?: (?:the|this)(?: exact)? (?:words?|phrase|sentence|line))?:?"
_HERE = rf"(?:^|[,;:] |\b(?:and|then|please|{_ANSWER} (?:must|should|has to|needs to)) )"
_STARTS = re.compile(rf"{_HERE}(?P<words>(?:start|begin){_OBJECT}{_THIS} (?P<phrase>{_QUOTED}+))")
_STOPS = re.compile(
    rf"{_HERE}(?P<words>(?:end|finish|conclude){_OBJECT}{_THIS} (?P<phrase>{_QUOTED}+))"
)


def _phrases(sentence: _Sentence) -> Iterator[Instruction]:
    """What the answer has to start or to end with, in quotation marks."""
    kinds = {
        _STARTS: ("combination:repeat_prompt", "prompt_to_repeat"),
        _STOPS: ("startend:end_checker", "end_phrase"),
    }
    for pattern, (kind, name) in kinds.items():
        match = pattern.search(sentence.text)
        if match and sentence.is_asked(match.start("words"), strictly=True):
            start, end = match.span("phrase")
            if phrase := sentence.written[start + 1 : end - 1].strip("`"):
                yield Instruction(_written(sentence, match, "words"), ((kind, {name: phrase}),))


def _written(sentence: _Sentence, match: re.Match[str], group: str | int = 0) -> str:
    return sentence.written[match.start(group) : match.end(group)]
