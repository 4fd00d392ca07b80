"""What a browser has kept of a form is read with distrust, and only what still fits is put back."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
import pytest

from ui.app_state import Offer
from ui.chat import composer
from ui.chat import draft as chat_draft
from ui.checks import form as checks_form
from ui.drafts import Draft, Found, found_in
from ui.quantize import form as run_form
from upq.config import PRESETS

FOR_VISITORS = Offer(("bundled",), ("smoke", "quick"), False, ("builtin",), 128)


def a_draft() -> Draft:
    fields = {
        "text": gr.Textbox(max_length=5),
        "choice": gr.Radio(["a", "b"]),
        "several": gr.CheckboxGroup(["a", "b"]),
        "on": gr.Checkbox(),
        "share": gr.Slider(0, 1),
        "number": gr.Number(),
    }
    return Draft("form", fields, list(fields.values()), lambda found: [])


def kept(values: Any, **more: Any) -> str:
    return json.dumps({"kept": values, **more})


GOOD = {"text": "hi", "choice": "b", "several": ["a"], "on": True, "share": 0.5, "number": 7}


def test_what_fits_comes_back_with_the_conversation_that_was_open() -> None:
    found = found_in(kept(GOOD, conversation="12"), a_draft(), {"tab": "chat"})
    assert (found.values, found.conversation) == (GOOD, "12")
    assert found.address == {"tab": "chat"}


@pytest.mark.parametrize(
    "name_and_value",
    [
        ("text", 3), ("text", "too long"), ("text", None), ("choice", "c"), ("choice", ["a"]),
        ("several", "a"), ("several", ["c"]), ("several", [["a"]]), ("on", 1), ("on", "true"),
        ("share", 2), ("share", -0.1), ("share", "0.5"), ("share", True), ("number", None),
        ("number", float("nan")), ("number", float("inf")), ("number", 10**400),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_left_out(name_and_value: tuple[str, Any]) -> None:
    name, value = name_and_value
    found = found_in(kept(GOOD | {name: value}), a_draft(), {})
    assert found.values == {key: good for key, good in GOOD.items() if key != name}


@pytest.mark.parametrize(
    "junk", [None, "", "{", "[]", "3", '{"kept": []}', '{"conversation": 5}', "[" * 100_000, 7]
)
def test_junk_is_nothing_at_all(junk: Any) -> None:
    assert found_in(junk, a_draft(), {}) == Found()


def test_a_link_wins_and_a_conversation_waits_for_its_own_settings() -> None:
    values = {"message": "hi", "mode": composer.AT_ONCE, "max_tokens": 64}
    plain = Found(values, values, "")
    assert chat_draft.to_restore(plain) == (values, {})

    def at(was: str, **address: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return chat_draft.to_restore(Found(values, values, was, address))

    assert at("", prompt="what?") == ({}, {})
    assert at("", prompt="what?", temperature="nonsense") == (values, {})
    without = {"message": "hi", "mode": composer.AT_ONCE}
    assert at("12", conversation="12") == (without, {"max_tokens": 64})
    assert at("11", conversation="12") == (without, {})
    assert at("12") == (values, {})


def shown(form: run_form.RunForm, values: dict[str, Any]) -> dict[str, Any]:
    """What the form's fields show after values were put back."""
    return run_form.put_back(form, values)


def test_a_run_is_put_back_with_what_was_changed_of_its_preset() -> None:
    with gr.Blocks():
        form = run_form.build()
    values = shown(form, {"model_kind": "hub", "model_text": "me/model", "preset": "smoke",
                          "method": "gptq", "data.max_rows": 7})  # fmt: skip
    assert (values["preset"], values["method"], values["data.max_rows"]) == ("smoke", "gptq", 7)
    assert values["model_text"] == gr.update(value="me/model", visible=True)
    usual = shown(form, {"preset": "smoke", "method": "gptq"})
    assert usual["data.max_rows"] != 7
    assert usual["model_text"] == gr.update(value="", visible=False)
    assert shown(form, {}) == {}


def test_of_a_preset_that_is_not_offered_only_the_model_is_put_back() -> None:
    with gr.Blocks():
        form = run_form.build()
    values = shown(form, {"model_kind": "path", "model_text": "/m", "method": "rtn", "seed": 5})
    assert (values["preset"], values["method"]) == ("quick", form.method.value)
    assert values["seed"] == 0
    assert values["model_kind"] == "path"


def test_a_check_is_put_back_with_an_amount_that_its_suite_has() -> None:
    with gr.Blocks():
        form, *_ = checks_form.lay_out(Offer())

    def restored(**values: Any) -> dict[str, Any]:
        found = found_in(kept(values), form.draft(), {})
        return dict(zip(vars(form), form.restored(found), strict=True))

    mmlu = restored(suite="mmlu", amount=9, tokens=64, precisions=["INT2"])
    assert (mmlu["amount"]["value"], mmlu["tokens"]["value"]) == (9, 64)
    assert mmlu["path"]["visible"]
    assert mmlu["precisions"] == ["INT2"]
    assert restored(suite="mmlu", amount=541)["amount"]["value"] == 5
    assert set(map(str, restored(amount=9).values())) == {str(gr.skip())}


def choices(component: Any) -> list[str]:
    return [value for _, value in component.choices]


def test_visitors_are_offered_what_they_may_have() -> None:
    with gr.Blocks():
        form = run_form.build(FOR_VISITORS)
        checks, *_ = checks_form.lay_out(FOR_VISITORS)
        box = composer.build(FOR_VISITORS)
    assert choices(form.preset) == ["smoke", "quick"]
    assert choices(form.model_kind) == ["bundled"]
    assert not form.data_source.visible
    assert choices(checks.suite) == ["builtin"]
    assert (checks.tokens.maximum, box.settings[1].maximum) == (128, 128)
    assert checks.tokens.value == box.settings[1].value == 128
    with gr.Blocks():
        mine = run_form.build()
    assert choices(mine.preset) == list(PRESETS)
    assert mine.data_source.visible


def test_a_form_of_chosen_models_makes_runs_of_them() -> None:
    offer = Offer(("bundled", "me/model"), ("smoke",), has_settings=False)
    with gr.Blocks():
        form = run_form.build(offer)
    values = {name: component.value for name, component in form.named.items()}
    assert run_form.config_of(form, list(values.values())).preset == "smoke"
    values["model_kind"] = "me/model"
    config = run_form.config_of(form, list(values.values()))
    assert config.model.source == "me/model"
    again = dict(zip(form.named, run_form.values_of(form, config), strict=False))
    assert again["model_kind"] == "me/model"
    assert again["model_text"] == gr.update(value="", visible=False)
