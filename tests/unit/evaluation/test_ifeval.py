"""Instruction checks: right verdicts with reasons, from the same seed the same, with no network."""

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nltk
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from if_verifiable.ifeval import INSTRUCTION_DICT, instructions_util

from tests.support.ifeval_cases import EXAMPLES, prompt_with
from upq.evaluation import builtin_suite, ifeval, ifeval_reasons, instruction_types
from upq.evaluation.ifeval import (
    ARGUMENTS,
    LANGUAGES,
    MAX_CHARACTERS,
    NEEDS_SENTENCE_DATA,
    CheckPrompt,
    judge,
)
from upq.evaluation.scores import totals
from upq.killable import Killable


@pytest.fixture(autouse=True, scope="module")
def sentence_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The smallest punkt model there is: no abbreviations, so each full stop ends a sentence."""
    folder = tmp_path_factory.mktemp("nltk_data")
    english = folder / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (english / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        use_sentence_data(patch, folder)
        yield
    ifeval._JUDGE.close()


def use_sentence_data(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Here, and in the process of the judge, which looks there when it starts."""
    patch.setattr(nltk.data, "path", [str(folder)])
    patch.setenv("NLTK_DATA", str(folder))
    ifeval._JUDGE.close()


def test_the_vocabulary_is_that_of_the_library() -> None:
    assert ARGUMENTS.keys() == INSTRUCTION_DICT.keys() == EXAMPLES.keys()
    assert instructions_util.LANGUAGE_CODES.keys() == LANGUAGES
    for instruction_id, (kwargs, *_) in EXAMPLES.items():
        checker = INSTRUCTION_DICT[instruction_id](instruction_id)
        checker.build_description(**kwargs)
        assert ARGUMENTS[instruction_id].keys() == set(checker.get_instruction_args_keys())


@pytest.mark.parametrize("instruction_id", EXAMPLES)
def test_each_type_passes_what_follows_and_fails_what_does_not(instruction_id: str) -> None:
    kwargs, following, failing, reason = EXAMPLES[instruction_id]
    prompt = prompt_with((instruction_id, kwargs))
    for seed in range(3):
        passed = judge(prompt, following, seed)
        assert (passed.strict, passed.loose) == (True, True)
        assert passed.verdicts[0].reason.startswith("found ")
        failed = judge(prompt, failing, seed)
        assert failed.strict is False
        assert failed.verdicts[0].reason == reason


def test_a_random_letter_is_named_in_the_reason_and_is_the_one_that_was_counted() -> None:
    kwargs = {"letter": "#", "let_frequency": 2, "let_relation": "at least"}
    drawn = set()
    for key in range(12):
        prompt = prompt_with(("keywords:letter_frequency", kwargs), key=key)
        verdict = judge(prompt, "aabcdefghijklmm").verdicts[0]
        match = re.search(r"the letter '(.)' (\w+) times?.*replaces '#'", verdict.reason)
        assert match
        assert verdict.strict == (match[1] in "am")
        drawn.add(match[1])
    assert len(drawn) > 1


def test_loose_forgives_a_first_line_and_asterisks_but_strict_does_not() -> None:
    prompt = prompt_with(("startend:quotation", {}), ("punctuation:no_comma", {}))
    result = judge(prompt, 'Sure, here it is:\n*"Ahoy!"*')
    assert [(v.strict, v.loose) for v in result.verdicts] == [(False, True), (False, True)]


def test_an_empty_answer_follows_nothing() -> None:
    for answer in ("", " \n\t", "<think>hm"):
        result = judge(prompt_with(("punctuation:no_comma", {})), answer)
        assert (result.strict, result.loose) == (False, False)
        assert result.verdicts[0].reason == "found an empty answer"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (prompt_with(("poetry:rhyme", {})), "'poetry:rhyme' is not known"),
        (prompt_with(("length_constraints:number_words", {"num_words": 3})), "lacks its argument"),
        (prompt_with(("keywords:existence", {"keywords": ["*sea"]})), "not a valid regular expr"),
        (prompt_with(("keywords:existence", {"keywords": []})), "must hold text"),
        (prompt_with(("keywords:existence", {"keywords": "sea"})), "must be a list of words"),
        (prompt_with(("punctuation:no_comma", {"n": 1})), "takes no argument 'n'"),
        (prompt_with(("language:response_language", {"language": "xx"})), "'xx' is not known"),
        (
            CheckPrompt(key=1, prompt="p", instruction_ids=("punctuation:no_comma",), kwargs=()),
            "1 instructions but 0 kwargs",
        ),
    ],
)
def test_a_malformed_item_has_no_verdict_and_says_why(prompt: CheckPrompt, reason: str) -> None:
    result = judge(prompt, "Fine.")
    assert (result.strict, result.loose) == (None, None)
    assert reason in result.verdicts[0].reason


def test_answers_beyond_the_checkers_means_have_no_verdict() -> None:
    too_long = judge(prompt_with(("punctuation:no_comma", {})), "x" * (MAX_CHARACTERS + 1))
    too_deep = judge(prompt_with(("detectable_format:json_format", {})), "[" * 15_000)
    assert (too_long.strict, too_deep.strict) == (None, None)
    assert "characters" in too_long.verdicts[0].reason
    assert "RecursionError" in too_deep.verdicts[0].reason


def test_a_prompt_without_instructions_counts_as_not_judged() -> None:
    assert judge(prompt_with(), "Fine.").strict is None


def test_verdicts_depend_on_neither_order_nor_global_random_state() -> None:
    ambiguous = "tot tot hallo no si la de papa mama"
    suite = builtin_suite()
    first = [judge(prompt, ambiguous) for prompt in suite]
    random.seed(99)
    state = random.getstate()
    second = [judge(prompt, ambiguous) for prompt in reversed(suite)]
    assert random.getstate() == state
    assert second[::-1] == first


def test_an_answer_without_a_language_is_followed_and_never_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    verdict = judge(prompt_with(("language:response_language", {"language": "de"})), "!!").verdicts[
        0
    ]
    assert (verdict.strict, caplog.messages) == (True, [])
    assert verdict.reason == "found no recognisable language (which counts as followed)"


@pytest.mark.parametrize("instruction_id", sorted(NEEDS_SENTENCE_DATA))
def test_types_without_their_sentence_data_are_unavailable(
    instruction_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kwargs, following, _, _ = EXAMPLES[instruction_id]
    with monkeypatch.context() as patch:
        use_sentence_data(patch, tmp_path)
        reasons = {name: reason for name, reason in instruction_types().items() if reason}
        result = judge(prompt_with((instruction_id, kwargs)), following)
    ifeval._JUDGE.close()
    assert reasons.keys() == NEEDS_SENTENCE_DATA
    assert (result.strict, result.loose) == (None, None)
    assert "punkt_tab" in result.verdicts[0].reason
    assert totals([result]).unavailable == 1


def test_only_the_declared_types_need_sentence_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        use_sentence_data(patch, tmp_path)
        for instruction_id in EXAMPLES.keys() - NEEDS_SENTENCE_DATA:
            kwargs, following, _, _ = EXAMPLES[instruction_id]
            assert judge(prompt_with((instruction_id, kwargs)), following).strict
    ifeval._JUDGE.close()


def test_all_types_are_available_with_sentence_data() -> None:
    assert list(instruction_types().values()) == [None] * 25


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=300))
@example("\ud800 lone surrogate")
@example("\x00")
@example("-" * 2000)
@example("<think></think>")
def test_no_text_makes_judging_raise_or_gives_an_empty_reason(text: str) -> None:
    everything = prompt_with(*((name, kwargs) for name, (kwargs, *_) in EXAMPLES.items()))
    result = judge(everything, text)
    assert len(result.verdicts) == 25
    assert all(verdict.reason for verdict in result.verdicts)
    assert not any(verdict.strict and not verdict.loose for verdict in result.verdicts)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aZ,.*-[] \n<>S1", max_size=80).filter(str.strip))
def test_the_counts_in_reasons_agree_with_the_verdicts(text: str) -> None:
    at_least = {"relation": "at least"}
    minimum = [
        ("length_constraints:number_words", at_least | {"num_words": 3}, 3),
        ("length_constraints:number_sentences", at_least | {"num_sentences": 2}, 2),
        ("detectable_content:number_placeholders", {"num_placeholders": 1}, 1),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, 2),
        ("detectable_format:multiple_sections", {"section_spliter": "S", "num_sections": 1}, 1),
        ("change_case:capital_word_frequency", EXAMPLES[min(NEEDS_SENTENCE_DATA)][0], 2),
    ]
    exact = [
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, 2),
        ("punctuation:no_comma", {}, 0),
    ]
    result = judge(prompt_with(*((name, kwargs) for name, kwargs, _ in minimum + exact)), text)
    for verdict, (_, _, wanted) in zip(result.verdicts, minimum + exact, strict=True):
        counted = verdict.reason.removeprefix("found ").split()[0]
        number = 0 if counted == "no" else int(counted)
        is_exact = verdict.instruction_id in {name for name, _, _ in exact}
        assert verdict.strict == (number == wanted if is_exact else number >= wanted), verdict


ENDLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "existence": ("keywords:existence", {"keywords": ["(a+)+b"]}),
    "forbidden words": ("keywords:forbidden_words", {"forbidden_words": ["(a+)+b"]}),
    "frequency": (
        "keywords:frequency", {"keyword": "(a+)+b", "frequency": 1, "relation": "at least"}
    ),
    "sections": (
        "detectable_format:multiple_sections", {"section_spliter": "(a+)+b", "num_sections": 1}
    ),
    "postscript": ("detectable_content:postscript", {"postscript_marker": "(a+)+b"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_pattern_without_end_is_not_judged_and_the_next_answer_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = Killable(Path(ifeval_reasons.__file__), "judge_text", 1.0)
    monkeypatch.setattr(ifeval, "_JUDGE", hasty)
    result = judge(prompt_with(ENDLESS[name]), "a" * 40)
    assert (result.strict, result.loose) == (None, None)
    assert (
        result.verdicts[0].reason == "the checker was stopped: it does not end within 1 s of work"
    )
    assert judge(prompt_with(("punctuation:no_comma", {})), "Fine.").strict
    hasty.close()


def test_a_pattern_that_takes_for_ever_to_be_understood_is_refused() -> None:
    pattern = "(?i)" + "[\\x01-\U0010ffff]" * 3000
    started = time.monotonic()
    result = judge(prompt_with(("keywords:existence", {"keywords": [pattern]})), "a")
    assert result.strict is None
    assert "does not end within 2 s of work" in result.verdicts[0].reason
    assert time.monotonic() - started < 60
