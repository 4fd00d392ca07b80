"""Suites and scores: rows are vetted, our prompts say what they check, the sums are right."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from if_verifiable.ifeval import instructions_util

from upq.errors import UserError
from upq.evaluation import PromptResult, Share, Verdict, builtin_suite, by_type, ifeval_suite
from upq.evaluation.ifeval import ARGUMENTS, NEEDS_SENTENCE_DATA, CheckPrompt, judge
from upq.evaluation.intervals import Paired
from upq.evaluation.mmlu import exam
from upq.evaluation.scores import Totals, compare, totals
from upq.evaluation.wikitext import joined_text

ROOT = Path(__file__).parents[3]
UPQ_DATA = Path(os.environ.get("UPQ_DATA", ROOT.parent / "shared" / "data"))


def result_with(key: int, *pairs: tuple[bool | None, bool | None]) -> PromptResult:
    verdicts = (
        Verdict(instruction_id=f"type:{index}", strict=strict, loose=loose, reason="")
        for index, (strict, loose) in enumerate(pairs)
    )
    return PromptResult(key=key, response="", verdicts=tuple(verdicts))


def run_python(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_import_suite_and_judging_never_touch_the_network(tmp_path: Path) -> None:
    program = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("network attempted")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from upq.evaluation import ifeval, scores
from upq.errors import UserError
results = [ifeval.judge(prompt, "Hello there, friend.") for prompt in ifeval.builtin_suite()]
assert scores.totals(results).prompt_strict.of > 50
assert "if_verifiable.ifbench" not in sys.modules  # it downloads on import
try:
    ifeval.ifeval_suite()
except UserError as error:
    sys.stdout.write(error.code)
"""
    folder = str(tmp_path)
    done = run_python(program, {"HF_HUB_OFFLINE": "1", "HF_HOME": folder, "NLTK_DATA": folder})
    assert (done.returncode, done.stdout) == (0, "offline"), done.stderr


def test_without_the_library_every_type_is_unavailable_and_nothing_breaks() -> None:
    program = """
import sys
sys.modules["if_verifiable"] = None
from upq.evaluation import ifeval, scores
results = [ifeval.judge(prompt, "Hello.") for prompt in ifeval.builtin_suite()]
assert all("Python 3.11" in (reason or "") for reason in ifeval.instruction_types().values())
score = scores.totals(results).row()
sys.stdout.write(f"{score['n']} {score['n_instructions']} {score['unavailable'] > 64}")
"""
    done = run_python(program, {})
    assert (done.returncode, done.stdout) == (0, "0 0 True"), done.stderr


def test_the_builtin_suite_covers_every_type_twice_and_is_judged() -> None:
    suite = builtin_suite()
    assert len(suite) >= 64
    assert len({prompt.prompt for prompt in suite}) == len(suite)
    counts = Counter(name for prompt in suite for name in prompt.instruction_ids)
    assert counts.keys() == ARGUMENTS.keys()
    assert min(counts.values()) >= 2
    for verdict in (v for prompt in suite for v in judge(prompt, "Hello, friend.").verdicts):
        needs_data = verdict.instruction_id in NEEDS_SENTENCE_DATA
        assert verdict.strict is not None or (needs_data and "punkt_tab" in verdict.reason)


def test_the_builtin_prompts_state_what_their_arguments_check() -> None:
    for prompt in builtin_suite():
        text = prompt.prompt.lower()
        for arguments in prompt.kwargs:
            for name, value in arguments.items():
                if name == "language":
                    assert instructions_util.LANGUAGE_CODES[value].lower() in text
                elif name == "num_paragraphs" or name.startswith(("num_", "let_f", "capital_f")):
                    assert re.search(rf"\b{value}\b", text), (prompt.key, name)
                elif name not in ("nth_paragraph", "frequency"):
                    values = value if isinstance(value, list) else [value]
                    assert all(item.lower() in text for item in values), (prompt.key, name)


def test_some_builtin_prompts_can_be_followed_in_full() -> None:
    answers = {
        26: "* It is fun.\n* You learn.",
        60: "* a pot\n* a pan\n* a knife\n* a spoon",
        64: '{"name": "France", "capital": "Paris"}',
        70: "GOOD MORNING TO ALL OF YOU AND HAVE A WONDERFUL DAY MY DEAR NEIGHBOURS",
        75: "A quick quiz about quaint queens.",
    }
    suite = {prompt.key: prompt for prompt in builtin_suite()}
    for key, answer in answers.items():
        assert judge(suite[key], answer).strict, (suite[key].prompt, judge(suite[key], answer))


def test_the_official_file_loads_and_is_judged_quickly() -> None:
    path = UPQ_DATA / "ifeval_input_data.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in UPQ_DATA")
    suite = ifeval_suite(path)
    start = time.monotonic()
    results = [judge(prompt, "Here is a short answer.") for prompt in suite]
    assert time.monotonic() - start < 60
    score = totals(results)
    assert (len(results), score.instruction_strict.of + score.unavailable) == (541, 834)
    assert score.unavailable in (0, 77)  # 77 instructions need NLTK's sentence data
    assert by_type(results)["punctuation:no_comma"] == Share(66, 66)


ROW = {
    "key": 7,
    "prompt": "Describe the sea.",
    "instruction_id_list": ["length_constraints:number_words"],
    "kwargs": [{"num_words": 5, "relation": "at least", "language": None}],
}


def test_a_local_suite_may_hold_nulls_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW | {"key": 8}) + "\n")
    first, second = ifeval_suite(path)
    assert first.kwargs == ({"num_words": 5, "relation": "at least"},)
    assert (first.key, second.key) == (7, 8)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "Expecting property name"),
        ("[1]", "not a JSON object"),
        (json.dumps(ROW), "key 7 is already that of line 1"),
        (json.dumps(ROW | {"key": "8"}), "key is missing or not of type int"),
        (json.dumps(ROW | {"key": 8, "prompt": " "}), "no prompt text"),
        (json.dumps(ROW | {"key": 8, "kwargs": []}), "1 instructions but 0 kwargs"),
        (json.dumps(ROW | {"key": 8, "kwargs": [None]}), "kwargs objects"),
        (json.dumps(ROW | {"key": 8, "kwargs": [{}]}), "lacks its argument 'num_words'"),
        (json.dumps(ROW | {"key": 8, "instruction_id_list": ["a:b"]}), "'a:b' is not known"),
        (
            json.dumps(ROW | {"key": 8, "kwargs": [{"num_words": 5, "relation": "over"}]}),
            "relation must be one of",
        ),
        (
            json.dumps(ROW | {"key": 8, "kwargs": [{"num_words": True, "relation": "at least"}]}),
            "num_words must be a whole number",
        ),
        (
            json.dumps(ROW | {"key": 8, "kwargs": [{"num_words": -1, "relation": "at least"}]}),
            "must not be negative",
        ),
        ("[" * 100_000, "recursion"),
        (json.dumps(ROW | {"prompt": "\ud83d"}), "half of a character"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line_number(
    tmp_path: Path, line: str, problem: str
) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + line + "\n")
    with pytest.raises(UserError) as raised:
        ifeval_suite(path)
    assert raised.value.code == "bad_suite"
    assert raised.value.message.startswith("Line 3 of suite.jsonl ")
    assert problem in raised.value.message


@pytest.mark.parametrize("read", [ifeval_suite, exam, joined_text])
def test_a_suite_is_a_file_of_utf_8(read: Callable[[Path], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"key": 1}\n{"key": "\xfc"}')
    words = {
        "/dev/zero": "zero is a device",
        "pipe.jsonl": "pipe.jsonl is a device, a pipe",
        ".": "is a folder",
        "latin.jsonl": "latin.jsonl, line 2, byte 0xFC",
    }
    for name, expected in words.items():
        with pytest.raises(UserError) as raised:
            read(tmp_path / name)
        assert (raised.value.code, expected in raised.value.message) == ("bad_suite", True), name


def test_a_byte_order_mark_before_a_suite_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode())
    assert [prompt.prompt for prompt in ifeval_suite(path)] == [ROW["prompt"]]
    path.write_bytes(b"\xef\xbb\xbfone line")
    assert joined_text(path) == "one line"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\xfa\n"])
def test_a_missing_empty_or_binary_suite_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "suite.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        ifeval_suite(path)
    assert raised.value.code == "bad_suite"
    assert "suite.jsonl" in raised.value.message


def test_totals_and_types_match_a_hand_computed_example() -> None:
    results = [
        result_with(1, (True, True)),
        result_with(2, (True, True), (False, True)),
        result_with(3, (False, False), (True, True)),
        result_with(4, (True, True), (None, None)),
    ]
    found = totals(results)
    assert found == Totals(
        prompt_strict=Share(1, 3),
        prompt_loose=Share(2, 3),
        instruction_strict=Share(4, 6),
        instruction_loose=Share(5, 6),
        unavailable=1,
    )
    assert by_type(results) == {"type:0": Share(3, 4), "type:1": Share(1, 2)}
    row = found.row()
    assert (row["prompt_strict"], row["n"], row["n_instructions"]) == (1 / 3, 3, 6)
    assert (row["prompt_loose_low"], row["prompt_loose_high"]) == Share(2, 3).interval


def test_totals_of_nothing_promise_nothing() -> None:
    row = totals([]).row()
    assert (row["n"], row["prompt_strict"]) == (0, 0.0)
    assert (row["prompt_strict_low"], row["prompt_strict_high"]) == (0.0, 1.0)


def test_two_models_are_compared_prompt_by_prompt_without_the_unjudged() -> None:
    yes, no, unknown = (True, True), (False, True), (None, None)
    before = [
        result_with(key, verdict)
        for key, verdict in enumerate((yes, yes, no, no, unknown, yes, yes))
    ]
    after = [
        result_with(key, verdict) for key, verdict in enumerate((yes, no, yes, no, yes, unknown))
    ]
    after.append(result_with(9, yes))
    assert compare(before, after) == Paired(lost=1, gained=1, pairs=4)
    assert compare(before, after, "loose") == Paired(lost=0, gained=0, pairs=4)


def test_a_result_survives_json() -> None:
    prompt = CheckPrompt(
        key=1, prompt="p", instruction_ids=("punctuation:no_comma", "a:b"), kwargs=({}, {})
    )
    result = judge(prompt, "Bonjour, \u2028 là")
    assert PromptResult.from_json(json.loads(json.dumps(result.to_json()))) == result
