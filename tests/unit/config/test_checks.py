"""Check runs: what may be asked for, what is stored of it, and that older versions' configs are read back."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from upq.config import SUITES, TASKS, CheckConfig
from upq.errors import UserError
from upq.evaluation import scores, suites

ROOT = Path(__file__).parents[3]
CONFIG = CheckConfig(
    suite="mmlu", precisions=("INT2", "FP16"), run_id=7, model="bundled", path="/tmp/a", limit=3
)


def test_a_check_survives_json() -> None:
    assert CheckConfig.from_values(json.loads(json.dumps(CONFIG.to_values()))) == CONFIG


def test_a_check_is_stored_under_the_names_that_it_always_had() -> None:
    assert CONFIG.to_values() == {
        "suite": "mmlu",
        "precisions": ["INT2", "FP16"],
        "run_id": 7,
        "model": "bundled",
        "path": "/tmp/a",
        "limit": 3,
        "per_subject": 0,
        "max_tokens": 256,
        "seed": 0,
    }


def test_a_check_of_the_first_version_which_knew_no_subjects_is_read() -> None:
    stored = {
        "suite": "builtin",
        "path": None,
        "limit": 24,
        "max_tokens": 128,
        "seed": 0,
        "precisions": ["FP16", "INT4"],
        "run_id": 1,
        "model": "bundled",
    }
    config = CheckConfig.from_values(stored)
    assert (config.suite, config.limit, config.max_tokens) == ("builtin", 24, 128)
    assert (config.precisions, config.per_subject) == (("FP16", "INT4"), 0)


def test_an_unknown_suite_or_precision_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"suite is 'arc'; expected one of builtin, ifeval"
    ) as caught:
        replace(CONFIG, suite="arc")
    assert caught.value.code == "bad_suite"
    with pytest.raises(
        UserError, match="precision is 'INT3'; expected one of FP16, INT4"
    ) as caught:
        replace(CONFIG, precisions=("FP16", "INT3"))
    assert caught.value.code == "bad_precision"


def test_every_suite_can_be_put_to_a_model_and_read_back() -> None:
    assert suites.KINDS.keys() == scores.KINDS.keys() == set(SUITES)
    assert set(TASKS) - {"fidelity"} < set(SUITES)


def test_what_may_be_asked_for_is_known_without_torch() -> None:
    program = "import sys, upq.config; print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "set()\n", done.stdout + done.stderr
