"""Which form each layer of a precision has: its grid and group size, by the settings and by its width."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from upq.config import Precision, RunConfig
from upq.layers import Form, Forms, grid_of


def forms_of(
    config: RunConfig,
    precision: Precision,
    widths: Mapping[str, int],
    wide: Collection[str] = (),
) -> Forms:
    """The forms of all layers. widths: inputs of each layer by its name. wide: layers of INT2 that have INT4's form."""
    kept = wide if precision is Precision.INT2 else ()
    forms = {
        name: _form(config, Precision.INT4 if name in kept else precision, width)
        for name, width in widths.items()
    }
    usual = _form(config, precision, 0)
    return Forms(usual, {name: form for name, form in forms.items() if form != usual})


def _form(config: RunConfig, precision: Precision, width: int) -> Form:
    grid, group_size = config.of(precision).form(width)
    return Form(grid_of(grid, precision.bits), group_size)
