"""The form of a new run: plain choices first, every other setting of upq.config.schema below Advanced.

The advanced fields are generated from the settings' own help, unit and range, so the form cannot
forget one.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gradio as gr

from ui.app_state import PRIVATE, App
from ui.html import BUNDLED_NAME, METHOD_NAMES, Html, parts
from ui.quantize import render
from upq.config import (
    DEFAULT_METHOD,
    METHODS,
    PRESET_WORDS,
    PRESETS,
    RunConfig,
    preset,
    settings,
    with_settings,
)
from upq.errors import UserError
from upq.quantize.estimate import estimate, measured_rates
from upq.quantize.ready import savings

MODEL_CHOICES = [
    (f"Bundled: {BUNDLED_NAME}", "bundled"),
    ("Hugging Face hub id", "hub"),
    ("Path on this machine", "path"),
]
DATA_CHOICES = [("built-in prompts", "builtin"), ("hub dataset", "hub"), ("local file", "file")]
METHOD_LINES = {
    "rotated_upq": "Rotated UPQ, ours, best here: rotate, round so that errors cancel, train as UPQ does",
    "portable_upq": "Portable UPQ, ours, runs everywhere: the same without rotation, in llama.cpp's own formats",
    "upq": "UPQ: train INT4 block by block, from it INT2, then distill",
    "efficientqat": "EfficientQAT: train block by block, then only the scales of the whole",
    "unisvq": "UniSVQ: rotate, round so that errors cancel, tune vectors around the weights",
    "gptq": "GPTQ: round so that errors cancel; no training",
    "rtn": "RTN: round every weight on its own; the baseline",
}
DATA_FIELDS = {
    "data.path": "Dataset id or file",
    "data.split": "Split",
    "data.prompt_column": "Prompt column",
    "data.answer_column": "Answer column",
    "data.messages_column": "Messages column",
    "data.text_column": "Text column",
}
PLAIN = ("method", "preset", "model.source", "data.source", *DATA_FIELDS)
SECTIONS = {
    "": "Run",
    "model": "Model",
    "data": "Data",
    "int4": "INT4",
    "int4.blockwise": "INT4 block-wise",
    "int4.distill": "INT4 end to end",
    "int2": "INT2",
    "int2.blockwise": "INT2 block-wise",
    "int2.distill": "INT2 end to end",
    "measure": "Measure",
}


@dataclass
class RunForm:
    """The form's components. fields holds the component of each setting by the setting's path."""

    model_kind: gr.Radio
    model_text: gr.Textbox
    method: gr.Radio
    preset: gr.Radio
    data_source: gr.Radio
    data_fields: gr.Group
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, Any]:
        """The components that hold a value, by name; those of `fields` by their paths."""
        return {
            "model_kind": self.model_kind,
            "model_text": self.model_text,
            "method": self.method,
            "preset": self.preset,
            "data_source": self.data_source,
            **self.fields,
        }

    @property
    def inputs(self) -> list[Any]:
        """The components whose values `read` takes."""
        return list(self.named.values())

    @property
    def outputs(self) -> list[Any]:
        """The components that `fill` has values for."""
        return [*self.inputs, self.data_fields]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the values of `inputs` by name."""
        return dict(zip(self.named, values, strict=True))

    def fill(self, values: dict[str, Any]) -> list[Any]:
        """Return named values in the order of `outputs`.

        The fields that describe the data are shown where the data are not the built-in prompts.
        """
        shows_data = gr.update(visible=values["data_source"] != "builtin")
        return [*(values[name] for name in self.named), shows_data]


def build() -> RunForm:
    """Lay out the form. Must be called inside a gr.Blocks."""
    start = dict(settings(preset("quick")))
    model_kind = gr.Radio(MODEL_CHOICES, value="bundled", label="Model", elem_id="model-kind")
    model_text = gr.Textbox(
        visible=False,
        show_label=False,
        container=False,
        placeholder="owner/name, or a folder or GGUF file",
        elem_id="model-text",
    )
    method = gr.Radio(
        [(METHOD_LINES[name], name) for name in METHODS],
        value=DEFAULT_METHOD,
        label="Method",
        elem_classes="stacked",
        elem_id="method",
    )
    preset_choice = gr.Radio(
        [(f"{name}: {PRESET_WORDS[name]}", name) for name in PRESETS],
        value="quick",
        label="Preset",
        elem_classes="stacked",
        elem_id="preset",
    )
    data_source = gr.Radio(DATA_CHOICES, value="builtin", label="Training data")
    with gr.Group(visible=False) as data_fields:
        fields = {
            path: gr.Textbox(start[path]["value"], label=label, info=start[path]["help"])
            for path, label in DATA_FIELDS.items()
        }
    form = RunForm(model_kind, model_text, method, preset_choice, data_source, data_fields, fields)
    with gr.Accordion("Advanced: every setting", open=False, elem_id="advanced"):
        for section, title in SECTIONS.items():
            gr.HTML(parts.section_title(title))
            members = {
                path: spec
                for path, spec in start.items()
                if path not in PLAIN and path.rpartition(".")[0] == section
            }
            form.fields.update({path: _component(path, spec) for path, spec in members.items()})
    model_kind.change(
        lambda kind: gr.update(visible=kind != "bundled"),
        model_kind,
        model_text,
        **PRIVATE,
    )
    data_source.change(
        lambda source: gr.update(visible=source != "builtin"),
        data_source,
        data_fields,
        **PRIVATE,
    )
    return form


def _component(path: str, spec: dict[str, Any]) -> Any:
    label = path.rpartition(".")[2].replace("_", " ")
    info, kind, value = _info(spec), spec["type"], spec["value"]
    if kind is bool:
        return gr.Checkbox(value, label=label, info=info)
    if typing.get_origin(kind) is Literal:
        return gr.Radio(list(typing.get_args(kind)), value=value, label=label, info=info)
    if kind in (int, float):
        digits = 0 if kind is int else None
        return gr.Number(value, label=label, info=info, precision=digits)
    return gr.Textbox(value or "", label=label, info=info)


def _info(spec: dict[str, Any]) -> str:
    if spec["low"] is None:
        return spec["help"]
    bounds = (spec["low"], spec["high"])
    low, high = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in bounds)
    return f"{spec['help']} ({low} to {high})"


def config_of(form: RunForm, values: Sequence[Any]) -> RunConfig:
    """Return the form's values as a config. Raises UserError("bad_config")."""
    chosen = form.read(values)
    source = (chosen["model_text"] or "").strip()
    if chosen["model_kind"] == "bundled":
        source = "bundled"
    if not source:
        is_hub = chosen["model_kind"] == "hub"
        what = "hub id, e.g. owner/name" if is_hub else "folder or GGUF file"
        raise UserError("bad_config", f"The model is empty; expected a {what}.")
    changes = {
        "method": chosen["method"],
        "model.source": source,
        "data.source": chosen["data_source"],
        **{path: chosen[path] for path in form.fields},
    }
    return with_settings(preset(chosen["preset"], chosen["method"]), changes)


def values_of(form: RunForm, config: RunConfig) -> list[Any]:
    """Return what to show for a config: values for `form.outputs`."""
    return form.fill(_shown(form, config))


def _shown(form: RunForm, config: RunConfig) -> dict[str, Any]:
    """Return what each component shows for a config, by name."""
    known = {path: spec["value"] for path, spec in settings(config)}
    source = config.model.source
    looks_local = source.startswith(("/", ".", "~")) or source.endswith(".gguf")
    kind = "bundled" if source == "bundled" else "path" if looks_local else "hub"
    text = gr.update(value="" if kind == "bundled" else source, visible=kind != "bundled")
    return {
        "model_kind": kind,
        "model_text": text,
        "method": config.method,
        "preset": config.preset,
        "data_source": config.data.source,
        **{path: "" if known[path] is None else known[path] for path in form.fields},
    }


def preset_values(
    form: RunForm, name: str, model_kind: str, model_text: str, method: str
) -> list[Any]:
    """Return values for the settings that a preset and a method stand for; the chosen model stays."""
    model = {"model_kind": model_kind, "model_text": model_text}
    return form.fill(_shown(form, preset(name, method)) | model)


def config_of_run(values: dict[str, Any]) -> RunConfig:
    """Return the config that a run was started with."""
    return RunConfig.from_values(values)


def estimate_html(app: App, form: RunForm, values: Sequence[Any]) -> Html:
    """Draw time, memory and sizes of the run that the form describes, or what is wrong with it.

    Pages whose forms are alike ask at the same moment, when a run begins or ends, and share one answer.
    """
    key = ("estimate", tuple(map(repr, values)), app.store.latest_revision())
    try:
        return app.shared.get(key, lambda: _estimated(app, form, values))
    except UserError as error:
        return parts.notice("failed", error.message, error.hint)


def _estimated(app: App, form: RunForm, values: Sequence[Any]) -> Html:
    asked = config_of(form, values)
    config = app.ready(asked)
    runs = app.store.runs(kind="quantize")  # a model of another size would mislead
    rates = measured_rates(run for run in runs if run.model == config.model.source)
    return render.estimate_panel(estimate(config, rates), savings(asked))


def start(app: App, form: RunForm, values: Sequence[Any]) -> int:
    """Queue the run that the form describes and return its id. Raises the UserErrors of upq.quantize.ready."""
    return app.store.enqueue(app.ready(config_of(form, values)))


def start_words(app: App, run_id: int) -> str:
    """Tell that a run has started, or its place in the queue."""
    position = app.store.queue_position(run_id)
    busy = app.is_busy()
    method = METHOD_NAMES[app.store.run(run_id).method]
    if position <= 1 and not busy:
        return f"Run #{run_id} ({method}) started."
    return f"Run #{run_id} ({method}): queued #{position}."
