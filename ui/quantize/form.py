"""The form of a new run: plain choices first, every other setting of upq.config.schema below Advanced."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ui.app_state import PRIVATE, App, Offer
from ui.drafts import Draft, Found
from ui.html import BUNDLED_NAME, METHOD_NAMES, Html, parts
from ui.quantize import advanced, render, render_settings
from ui.quantize.advanced import Difference
from upq.config import (
    DEFAULT_METHOD,
    METHODS,
    PRESET_WORDS,
    PRESETS,
    RunConfig,
    command,
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
#: The choices of a model that the text beside them names.
NAMED_BY_TEXT = ("hub", "path")
USUAL_PRESET = "quick"
DATA_CHOICES = [("built-in prompts", "builtin"), ("hub dataset", "hub"), ("local file", "file")]
METHOD_LINES = {
    "rotated_upq": "Rotated UPQ, ours, best here: rotate, round so that errors cancel, train as UPQ does",
    "portable_upq": "Portable UPQ, ours, runs everywhere, KL 9 to 23 % higher: no rotation, llama.cpp's own formats",
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
        source = values["data_source"]
        shows_data = (
            gr.update(visible=source != "builtin") if isinstance(source, str) else gr.skip()
        )
        return [*(values[name] for name in self.named), shows_data]


def build(offer: Offer | None = None) -> RunForm:
    """Lay out the form with what it is to offer. Must be called inside a gr.Blocks."""
    offer = offer or Offer()
    first = USUAL_PRESET if USUAL_PRESET in offer.presets else offer.presets[0]
    start = dict(settings(preset(first)))
    models = MODEL_CHOICES if offer.models is None else list(map(_choice_of, offer.models))
    model_kind = gr.Radio(models, value=models[0][1], label="Model", elem_id="model-kind")
    model_text = gr.Textbox(
        visible=False,
        label="Hub id, folder or GGUF file",
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
        [(f"{name}: {PRESET_WORDS[name]}", name) for name in PRESETS if name in offer.presets],
        value=first,
        label="Preset",
        elem_classes="stacked",
        elem_id="preset",
    )
    data_source = gr.Radio(
        DATA_CHOICES, value="builtin", label="Training data", visible=offer.has_settings
    )
    with gr.Group(visible=False) as data_fields:
        fields = {
            path: gr.Textbox(start[path]["value"], label=label, info=start[path]["help"])
            for path, label in DATA_FIELDS.items()
        }
    form = RunForm(model_kind, model_text, method, preset_choice, data_source, data_fields, fields)
    form.fields.update(advanced.build(start, PLAIN, visible=offer.has_settings))
    model_kind.change(
        lambda kind: gr.update(visible=kind in NAMED_BY_TEXT),
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


def _choice_of(source: str) -> tuple[str, str]:
    """The choice of one model of a form that offers only some."""
    return (MODEL_CHOICES[0][0] if source == "bundled" else source), source


def config_of(form: RunForm, values: Sequence[Any]) -> RunConfig:
    """Return the form's values as a config. Raises UserError("bad_config")."""
    chosen = form.read(values)
    kind = chosen["model_kind"]
    source = (chosen["model_text"] or "").strip() if kind in NAMED_BY_TEXT else kind
    if not source:
        is_hub = kind == "hub"
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
    is_offered = source in [value for _, value in form.model_kind.choices]
    kind = source if is_offered else "path" if looks_local else "hub"
    text = gr.update(value="" if is_offered else source, visible=not is_offered)
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


def draft_of(form: RunForm, restored: gr.State) -> Draft:
    """Let the browser remember the form. restored: changes when it was put back. Must be called inside the page."""

    def restore(found: Found) -> list[Any]:
        values = put_back(form, found.values)
        return [*form.fill(values), time.time()] if values else [gr.skip()] * len(outputs)

    outputs = [*form.outputs, restored]
    return Draft("run", form.named, outputs, restore)


def put_back(form: RunForm, kept: dict[str, Any]) -> dict[str, Any]:
    """Return what each component shows for kept values, by name; nothing where there are none.

    Settings belong to a preset: of one that is not offered any more only the model is left.
    """
    model = {name: kept[name] for name in ("model_kind", "model_text") if name in kept}
    if not {"preset", "method"} <= kept.keys():
        kept = model
    if not kept:
        return {}
    name, method = kept.get("preset", form.preset.value), kept.get("method", form.method.value)
    kind = kept.get("model_kind", form.model_kind.value)
    usual = _shown(form, preset(name, method)) | {"model_kind": kind, "model_text": ""}
    values = usual | kept
    shows_text = kind in NAMED_BY_TEXT
    return values | {"model_text": gr.update(value=values["model_text"], visible=shows_text)}


def differences(form: RunForm, values: Sequence[Any]) -> list[Difference]:
    """Return the settings in which the form differs from its preset for its method; they need not be valid."""
    chosen = form.read(values)
    usual = _shown(form, preset(chosen["preset"], chosen["method"]))
    named = ("data_source", *form.fields)
    paths = {"data_source": "data.source"}
    return advanced.differences(
        {paths.get(name, name): usual[name] for name in named},
        {paths.get(name, name): chosen[name] for name in named},
    )


def reset(form: RunForm, path: str, values: Sequence[Any]) -> list[Any]:
    """Return values for `form.outputs` that put one setting back to the preset, or all (render_settings.ALL)."""
    chosen = form.read(values)
    if path == render_settings.ALL:
        model = chosen["model_kind"], chosen["model_text"]
        return preset_values(form, chosen["preset"], *model, chosen["method"])
    usual = _shown(form, preset(chosen["preset"], chosen["method"]))
    name = "data_source" if path == "data.source" else path
    if name not in usual:
        return [gr.skip() for _ in form.outputs]
    return form.fill({**dict.fromkeys(form.named, gr.skip()), name: usual[name]})


def config_of_run(values: dict[str, Any]) -> RunConfig:
    """Return the config that a run was started with."""
    return RunConfig.from_values(values)


def changes_html(form: RunForm, values: Sequence[Any]) -> Html:
    """Draw what the form changes of its preset, and the command line that does the same."""
    found = differences(form, values)
    chosen = form.read(values)
    try:
        line = command(config_of(form, values))
    except UserError:
        line = ""  # the estimate says what is wrong
    name = f"{METHOD_NAMES[chosen['method']]}, {chosen['preset']}"
    return render_settings.changes_panel(found, name, line)


def is_known(app: App, values: Sequence[Any]) -> bool:
    """Tell whether the estimate for these values is made already."""
    return app.shared.has(_estimate_key(app, values))


def looking(form: RunForm, values: Sequence[Any]) -> Html:
    """Say what is looked at before the estimate is there."""
    chosen = form.read(values)
    if chosen["model_kind"] == "hub" and (chosen["model_text"] or "").strip():
        words = f"Looks for {chosen['model_text'].strip()} on the hub."
        return parts.notice(
            "busy", words, "It has five seconds to answer; only the config is read."
        )
    return parts.notice("busy", "Looks at the model.")


def estimate_html(app: App, form: RunForm, values: Sequence[Any]) -> Html:
    """Draw time, memory and sizes of the run that the form describes, or what is wrong with it.

    Pages whose forms are alike ask at the same moment, when a run begins or ends, and share one answer.
    """
    try:
        return app.shared.get(_estimate_key(app, values), lambda: _estimated(app, form, values))
    except UserError as error:
        return parts.notice("failed", error.message, error.hint)


def _estimate_key(app: App, values: Sequence[Any]) -> tuple[Any, ...]:
    return ("estimate", tuple(map(repr, values)), app.store.latest_revision())


def _estimated(app: App, form: RunForm, values: Sequence[Any]) -> Html:
    asked = config_of(form, values)
    config = app.ready(asked)
    runs = app.store.runs(kind="quantize")  # a model of another size would mislead
    rates = measured_rates(run for run in runs if run.model == config.model.source)
    return render.estimate_panel(estimate(config, rates), savings(asked))


def start(app: App, form: RunForm, values: Sequence[Any]) -> int:
    """Queue the run that the form describes and return its id. Raises the UserErrors of upq.quantize.ready."""
    return app.store.enqueue(app.ready(config_of(form, values)))
