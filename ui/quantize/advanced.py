"""Every setting that is no plain choice, in sections that fold, with a search, and what differs from the preset.

The fields are generated from the settings' own help, unit and range, so that none can be forgotten. Folding, searching
and marking happen in the page (settings.js); the server says what differs, with the estimate that it draws anyway.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gradio as gr

from ui.quantize import render_settings
from upq.config import as_text

SCRIPT = Path(__file__).with_name("settings.js")
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


class Difference(NamedTuple):
    """A setting that is not as the preset has it, as text."""

    path: str
    preset: str
    chosen: str


def build(
    start: Mapping[str, dict[str, Any]], elsewhere: typing.Container[str], *, visible: bool = True
) -> dict[str, Any]:
    """Lay out the fields of all settings but those `elsewhere`; path -> component. Must be called inside a gr.Blocks.

    start: the settings as they are in the beginning, path -> value, type, help and range; visible: they can be changed.
    """
    fields: dict[str, Any] = {}
    with gr.Accordion("Advanced: every setting", open=False, visible=visible, elem_id="advanced"):
        gr.HTML(render_settings.search_box(), elem_id="settings-search")
        for section, title in SECTIONS.items():
            place = render_settings.section_id(section)
            gr.HTML(render_settings.section_head(title, place), elem_classes="settings-head")
            with gr.Column(elem_id=place, elem_classes="settings-section"):
                for path, spec in start.items():
                    if path not in elsewhere and path.rpartition(".")[0] == section:
                        fields[path] = _component(path, spec)
    return fields


def _component(path: str, spec: dict[str, Any]) -> Any:
    label = path.rpartition(".")[2].replace("_", " ")
    look: dict[str, Any] = {
        "label": label,
        "info": _info(spec),
        "elem_id": render_settings.field_id(path),
        "elem_classes": "setting",
    }
    kind, value = spec["type"], spec["value"]
    if kind is bool:
        return gr.Checkbox(value, **look)
    if typing.get_origin(kind) is Literal:
        return gr.Radio(list(typing.get_args(kind)), value=value, **look)
    if kind in (int, float):
        return gr.Number(value, precision=0 if kind is int else None, **look)
    return gr.Textbox(value or "", **look)


def _info(spec: dict[str, Any]) -> str:
    if spec["low"] is None:
        return spec["help"]
    bounds = (spec["low"], spec["high"])
    low, high = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in bounds)
    return f"{spec['help']} ({low} to {high})"


def differences(preset: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[Difference]:
    """The settings in which what is chosen differs from what the preset shows, in the order of the form.

    Both map paths to what a field shows; what is chosen need not be valid.
    """
    return [
        Difference(path, as_text(value), as_text(chosen[path]))
        for path, value in preset.items()
        if _shown(chosen[path]) != _shown(value)
    ]


def _shown(value: Any) -> Any:
    """A field that is empty holds "" or None."""
    return None if value == "" else value
