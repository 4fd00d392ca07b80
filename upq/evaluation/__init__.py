"""What a model is worth: fidelity to FP16, IFEval, MMLU and WikiText-2, with intervals and tests."""

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
from upq.evaluation.wikitext import read_chunk

__all__ = [
    "LETTERS",
    "CheckPrompt",
    "Ending",
    "Marked",
    "PromptResult",
    "Question",
    "Reference",
    "Share",
    "Verdict",
    "builtin_suite",
    "by_category",
    "by_subject",
    "by_type",
    "ifeval_suite",
    "instruction_types",
    "judge",
    "local_copy",
    "read_chunk",
]
