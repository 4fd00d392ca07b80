"""Scores of MMLU: accuracy over questions and over subjects, with intervals, and the test between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from upq.evaluation.intervals import NORMAL_QUANTILE_95, Interval, Paired, Share, paired
from upq.evaluation.mmlu import CATEGORIES, Marked


def micro(results: Sequence[Marked]) -> Share:
    """Accuracy over questions, each counting once: what lm-eval reports."""
    return Share(sum(one.correct for one in results), len(results))


def by_subject(results: Sequence[Marked]) -> dict[str, Share]:
    """subject -> accuracy, by name."""
    names = sorted({one.subject for one in results})
    return {name: micro([one for one in results if one.subject == name]) for name in names}


def by_category(results: Sequence[Marked]) -> dict[str, Share]:
    """Category -> accuracy over its questions; a category without questions is left out."""
    found = {
        name: micro([one for one in results if one.subject in subjects])
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
    mean = sum(one.value for one in subjects) / len(subjects)
    smoothed = [((one.passed + 1) / (one.of + 2), one.of) for one in subjects]
    variance = sum(p * (1 - p) / n for p, n in smoothed) / len(subjects) ** 2
    half = NORMAL_QUANTILE_95 * math.sqrt(variance)
    return mean, (max(0.0, mean - half), min(1.0, mean + half))


def compare(before: Sequence[Marked], after: Sequence[Marked]) -> Paired:
    """McNemar's test over the questions that both models answered."""
    return paired(
        {(one.subject, one.key): one.correct for one in before},
        {(one.subject, one.key): one.correct for one in after},
    )
