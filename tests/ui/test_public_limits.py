"""What strangers may ask for, and how often; what the environment may say of it."""

from __future__ import annotations

import pytest

from tests.support.visitors import ADA, BOB, SMOKE, code_of
from ui.public.limits import Limits
from upq.config import preset, with_settings
from upq.decode import Decoding


def test_a_preset_is_taken_as_it_is_but_for_model_method_and_seed() -> None:
    limits = Limits()
    for method in ("rtn", "upq", "portable_upq"):
        limits.judge_run(with_settings(preset("quick", method), {"seed": 5}))
    for path, value in (("int4.group_size", 128), ("device", "cpu"), ("measure.baselines", False)):
        assert code_of(limits.judge_run, with_settings(SMOKE, {path: value})) == "not_for_visitors"


def test_the_limits_come_from_the_environment() -> None:
    found = Limits.from_environment(
        {
            "UPQ_PUBLIC_MODELS": "bundled, owner/name",
            "UPQ_PUBLIC_PRESETS": "smoke",
            "UPQ_PUBLIC_TOKENS": "64",
            "UPQ_PUBLIC_DISK_GB": "2",
        }
    )
    assert found.models == ("bundled", "owner/name")
    assert (found.presets, found.tokens, found.disk_bytes) == (("smoke",), 64, 2 * 10**9)
    assert (found.runs, found.queue) == (1, 8)
    assert found.words[0] == (
        "Visitors quantize the bundled model or owner/name with preset smoke, 1 at a time;"
        " answers have up to 64 tokens."
    )
    assert "fill 2 GB" in found.words[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOKENS", "0"), ("QUEUE", "many"), ("RUNS", "-1"), ("PRESETS", "tiny"), ("MODELS", " , ")],
)
def test_a_limit_that_cannot_be_read_keeps_the_app_from_starting(name: str, value: str) -> None:
    environment = {f"UPQ_PUBLIC_{name}": value}
    assert code_of(Limits.from_environment, environment) == "bad_limit"


def test_answers_are_counted_for_each_visitor_over_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits, now = Limits(answers=2), 1000.0
    monkeypatch.setattr("ui.public.limits.time.monotonic", lambda: now)
    for visitor in (ADA, ADA, BOB):
        limits.judge_answer(visitor, Decoding())
    assert code_of(limits.judge_answer, ADA, Decoding()) == "too_fast"
    limits.judge_answer(BOB, Decoding())
    now += 61
    limits.judge_answer(ADA, Decoding())
