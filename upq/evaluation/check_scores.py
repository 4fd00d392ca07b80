"""Scores of instruction checks: IFEval's four shares, their intervals, and what changed between two models."""

from __future__ import annotations

from collections.abc import Iterable

from upq.evaluation.intervals import Share


def _share(outcomes: Iterable[bool | None]) -> Share:
    judged = [one for one in outcomes if one is not None]
    return Share(sum(judged), len(judged))
