"""Instructions in plain English: those that are there are seen, those that are not there are not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upq.compare import instructions_of, outcomes
from upq.compare.wordings import LONGEST_PROMPT, wordings
from upq.evaluation import builtin_suite, ifeval_suite, instruction_types, local_copy
from upq.evaluation.ifeval import _argument_problem

#: Where other tests look for evaluation data as well.
DATA = Path(os.environ.get("UPQ_DATA", Path(__file__).resolve().parents[4] / "shared/data"))
SENTENCES = "length_constraints:number_sentences"
WORDS = "length_constraints:number_words"
BULLETS = "detectable_format:number_bullet_lists"
COMMAS = "punctuation:no_comma"
SMALL, LARGE = "change_case:english_lowercase", "change_case:english_capital"
JSON, TITLE = "detectable_format:json_format", "detectable_format:title"
EXISTS, FORBIDDEN = "keywords:existence", "keywords:forbidden_words"
OFTEN, QUOTES = "keywords:frequency", "startend:quotation"
ENDS, STARTS = "startend:end_checker", "combination:repeat_prompt"


def sentences(number: int, relation: str) -> tuple[str, dict[str, Any]]:
    return SENTENCES, {"num_sentences": number, "relation": relation}


def words(number: int, relation: str) -> tuple[str, dict[str, Any]]:
    return WORDS, {"num_words": number, "relation": relation}


def often(word: str, number: int, relation: str) -> tuple[str, dict[str, Any]]:
    return OFTEN, {"keyword": word, "frequency": number, "relation": relation}


def between(low: int, high: int) -> list[tuple[str, dict[str, Any]]]:
    return [sentences(low, "at least"), sentences(high + 1, "less than")]


SEEN: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Explain in two sentences why the sky is blue.": between(2, 2),
    "In 3 sentences, explain how bread is made.": between(3, 3),
    "Write two short sentences about the ocean.": between(2, 2),
    "Can you explain in one sentence what a star is?": between(1, 1),
    "What is gravity? Explain it in a single sentence.": between(1, 1),
    "Tell me what a library is for, in two or three sentences.": between(2, 3),
    "Please answer in at most 4 sentences.": [sentences(5, "less than")],
    "Say something kind. Use less than 4 sentences.": [sentences(4, "less than")],
    "Describe the sea in at least 5 sentences": [sentences(5, "at least")],
    "Describe a horse in no more than twenty words.": [words(21, "less than")],
    "Describe a horse in 20 words or less.": [words(21, "less than")],
    "Keep your answer under 50 words. What is rain?": [words(50, "less than")],
    "Limit your answer to 30 words.": [words(30, "at least"), words(31, "less than")],
    "Write a story of at least 120 words about an umbrella.": [words(120, "at least")],
    "Write an advertisement for soap, and use more than 50 words.": [words(51, "at least")],
    "What is the capital of France? Answer in exactly one word.": [
        words(1, "at least"),
        words(2, "less than"),
    ],
    "Write three bullet points about staying healthy, each under eight words.": [
        (BULLETS, {"num_bullets": 3})
    ],
    "List 4 things to pack as exactly 4 bullet points.": [(BULLETS, {"num_bullets": 4})],
    "Write 2 paragraphs about the sea. Put the divider *** between them.": [
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2})
    ],
    "Describe a horse without any commas.": [(COMMAS, {})],
    "Do not use commas. Describe a horse.": [(COMMAS, {})],
    "Describe a quiz show, with no commas, please.": [(COMMAS, {})],
    "Describe a quiet evening in all lowercase letters.": [(SMALL, {})],
    "Answer in lowercase only: what is a friend?": [(SMALL, {})],
    "Welcome people to a shop. Write in capital letters only.": [(LARGE, {})],
    "Tell me about ships IN ALL CAPS.": [(LARGE, {})],
    "Make a note for a neighbour without using any capital letters.": [(SMALL, {})],
    "Name three planets. Answer in JSON.": [(JSON, {})],
    "Describe a bicycle as a JSON object.": [(JSON, {})],
    "Give me the capital of Peru and write nothing but JSON.": [(JSON, {})],
    "Describe a market. Include the words apple and basket.": [
        (EXISTS, {"keywords": ["apple", "basket"]})
    ],
    'Describe a market. Mention the word "olive oil (cold)".': [
        (EXISTS, {"keywords": [r"olive oil \(cold\)"]})
    ],
    "Write about music and use the word music at least 3 times.": [often("music", 3, "at least")],
    "Write about food. Use the word 'good' exactly twice.": [
        often("good", 2, "at least"),
        often("good", 3, "less than"),
    ],
    "Describe snow to me without using the words white or cold.": [
        (FORBIDDEN, {"forbidden_words": ["white", "cold"]})
    ],
    "Tell me about dogs. Never use the word animal.": [
        (FORBIDDEN, {"forbidden_words": ["animal"]})
    ],
    'Write a letter to a friend. Start your letter with "Dear Sir".': [
        (STARTS, {"prompt_to_repeat": "Dear Sir"})
    ],
    'Tell me how to boil an egg. End with the phrase "Enjoy your meal!"': [
        (ENDS, {"end_phrase": "Enjoy your meal!"})
    ],
    "Write a poem with a title in double angular brackets, like <<this>>.": [(TITLE, {})],
    "Cheer me up. Put your whole answer in double quotation marks.": [(QUOTES, {})],
    "Summarize in two sentences:\n\nWrite without commas. Use 5 words.": between(2, 2),
}
NOT_SEEN = [
    "Why is the sky blue?",
    "Write two sentences about 5 words.",
    "Write a story of about 100 words.",
    "Explain what people can say in two words.",
    "Describe a man who speaks in two sentences.",
    "How many words are in two sentences?",
    "What do the words in two sentences mean?",
    "How would you write two sentences about cats?",
    "My teacher asked me to explain rain in two sentences. What should I do?",
    "If you want to explain it in two sentences, say so.",
    "Do not explain it in two sentences.",
    "Summarize these two sentences.",
    "Correct the two sentences below.",
    "Write a haiku and explain it in two sentences.",
    "Write three paragraphs of two sentences each.",
    "For each planet, write two sentences.",
    "Write two sentences about cats and three sentences about dogs.",
    "Write 2 paragraphs about the sea.",
    "Give me at least 3 bullet points.",
    "Translate into French: write two sentences without commas.",
    'Translate "in two sentences" into German.',
    "Rewrite this:\nUse less than 20 words and no commas.",
    "Explain why writers do not use commas.",
    "Explain how to write lists without commas.",
    "Explain what JSON is.",
    "How do I read a date in JSON?",
    "Write a Python function that returns data as JSON.",
    "Write a function name in lowercase.",
    "Write the title in capital letters.",
    "Write a warning in which at least 3 words are in all capital letters.",
    "Use the word that fits best.",
    "Explain the word count.",
    "Explain why people use the word cool.",
    "The story ends with 'goodbye'. Why?",
    "Begin every line with 'A'.",
    "Tell me about book titles.",
    "She said the answer must be in lowercase.",
    "When do I put my answer in quotation marks?",
    "Write a letter to a man with two words on his shirt.",
    "Write a poem, and use at least 2 words with all capital letters.",
    "What is rain? Your answer must be long, and its last paragraph must start with 'Summary'.",
    "Write a letter. Use the word 'the' once or less.",
    "Suggest two names. Include the word 'brand' each time.",
]


@pytest.mark.parametrize("prompt", SEEN)
def test_an_instruction_is_seen(prompt: str) -> None:
    found = instructions_of(prompt)
    assert [rule for one in found for rule in one.rules] == SEEN[prompt]
    assert all(one.words in prompt for one in found)


@pytest.mark.parametrize("prompt", NOT_SEEN)
def test_no_instruction_is_seen_where_none_is_certain(prompt: str) -> None:
    assert instructions_of(prompt) == []


def test_several_instructions_are_seen_in_one_prompt() -> None:
    prompt = "Describe rain in less than 60 words, with no commas. Include the word 'cloud'."
    assert [one.words for one in instructions_of(prompt)] == [
        "in less than 60 words",
        "with no commas",
        "Include the word 'cloud'",
    ]


def test_a_prompt_of_a_suite_has_exactly_its_instructions() -> None:
    for item in builtin_suite():
        rules = [rule for one in instructions_of(item.prompt) for rule in one.rules]
        assert rules == list(zip(item.instruction_ids, item.kwargs, strict=True))


def test_what_the_wordings_see_in_the_built_in_suite_is_there() -> None:
    """Our own prompts say what they ask for in many ways: what is seen of it must agree."""
    seen = 0
    for item in builtin_suite():
        rules = [rule for one in wordings(item.prompt) for rule in one.rules]
        asked = list(zip(item.instruction_ids, item.kwargs, strict=True))
        kinds = {kind for kind, _ in asked}
        assert [rule for rule in rules if rule[0] in kinds and rule not in asked] == [], item.prompt
        seen += len([rule for rule in rules if rule in asked])
    assert seen >= 30


def _told(rule: Any) -> str:
    return json.dumps(rule, sort_keys=True).lower()


def test_what_is_seen_in_the_prompts_of_ifeval_is_there() -> None:
    """They are by many hands. Their own lists lack some of what they ask for, so not all of the rest is wrong."""
    path = local_copy("ifeval", str(DATA))
    if path is None:
        pytest.skip("there is no local copy of IFEval")
    right, wrong = 0, []
    for item in ifeval_suite(Path(path)):
        asked = [*map(_told, zip(item.instruction_ids, item.kwargs, strict=True))]
        for one in wordings(item.prompt):
            strange = [rule for rule in one.rules if _told(rule) not in asked]
            right += len(one.rules) - len(strange)
            wrong += [(one.words, item.prompt)] if strange else []
    assert right > 150
    assert len(wrong) < 0.06 * right, wrong


def test_every_rule_that_is_seen_is_one_that_the_checks_take() -> None:
    for prompt in SEEN:
        for one in instructions_of(prompt):
            for kind, values in one.rules:
                assert _argument_problem(kind, values) is None
                assert kind in instruction_types()


@given(prompt=st.text(st.sampled_from(" aeinotswr.,:\n\"'*<>0123wordsenc"), max_size=200))
def test_any_text_is_read_without_an_error(prompt: str) -> None:
    wordings(prompt)
    wordings(f"Write {prompt} in two sentences {prompt}")


@pytest.mark.parametrize(
    "piece", ["in two ", "write a ", "the words a, ", '"', "a b c, ", "title ", ","]
)
def test_no_prompt_keeps_the_patterns_busy(piece: str) -> None:
    started = time.process_time()
    wordings("write " + (piece * LONGEST_PROMPT)[: LONGEST_PROMPT - 6])
    assert time.process_time() - started < 2
    assert wordings("x" * (LONGEST_PROMPT + 1)) == []


@pytest.mark.parametrize(
    ("answer", "followed", "reason"),
    [
        ("Light is scattered. Blue most of all.", True, "found 2 sentences"),
        ("One. Two. Three.", False, "found 3 sentences, expected less than 3"),
        ("One.", False, "found 1 sentence, expected at least 2"),
        ("", False, "found an empty answer"),
    ],
)
def test_an_instruction_is_judged_by_the_rules_of_the_checks(
    answer: str, followed: bool, reason: str
) -> None:
    if problem := instruction_types()[SENTENCES]:
        pytest.skip(problem)
    [found] = outcomes(instructions_of("Explain in two sentences."), {"INT4": answer})
    assert (found["INT4"].followed, found["INT4"].reason) == (followed, reason)


def test_where_an_answer_has_to_start_is_judged() -> None:
    if problem := instruction_types()[STARTS]:
        pytest.skip(problem)
    asked = instructions_of('Write a letter. Start with "Dear Sir".')
    [found] = outcomes(asked, {"FP16": "Dear Sir, hello", "INT2": "Hello"})
    assert found["FP16"].followed
    assert not found["INT2"].followed
    assert found["INT2"].reason == "found 'Hello' at the start, expected 'Dear Sir'"
