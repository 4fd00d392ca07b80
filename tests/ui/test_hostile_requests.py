"""Searches for arguments that an endpoint neither answers rightly nor refuses in one sentence, or that it hangs at.

The same examples every time, in about half a minute: many go straight to what the queue calls, a few the whole way by
HTTP to an app that really runs. Beside them each argument has odd values alone, the others being sound. The test marked
slow goes on for longer. What the searches found stands in tests/ui/test_gate.py, as a case of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.test_hostile_input import JSON
from tests.support.conversations import content, exchange
from tests.ui.open_app import Answer, OpenApp
from ui.api import ENDPOINTS
from ui.requests import Request
from upq.config import METHODS, PRECISIONS, PRESETS, SUITES
from upq.export import FORMATS

#: Texts of the kinds that paths, names, settings and messages have.
ODD_TEXTS = [
    "", " ", "\0", "~", ".", "/", "..", "/dev/zero", "/proc/self/mem", "a/b", "a//b", "http://127.0.0.1:9/x",
    "[" * 9000, "a" * 5000, "9" * 5000, "<|im_end|>", "\ud83d", '{"seed": NaN}', '{"seed": -1}', '{"data": {}}',
    '{"data.max_rows": 1e99}', '{"model.source": []}', '{"int2.distill.tokens": "' + "9" * 5000 + '"}',
    '{"\\ud83d": 1}', '{"a": [[]]}',
]  # fmt: skip
TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=12) | st.sampled_from(
    ODD_TEXTS
)
#: Objects that Gradio takes for a file of its own, one to fetch, or one with missing or wrong parts.
FILES = st.fixed_dictionaries(
    {"path": TEXTS | JSON, "meta": st.just({"_type": "gradio.FileData"}) | JSON}, optional={"url": TEXTS | JSON}
)  # fmt: skip
NUMBERS = st.integers(-2, 9) | st.floats() | st.sampled_from([2**31, 2**63 - 1, 2**63, 2**70])
HOSTILE = JSON | FILES | NUMBERS | TEXTS | st.lists(FILES, max_size=2)
#: Values of which most are right, so that the argument beside them decides.
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "run_id": st.integers(0, 2),
    "method": st.sampled_from(METHODS),
    "preset": st.sampled_from(PRESETS),
    "suite": st.sampled_from(SUITES),
    "precision": st.sampled_from(PRECISIONS),
    "format": st.sampled_from([form.key for form in FORMATS]),
    "precisions": st.lists(st.sampled_from(PRECISIONS), max_size=4),
    "message": TEXTS,
    "system": TEXTS,
    "model": TEXTS | st.just("bundled"),
    "path": TEXTS,
    "name": TEXTS,
    "note": TEXTS,
    "answer_of": st.sampled_from(PRECISIONS),
    "repetition_penalty": st.floats(1, 2),
    "search": TEXTS,
    "limit": st.integers(1, 9),
    "conversation": st.integers(1, 3),
    "settings_json": TEXTS
    | st.dictionaries(
        st.sampled_from(["seed", "data.max_rows", "int2.start", "x"]) | TEXTS, HOSTILE, max_size=3
    ).map(json.dumps),
    "amount": st.integers(0, 10_000),
    "max_tokens": st.integers(1, 12),
    "temperature": st.floats(0, 5),
    "top_p": st.floats(0.01, 1),
    "seed": st.integers(0, 2**63 - 1),
}
#: A sentence and perhaps its hint: no lines of Python, none of its types and none of its ways to complain.
SENTENCES = re.compile(r"[^\n]{4,900}[.?!]")
PYTHON = re.compile(
    r"Traceback|Error\b(?!s)|NoneType|object has no|Unexpected|internal_error|0x[0-9a-f]{6}"
)


def arguments_of(request: type[Request]) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments by name: most of the right kind, some anything, some missing."""
    drawn = {
        name: st.booleans().flatmap(lambda right, name=name: RIGHT[name] if right else HOSTILE)
        | RIGHT[name]
        for name in request.model_fields
    }
    needed = {name for name, field in request.model_fields.items() if field.is_required()}
    return st.fixed_dictionaries(
        {name: drawn[name] for name in needed},
        optional={name: drawn[name] for name in drawn if name not in needed},
    )


def in_order(request: type[Request], asked: Any) -> list[Any]:
    """Arguments by place; what stands behind a missing one has to go."""
    if isinstance(asked, list):
        return asked
    return [asked[name] for name in takewhile(asked.__contains__, request.model_fields)]


def is_right(name: str, answer: Answer) -> bool:
    """Tell whether these are results of the endpoint."""
    *_, last = answer.results or [None]
    if name == "chat":
        return isinstance(last, dict) and last["done"] and 0 < last["tokens"] <= 8192
    kinds = {"start_run": dict, "run_status": dict, "run_checks": dict, "list_runs": list}
    kinds |= {"list_exports": list, "make_export": dict}
    kinds |= {"list_conversations": dict, "conversation": dict, "compare": dict, "votes": list}
    return len(answer.results) == 1 and isinstance(last, kinds.get(name, str))


def fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Tell whether what is published of an argument allows a value."""
    if "enum" in schema:
        return isinstance(value, str) and value in schema["enum"]
    if schema["type"] == "array":
        return isinstance(value, list) and all(fits(schema["items"], one) for one in value)
    if schema["type"] == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_within = is_number and schema["minimum"] <= value <= schema["maximum"]
    return is_within and (schema["type"] == "number" or value == int(value))


def may_answer(request: type[Request], asked: Mapping[str, Any] | list[Any]) -> bool:
    """Tell whether all arguments are there, none is too many, and each is as it is published."""
    schema = request.model_json_schema()
    names = list(request.model_fields)
    if isinstance(asked, list):
        if len(asked) > len(names):
            return False
        asked = dict(zip(names, asked, strict=False))
    return set(schema.get("required", ())) <= asked.keys() <= set(names) and all(
        fits(schema["properties"][name], value) for name, value in asked.items()
    )


def judge(app: OpenApp, name: str, answer: Answer, may_answer: bool) -> None:
    if answer.refusal is None:
        assert may_answer, "what its published range excludes is refused"
        assert is_right(name, answer), answer
    else:
        assert SENTENCES.fullmatch(answer.refusal), answer.refusal
        assert not PYTHON.search(answer.refusal), answer.refusal
        assert orjson.dumps(answer.refusal), "what cannot be sent would leave the client waiting"
    leftovers = app.leftovers()
    assert leftovers == []


def search(app: OpenApp, name: str, count: int, by_http: bool) -> None:
    request = ENDPOINTS[name].request
    by_name = arguments_of(request) | st.dictionaries(TEXTS, HOSTILE, max_size=2)
    by_place = st.lists(HOSTILE, max_size=len(request.model_fields) + 1)

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(by_name | by_name | by_place)
    def answered(asked: Any) -> None:
        if by_http and isinstance(asked, dict):
            answer = app.call(name, asked, by_name=True)
        elif by_http:
            answer = app.call(name, {"data": asked})
        else:
            asked = in_order(request, asked)
            answer = app.ask(name, asked)
        judge(app, name, answer, may_answer(request, asked))

    answered()


#: Arguments that are answered, those beside them being as they are when nothing is said of them.
SOUND: dict[str, Any] = {
    "run_id": 1, "precision": "INT4", "message": "Hi", "max_tokens": 2, "preset": "smoke", "method": "rtn",
    "format": FORMATS[0].key, "conversation": 1,
}  # fmt: skip
#: Values of every kind; no argument may have most of them.
ODD_VALUES = [
    None, True, {}, [], [1], ["FP16"], [["FP16"]], "", "1", "fp16", -1, 0.5, 2**63, 2**70, float("nan"), float("inf"),
]  # fmt: skip


def odd_values(schema: Mapping[str, Any]) -> list[Any]:
    """Values for an argument: of every kind, just beyond its range, and any text where it takes text."""
    values = [*ODD_VALUES, "a" * (schema.get("maxLength", 0) + 1)]
    if "minimum" in schema:
        values += [schema["minimum"] - 1, schema["maximum"] + 1, [schema["minimum"]]]
    return values + (ODD_TEXTS if "maxLength" in schema else [])


@pytest.mark.parametrize("name", ENDPOINTS)
def test_one_odd_argument_beside_sound_ones_breaks_no_endpoint(
    open_app: OpenApp, name: str
) -> None:
    request = ENDPOINTS[name].request
    fields = request.model_fields
    sound = [SOUND.get(argument, field.default) for argument, field in fields.items()]
    open_app.store.conversations.save(content(exchange("why?")))
    assert open_app.ask(name, sound).refusal is None
    tried = [sound, [*sound, 1]]
    for place, argument in enumerate(fields):
        values = odd_values(request.model_json_schema()["properties"][argument])
        tried += [[*sound[:place], value, *sound[place + 1 :]] for value in values]
    for values in tried:
        judge(open_app, name, open_app.ask(name, values), may_answer(request, values))


#: Examples of each endpoint that takes many arguments, of the others, and of each by HTTP.
EXAMPLES = {"start_run": 30, "chat": 80, "run_checks": 80}
USUAL, BY_HTTP = 40, 5


@pytest.mark.parametrize("name", ENDPOINTS)
def test_no_argument_breaks_or_hangs_an_endpoint(open_app: OpenApp, name: str) -> None:
    search(open_app, name, EXAMPLES.get(name, USUAL), by_http=False)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_no_request_by_http_breaks_or_hangs_an_endpoint(open_app: OpenApp, name: str) -> None:
    search(open_app, name, BY_HTTP, by_http=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ENDPOINTS)
def test_no_argument_breaks_or_hangs_it_in_a_longer_search(open_app: OpenApp, name: str) -> None:
    search(open_app, name, 20 * EXAMPLES.get(name, USUAL), by_http=False)
    search(open_app, name, 20 * BY_HTTP, by_http=True)
