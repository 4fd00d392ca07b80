"""MMLU: the questions, the prompt, the sample, and letters scored as a naive forward pass scores them."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from upq.decode import TransformersEngine, engine_for
from upq.errors import UserError
from upq.evaluation import Marked, Question, Share, by_category, by_subject
from upq.evaluation.mmlu import CATEGORIES, Exam, compare, exam, letter_ids, macro, marks, micro
from upq.models import LoadedModel

ROOT = Path(__file__).parents[3]
UPQ_DATA = Path(os.environ.get("UPQ_DATA", ROOT.parent / "shared" / "data"))
PROMPT = """The following are multiple choice questions (with answers) about moral disputes.

Is it?
A. yes
B. no
C. both
D. neither
Answer: C

What is 1 + 1?
A. 1
B. 2
C. 3
D. 4
Answer:"""


def a_question(key: int, subject: str = "anatomy", answer: int = 0, text: str = "") -> Question:
    choices = ("1", "2", "3", "4")
    return Question(
        key=key,
        subject=subject,
        question=text or f"Number {key}?",
        choices=choices,
        answer=answer,
    )


def an_exam(*questions: Question) -> Exam:
    subjects = {one.subject for one in questions}
    return Exam(
        questions=questions,
        shots={name: tuple(a_question(at, name, at % 4) for at in range(2)) for name in subjects},
    )


def test_the_prompt_is_word_for_word_the_known_one() -> None:
    shot = Question(
        key=0,
        subject="moral_disputes",
        question="Is it? ",
        choices=("yes", "no", "both", "neither"),
        answer=2,
    )
    asked = a_question(0, "moral_disputes", text=" What is 1 + 1?\n")
    paper = Exam(questions=(asked,), shots={"moral_disputes": (shot,)})
    assert paper.prompt(asked) == PROMPT


def test_the_official_files_have_57_subjects_in_four_categories() -> None:
    path = UPQ_DATA / "mmlu_test.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in UPQ_DATA")
    paper = exam(path)
    counts = Counter(one.subject for one in paper.questions)
    assert sum(counts.values()) == 14_042
    assert sorted(counts) == sorted(name for names in CATEGORIES.values() for name in names)
    assert [len(one) for one in paper.shots.values()] == [5] * 57
    assert [len(one) for one in CATEGORIES.values()] == [19, 13, 12, 13]
    assert len(paper.sample(0, 0)) == 14_042
    sample = paper.sample(3, 0)
    assert Counter(one.subject for one in sample) == dict.fromkeys(counts, 3)
    assert sample == paper.sample(3, 0)
    assert sample != paper.sample(3, 1)


def test_a_sample_of_more_than_there_is_takes_all_in_order() -> None:
    questions = [a_question(key, name) for key in (2, 0, 1) for name in ("b", "a")]
    found = an_exam(*questions).sample(5, 0)
    assert [(one.subject, one.key) for one in found] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
        ("b", 1),
        ("b", 2),
    ]


@pytest.mark.parametrize("cls", [engine_for, TransformersEngine])
def test_letters_are_scored_as_one_forward_pass_scores_them(tiny: LoadedModel, cls: Any) -> None:
    tokenizer = tiny.tokenizer
    paper = an_exam(
        *(a_question(key, name) for key in range(3) for name in ("anatomy", "virology"))
    )
    questions = paper.sample(0, 0)
    stem, letters = letter_ids(tokenizer)
    expected = []
    for one in questions:
        ids = tokenizer(paper.prompt(one))["input_ids"] + stem
        with torch.no_grad():
            logits = tiny.model(input_ids=torch.tensor([ids])).logits[0, -1]
        expected.append(torch.log_softmax(logits.float(), -1)[letters])
    found = dict(marks(cls(tiny.model), tokenizer, paper, questions, range(6), lambda _: None))
    assert list(found) == list(range(6))
    for at, one in found.items():
        torch.testing.assert_close(torch.tensor(one.scores), expected[at], rtol=1e-3, atol=2e-2)
        assert (one.subject, one.key) == (questions[at].subject, questions[at].key)
    assert len({one.scores for one in found.values()}) == 6, "questions differ"


@pytest.mark.parametrize("cls", [engine_for, TransformersEngine])
def test_any_part_of_a_sample_gets_the_bits_of_the_whole(tiny: LoadedModel, cls: Any) -> None:
    paper = an_exam(
        *(a_question(key, name) for key in range(4) for name in ("anatomy", "virology"))
    )
    questions, engine = paper.sample(3, 0), cls(tiny.model)
    whole = dict(marks(engine, tiny.tokenizer, paper, questions, range(6), lambda _: None))
    for wanted in ([5], [1, 4], [2, 3, 5]):
        part = dict(marks(engine, tiny.tokenizer, paper, questions, wanted, lambda _: None))
        assert part == {at: whole[at] for at in wanted}


def test_a_prompt_beyond_the_context_keeps_its_end(tiny: LoadedModel) -> None:
    long = a_question(9, text="why " * 300)
    paper = an_exam(a_question(0), long)
    questions = paper.sample(0, 0)
    limit = tiny.model.config.max_position_embeddings
    assert len(tiny.tokenizer(paper.prompt(long))["input_ids"]) > limit
    stem, letters = letter_ids(tiny.tokenizer)
    ids = (tiny.tokenizer(paper.prompt(long))["input_ids"] + stem)[-limit:]
    with torch.no_grad():
        logits = tiny.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    ((_, found),) = marks(
        engine_for(tiny.model), tiny.tokenizer, paper, questions, [1], lambda _: None
    )
    expected = torch.log_softmax(logits, -1)[letters]
    torch.testing.assert_close(torch.tensor(found.scores), expected, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[" * 100_000,
        "[]",
        json.dumps({"subject": "a", "question": "\ud83d", "choices": ["1"] * 4, "answer": 0}),
        json.dumps({"subject": "a", "question": "q", "choices": ["1", "2", "3"], "answer": 0}),
        json.dumps({"subject": "a", "question": "q", "choices": ["1"] * 4, "answer": 4}),
        json.dumps({"subject": "a", "question": 1, "choices": ["1"] * 4, "answer": 0}),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    good = json.dumps({"subject": "a", "question": "q", "choices": ["1"] * 4, "answer": 0})
    (tmp_path / "mmlu_dev.jsonl").write_text(good)
    (tmp_path / "mmlu_test.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=r"Line 2 of mmlu_test\.jsonl"):
        exam(tmp_path / "mmlu_test.jsonl")


def test_missing_files_empty_files_and_missing_shots_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mmlu_test.jsonl"
    with pytest.raises(UserError, match=r"mmlu_test\.jsonl does not exist"):
        exam(path)
    row = {"subject": "a", "question": "q", "choices": ["1"] * 4, "answer": 0}
    path.write_text(json.dumps(row))
    (tmp_path / "mmlu_dev.jsonl").write_text("")
    with pytest.raises(UserError, match=r"mmlu_dev\.jsonl is empty"):
        exam(path)
    (tmp_path / "mmlu_dev.jsonl").write_text(json.dumps(row | {"subject": "b"}))
    with pytest.raises(UserError, match="no solved question of a"):
        exam(path)


def marked(key: int, subject: str, right: bool) -> Marked:
    scores = (0.0, -1.0, -1.0, -1.0) if right else (-1.0, 0.0, 0.0, -1.0)
    return Marked(key=key, subject=subject, answer=0, scores=scores)


def test_scores_match_a_hand_computed_example() -> None:
    results = [marked(at, "anatomy", at < 3) for at in range(4)]
    results += [marked(0, "virology", False), marked(1, "virology", True)]
    assert results[-2].choice == 1, "the first of two equal letters"
    assert micro(results) == Share(4, 6)
    assert by_subject(results) == {"anatomy": Share(3, 4), "virology": Share(1, 2)}
    assert by_category(results) == {"STEM": Share(3, 4), "other": Share(1, 2)}
    mean, (low, high) = macro(results)
    assert mean == (3 / 4 + 1 / 2) / 2
    half = 1.959964 * ((4 / 6 * 2 / 6 / 4 + 2 / 4 * 2 / 4 / 2) / 4) ** 0.5
    assert (low, high) == pytest.approx((mean - half, min(1, mean + half)))
    assert macro([]) == (0.0, (0.0, 1.0))


def test_models_are_compared_question_by_question() -> None:
    before = [marked(at, "anatomy", at < 4) for at in range(6)]
    after = [marked(at, "anatomy", at in (0, 4, 5)) for at in range(6)]
    after.append(marked(0, "virology", True))
    assert (compare(before, after).lost, compare(before, after).gained) == (3, 2)
    assert compare(before, after).pairs == 6
    assert replace(compare(before, after), lost=0, gained=0).p == 1.0


def test_a_marked_question_survives_json() -> None:
    one = Marked(key=1, subject="anatomy", answer=2, scores=(-0.1, -1 / 3, -2e-9, -7.0))
    assert Marked.from_json(json.loads(json.dumps(one.to_json()))) == one
