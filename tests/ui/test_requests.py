"""Each argument of an endpoint has a type and a range; whatever else comes is refused in one sentence that names it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from ui.api import ENDPOINTS
from ui.requests import (
    LARGEST,
    MAX_MESSAGE,
    Chat,
    Question,
    Request,
    RunChecks,
    RunStatus,
    StartRun,
)
from upq.decode import Decoding
from upq.errors import UserError

CHECK: dict[str, Any] = {"run_id": 1, "precisions": ["FP16"]}
CHAT: dict[str, Any] = {"run_id": 1, "precision": "FP16", "message": "hi"}
RUN_ID = "expected a whole number from 0 to 9223372036854775807."
TEXT = "expected text of at most 20,000 characters."


@pytest.mark.parametrize(
    ("request_type", "values", "sentence"),
    [
        (RunStatus, {"run_id": 2**63}, f"run_id is 9223372036854775808; {RUN_ID}"),
        (RunStatus, {"run_id": [1]}, f"run_id is [1]; {RUN_ID}"),
        (RunStatus, {"run_id": {"path": "x"}}, f"run_id is {{'path': 'x'}}; {RUN_ID}"),
        (RunStatus, {"run_id": True}, f"run_id is True; {RUN_ID}"),
        (RunStatus, {"run_id": "1"}, f"run_id is '1'; {RUN_ID}"),
        (RunStatus, {"run_id": math.nan}, f"run_id is nan; {RUN_ID}"),
        (RunStatus, {"run_id": -1}, f"run_id is -1; {RUN_ID}"),
        (RunStatus, {}, f"run_id is missing; {RUN_ID}"),
        (RunStatus, {"run_id": 1, "id": 2}, "There is no argument 'id'; expected run_id."),
        (
            RunChecks,
            CHECK | {"amount": -1},
            "amount is -1; expected a whole number from 0 to 10000.",
        ),
        (
            RunChecks,
            CHECK | {"max_tokens": 0},
            "max_tokens is 0; expected a whole number from 1 to 8192.",
        ),
        (
            RunChecks,
            CHECK | {"max_tokens": 1e9},
            "max_tokens is 1000000000.0; expected a whole number from 1 to 8192.",
        ),
        (RunChecks, CHECK | {"seed": -1}, f"seed is -1; {RUN_ID}"),
        (RunChecks, CHECK | {"seed": 2**70}, f"seed is {2**70}; {RUN_ID}"),
        (
            RunChecks,
            CHECK | {"precisions": ["FP16", "INT3"]},
            "precisions is ['FP16', 'INT3']; expected a list of FP16, INT4, INT2.",
        ),
        (
            RunChecks,
            CHECK | {"precisions": None},
            "precisions is None; expected a list of FP16, INT4, INT2.",
        ),
        (
            RunChecks,
            CHECK | {"suite": 5},
            "suite is 5; expected one of builtin, ifeval, mmlu, wikitext2.",
        ),
        (Chat, CHAT | {"message": None}, f"message is None; {TEXT}"),
        (Chat, CHAT | {"message": 5}, f"message is 5; {TEXT}"),
        (
            Chat,
            CHAT | {"message": "x" * (MAX_MESSAGE + 1)},
            f"message has 20,001 characters; {TEXT}",
        ),
        (
            Chat,
            CHAT | {"message": "\ud83d"},
            f"message holds half of a character (a lone surrogate); {TEXT}",
        ),
        (Chat, CHAT | {"message": " \n"}, "The message is empty."),
        (Chat, CHAT | {"system": None}, f"system is None; {TEXT}"),
        (
            Chat,
            CHAT | {"precision": "INT3"},
            "precision is 'INT3'; expected one of FP16, INT4, INT2.",
        ),
        (
            Chat,
            CHAT | {"max_tokens": 1.5},
            "max_tokens is 1.5; expected a whole number from 1 to 8192.",
        ),
        (Chat, CHAT | {"seed": 1.5}, f"seed is 1.5; {RUN_ID}"),
        (
            Chat,
            CHAT | {"temperature": math.nan},
            "temperature is nan; expected a number from 0 to 5.",
        ),
        (
            Chat,
            CHAT | {"temperature": True},
            "temperature is True; expected a number from 0 to 5.",
        ),
        (Chat, CHAT | {"top_p": 0}, "top_p is 0; expected a number from 0.01 to 1."),
        (
            StartRun,
            {"preset": ["quick"]},
            "preset is ['quick']; expected one of smoke, quick, overnight, lease, standard, paper.",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_does(
    request_type: type[Request], values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        request_type.of(values)
    assert caught.value.message == sentence


def test_a_long_value_is_quoted_in_short() -> None:
    for value in (["x" * 5000] * 5000, 10**4000, {"x" * 5000: "x" * 5000}):
        with pytest.raises(UserError) as caught:
            RunStatus.of({"run_id": value})
        assert len(caught.value.message) < 800


def test_an_argument_too_many_is_refused_and_missing_ones_take_their_defaults() -> None:
    with pytest.raises(UserError, match=r"Too many values, 2; expected run_id\."):
        RunStatus.at([1, 2])
    with pytest.raises(UserError, match=r"Too many values, 3; expected none\."):
        ENDPOINTS["list_runs"].request.at([0, 0, 0])
    assert StartRun.at([]) == StartRun(
        model="bundled", method="rotated_upq", preset="quick", settings_json="{}"
    )
    assert RunChecks.at([3, "ifeval"]).amount == 60


def test_a_number_without_a_fraction_is_a_whole_one() -> None:
    asked = RunChecks.of({"run_id": 1.0, "amount": 3.0, "seed": LARGEST})
    assert (asked.run_id, asked.amount, asked.seed) == (1, 3, LARGEST)
    assert type(asked.amount) is int


def test_a_question_is_trimmed_and_says_how_it_is_decoded() -> None:
    asked = Question.at([" hi\n", "be brief", 8, 1, 0.5, 7])
    assert asked.message == "hi"
    assert asked.decoding == Decoding(max_new_tokens=8, temperature=1.0, top_p=0.5, seed=7)


def test_every_argument_of_every_endpoint_has_a_range_and_a_meaning() -> None:
    for endpoint in ENDPOINTS.values():
        for name, field in endpoint.request.model_fields.items():
            assert field.description
            assert re.search(" (of|from) ", endpoint.request.expected(name)), name
