"""Which form each layer has, and which layers INT2 keeps wide when bits are left for them."""

from __future__ import annotations

import pytest

from upq.config import Precision, RunConfig, preset, with_settings
from upq.layers import Form, grid_of
from upq.quantize.forms import forms_of
from upq.quantize.mixed import affordable

WIDTHS = {"narrow": 576, "wide": 1536, "kept": 576}


def config(**changes: object) -> RunConfig:
    return with_settings(preset("quick", "portable_upq"), dict(changes))


def test_gguf_is_q2_k_where_its_blocks_fit_and_signed_elsewhere() -> None:
    forms = forms_of(config(), Precision.INT2, WIDTHS)
    assert forms.of("wide") == Form(grid_of("q2_k", 2), 16)
    assert forms.of("narrow") == Form(grid_of("signed", 2), 64)


def test_a_layer_that_is_kept_has_int4s_form_in_int2_and_nowhere_else() -> None:
    for precision in (Precision.INT2, Precision.INT4):
        forms = forms_of(config(), precision, WIDTHS, {"kept"})
        assert forms.of("kept") == Form(grid_of("signed", 4), 32)


def test_without_choices_all_layers_have_one_form() -> None:
    plain = with_settings(preset("quick", "upq"), {})
    forms = forms_of(plain, Precision.INT2, WIDTHS)
    assert not forms.own
    assert {forms.of(name) for name in WIDTHS} == {Form(grid_of("odd", 2), 64)}


def test_forms_below_a_block_go_by_the_names_inside_it() -> None:
    forms = forms_of(config(), Precision.INT2, {"blocks.1.up": 1536, "blocks.10.up": 576})
    assert forms.below("blocks.1.").of("up").grid.kind == "q2_k"
    assert forms.below("blocks.10.").of("up").grid.kind == "signed"


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (30, []),  # all are narrow
        (39, []),  # not enough for any
        (40, ["most"]),
        (50, ["most", "small"]),  # the next one by harm a byte does not fit, one behind it does
        (70, ["most", "next"]),
        (1000, ["most", "next", "small"]),
    ],
)
def test_bits_go_where_they_undo_most_harm(budget: float, chosen: list[str]) -> None:
    harms = {"small": 0.01, "next": 0.5, "most": 0.4}
    narrow = dict.fromkeys(harms, 10)
    wide = {"most": 20, "next": 40, "small": 20}
    assert affordable(harms, narrow, wide, budget) == chosen
