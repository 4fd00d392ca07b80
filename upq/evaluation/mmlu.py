"""MMLU (Hendrycks et al., 2021): multiple-choice questions of 57 subjects, five solved ones before each.

The prompt is that of lm-eval's task `mmlu`: plain text without a chat template, five shots from the subject's dev
split, and the answer is the letter with the highest log-probability behind "Answer:". All questions of a subject share
their shots, which are read once.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from upq.decode import Engine, Reader, diverged, shared_length
from upq.errors import UserError
from upq.evaluation.intervals import NORMAL_QUANTILE_95, Interval, Paired, Share, paired
from upq.evaluation.suite_data import hub_rows, read_suite_file
from upq.files import is_whole
from upq.models import longest_sequence

HUB_DATASET = "cais/mmlu"
LETTERS = "ABCD"
# fmt: off
CATEGORIES = {
    "STEM": (
        "abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry",
        "college_computer_science", "college_mathematics", "college_physics", "computer_security",
        "conceptual_physics", "electrical_engineering", "elementary_mathematics",
        "high_school_biology", "high_school_chemistry", "high_school_computer_science",
        "high_school_mathematics", "high_school_physics", "high_school_statistics",
        "machine_learning",
    ),
    "humanities": (
        "formal_logic", "high_school_european_history", "high_school_us_history",
        "high_school_world_history", "international_law", "jurisprudence", "logical_fallacies",
        "moral_disputes", "moral_scenarios", "philosophy", "prehistory", "professional_law",
        "world_religions",
    ),
    "social sciences": (
        "econometrics", "high_school_geography", "high_school_government_and_politics",
        "high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology",
        "human_sexuality", "professional_psychology", "public_relations", "security_studies",
        "sociology", "us_foreign_policy",
    ),
    "other": (
        "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging",
        "management", "marketing", "medical_genetics", "miscellaneous", "nutrition",
        "professional_accounting", "professional_medicine", "virology",
    ),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Question:
    """key: its place within its subject, as the source orders them; answer: index of the right choice."""

    key: int
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The test questions in the source's order, and the solved questions of each subject."""

    questions: tuple[Question, ...]
    shots: Mapping[str, tuple[Question, ...]]

    def sample(self, per_subject: int, seed: int) -> list[Question]:
        """Questions grouped by subject, subjects by name: all (0), or so many of each subject, drawn by the seed."""
        ordered = sorted(self.questions, key=lambda question: (question.subject, question.key))
        chosen: list[Question] = []
        for subject, group in groupby(ordered, key=_subject):
            own = list(group)
            count = min(per_subject or len(own), len(own))
            drawn = random.Random(f"{seed}-{subject}").sample(range(len(own)), count)
            chosen += [own[at] for at in sorted(drawn)]
        return chosen

    def prompt(self, question: Question) -> str:
        """Everything up to "Answer:"."""
        name = question.subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {name}."
        solved = [f"{_asked(shot)} {LETTERS[shot.answer]}" for shot in self.shots[question.subject]]
        return "\n\n".join([head, *solved, _asked(question)])


@dataclass(frozen=True, kw_only=True)
class Marked:
    """One question answered. scores: log-probabilities of the letters, up to one constant for all four."""

    key: int
    subject: str
    answer: int
    scores: tuple[float, ...]

    @property
    def choice(self) -> int:
        """Index of the most likely letter, the first where two are equal."""
        return self.scores.index(max(self.scores))

    @property
    def correct(self) -> bool:
        """Whether that is the right letter."""
        return self.choice == self.answer

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"scores": list(self.scores)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Marked:
        return cls(**{**data, "scores": tuple(data["scores"])})


def _subject(question: Question) -> str:
    return question.subject


def _asked(question: Question) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=True)]
    return "\n".join([question.question.strip(), *lines, "Answer:"])


def exam(path: Path | None = None) -> Exam:
    """MMLU from mmlu_test.jsonl with mmlu_dev.jsonl beside it, else from the hub.

    A line has subject, question, choices (four) and answer (0 to 3). Raises UserError: bad_suite, offline.
    """
    if path is None:
        splits = [list(hub_rows(HUB_DATASET, split, "all")) for split in ("test", "dev")]
        test, dev = (_questions(rows, HUB_DATASET) for rows in splits)
    else:
        files = path, path.with_name(path.name.replace("test", "dev"))
        test, dev = (_questions(_rows(file), file.name) for file in files)
    shots = {
        subject: tuple(group) for subject, group in groupby(sorted(dev, key=_subject), key=_subject)
    }
    if missing := sorted(set(map(_subject, test)) - shots.keys()):
        raise UserError("bad_suite", f"The dev split has no solved question of {missing[0]}.")
    return Exam(questions=tuple(test), shots=shots)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_suite_file(path).rstrip("\n").split("\n"), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_row(number, path.name) from error
        yield row


def _bad_row(number: int, source: str) -> UserError:
    message = f"Line {number} of {source} is not an MMLU question."
    hint = "Each line needs subject, question, choices (four texts) and answer (0 to 3)."
    return UserError("bad_suite", message, hint)


def _questions(rows: Iterable[Any], source: str) -> list[Question]:
    made: list[Question] = []
    places: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if not _is_question(row):
            raise _bad_row(number, source)
        key = places[row["subject"]] = places.get(row["subject"], -1) + 1
        made.append(
            Question(
                key=key,
                subject=row["subject"],
                question=row["question"],
                choices=tuple(row["choices"]),
                answer=row["answer"],
            )
        )
    if not made:
        raise UserError("bad_suite", f"{source} holds no questions.")
    return made


def _is_question(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("choices"), list):
        return False
    texts = [row.get("subject"), row.get("question"), *row["choices"]]
    return (
        len(texts) == 2 + len(LETTERS)
        and all(isinstance(text, str) and is_whole(text) for text in texts)
        and type(row.get("answer")) is int
        and 0 <= row["answer"] < len(LETTERS)
    )


def letter_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """(tokens that all four letters begin with behind "Answer:", the last token of each letter).

    What all four share cannot change which is most likely. Raises UserError("bad_suite") where a letter needs more.
    """
    start = len(tokenizer("Answer:")["input_ids"])
    letters = [tokenizer(f"Answer: {letter}")["input_ids"][start:] for letter in LETTERS]
    stem = letters[0][: shared_length(letters)]
    if any(len(ids) != len(stem) + 1 for ids in letters):
        raise UserError(
            "bad_suite",
            "This model's tokenizer does not write the letters A to D as one token each.",
            "MMLU cannot be scored by letter with it.",
        )
    return stem, [ids[-1] for ids in letters]


def marks(
    engine: Engine,
    tokenizer: Any,
    paper: Exam,
    questions: Sequence[Question],
    wanted: Sequence[int],
    check: Callable[[int], None],
) -> Iterator[tuple[int, Marked]]:
    """(position, marked question) for each wanted position of `questions`, which are grouped by subject.

    check(tokens read so far) is called before each question and may raise.
    """
    stem, letters = letter_ids(tokenizer)
    longest = longest_sequence(engine.config)
    reader, read, chosen = Reader(engine), 0, set(wanted)
    for _, group in groupby(enumerate(questions), key=lambda item: item[1].subject):
        own = dict(group)
        if chosen.isdisjoint(own):
            continue
        # The shots that are read once depend on the whole sample, so that a resumed run computes what a whole one does.
        ids = {
            at: (tokenizer(paper.prompt(question), verbose=False)["input_ids"] + stem)[-longest:]
            for at, question in own.items()
        }
        shared = min(shared_length(ids.values()), min(map(len, ids.values())) - 1)
        for at in sorted(chosen & own.keys()):
            check(read)
            scores = torch.log_softmax(reader.logits(ids[at], shared=shared)[-1], -1)[letters]
            if not scores.isfinite().all():
                raise diverged(engine, ids[at])
            read += len(ids[at]) - shared
            question = own[at]
            yield (
                at,
                Marked(
                    key=question.key,
                    subject=question.subject,
                    answer=question.answer,
                    scores=tuple(scores.tolist()),
                ),
            )


def micro(results: Sequence[Marked]) -> Share:
    """Accuracy over questions, each counting once: what lm-eval reports."""
    return Share(sum(result.correct for result in results), len(results))


def by_subject(results: Sequence[Marked]) -> dict[str, Share]:
    """subject -> accuracy, by name."""
    names = sorted({result.subject for result in results})
    return {name: micro([result for result in results if result.subject == name]) for name in names}


def by_category(results: Sequence[Marked]) -> dict[str, Share]:
    """Category -> accuracy over its questions; a category without questions is left out."""
    found = {
        name: micro([result for result in results if result.subject in subjects])
        for name, subjects in CATEGORIES.items()
    }
    return {name: share for name, share in found.items() if share.of}


def macro(results: Sequence[Marked]) -> tuple[float, Interval]:
    """Accuracy over subjects, each counting once, and its 95 % interval: the normal one for a stratified mean.

    A subject's variance is that of (right + 1) / (all + 2), so that a few questions, all right, are not taken for
    certainty. 0, and 0 to 1, without results.
    """
    subjects = by_subject(results).values()
    if not subjects:
        return 0.0, (0.0, 1.0)
    mean = sum(share.value for share in subjects) / len(subjects)
    smoothed = [((share.passed + 1) / (share.of + 2), share.of) for share in subjects]
    variance = sum(p * (1 - p) / n for p, n in smoothed) / len(subjects) ** 2
    half = NORMAL_QUANTILE_95 * math.sqrt(variance)
    return mean, (max(0.0, mean - half), min(1.0, mean + half))


def compare(before: Sequence[Marked], after: Sequence[Marked]) -> Paired:
    """McNemar's test over the questions that both models answered."""
    return paired(
        {(result.subject, result.key): result.correct for result in before},
        {(result.subject, result.key): result.correct for result in after},
    )
