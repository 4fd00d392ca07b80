"""What a model is worth: fidelity to FP16, IFEval, MMLU, WikiText-2 and blind votes, with intervals and tests."""

from upq.evaluation.deck import Card, Showing, deal, deck_cards, drawn_pair
from upq.evaluation.endings import Ending
from upq.evaluation.fidelity import Reference
from upq.evaluation.ifeval import (
    CheckPrompt,
    PromptResult,
    Verdict,
    builtin_suite,
    ifeval_suite,
    instruction_types,
    judge,
)
from upq.evaluation.intervals import Share
from upq.evaluation.mmlu import LETTERS, Marked, Question, by_category, by_subject
from upq.evaluation.scores import by_type
from upq.evaluation.suite_data import local_copy
from upq.evaluation.votes import Pair, Tally, pairs_of, tallies, winner
from upq.evaluation.wikitext import read_chunk

__all__ = [
    "LETTERS",
    "Card",
    "CheckPrompt",
    "Ending",
    "Marked",
    "Pair",
    "PromptResult",
    "Question",
    "Reference",
    "Share",
    "Showing",
    "Tally",
    "Verdict",
    "builtin_suite",
    "by_category",
    "by_subject",
    "by_type",
    "deal",
    "deck_cards",
    "drawn_pair",
    "ifeval_suite",
    "instruction_types",
    "judge",
    "local_copy",
    "pairs_of",
    "read_chunk",
    "tallies",
    "winner",
]
