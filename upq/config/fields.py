"""Frozen dataclasses as settings: help, unit and range in each field's metadata; checked, walked, built and parsed.

Generic: what the settings are stands in upq.config.schema.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import field
from typing import Any, Literal

from upq.errors import UserError, shown


def setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:  # noqa: A002
    """A dataclass field with its help text and, for numbers, the closed range of allowed values."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


def check_fields(config: Any, prefix: str) -> None:
    """Check every field of a config and of the configs in it, so that a message has the whole dotted name."""
    hints = _hints(type(config))
    for spec in dataclasses.fields(config):
        name, value = f"{prefix}{spec.name}", getattr(config, spec.name)
        _check_type(name, value, hints[spec.name])
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{name}.")
        if not spec.metadata:
            continue
        low, high = spec.metadata["low"], spec.metadata["high"]
        if low is not None and not low <= value <= high:
            raise UserError(
                "bad_config", f"{name} is {shown(value)}; expected {low:g} to {high:g}."
            )


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a config's fields. Python compiles each of them anew when it is asked."""
    return typing.get_type_hints(kind)


def _check_type(name: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            choices = ", ".join(map(str, typing.get_args(hint)))
            raise UserError("bad_config", f"{name} is {shown(value)}; expected one of {choices}.")
        return
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and type(value) in (int, float):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError("bad_config", f"{name} is {shown(value)}; expected a finite number.")
    elif type(value) not in allowed:
        names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
        raise UserError("bad_config", f"{name} is {shown(value)}; expected {names}.")


def build(kind: type, values: Any, prefix: str, paths: Sequence[str]) -> Any:
    """A config of plain JSON values. paths: every dotted setting, for hints. Raises UserError("bad_config")."""
    if not isinstance(values, dict):
        raise UserError("bad_config", f"{prefix or 'config'} is {values!r}; expected an object.")
    hints = _hints(kind)
    for unknown in sorted(set(values) - set(hints)):
        path = f"{prefix}{unknown}"
        raise UserError("bad_config", f"Unknown setting {shown(path)[1:-1]}.", nearest(path, paths))
    parts = {
        name: build(hints[name], value, f"{prefix}{name}.", paths)
        if dataclasses.is_dataclass(hints[name])
        else value
        for name, value in values.items()
    }
    return kind(**parts)


def nearest(name: str, paths: Sequence[str]) -> str:
    """A hint that names the most similar setting; one with the same last part goes first."""
    leaf = name.rpartition(".")[2]
    same_leaf = [path for path in paths if path.rpartition(".")[2] == leaf]
    leaves = {path.rpartition(".")[2]: path for path in paths}
    alike = (
        difflib.get_close_matches(name, same_leaf, 1, 0.0)
        or difflib.get_close_matches(name, paths, 1, 0.7)
        or [leaves[close] for close in difflib.get_close_matches(leaf, leaves, 1, 0.7)]
    )
    return (
        f"Did you mean {alike[0]}?"
        if alike
        else "`python -m upq run --help-settings` lists them all."
    )


def walk(config: Any, prefix: str = "") -> typing.Iterator[tuple[str, dict[str, Any]]]:
    """Every setting as (dotted path, {value, type, help, low, high}), in the order of the dataclasses."""
    hints = _hints(type(config))
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{spec.name}.")
        elif spec.metadata:
            yield (
                f"{prefix}{spec.name}",
                {"value": value, "type": hints[spec.name], **spec.metadata},
            )


def parse(path: str, raw: Any, hint: Any) -> Any:
    """A text value by its field's type; other values as they are. Raises UserError("bad_config")."""
    if not isinstance(raw, str):
        return int(raw) if hint is int and isinstance(raw, float) and raw.is_integer() else raw
    text = raw.strip()
    if isinstance(hint, types.UnionType):
        return text or None
    if typing.get_origin(hint) is Literal:
        return {str(choice): choice for choice in typing.get_args(hint)}.get(text, text)
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text.replace("_", ""))
        except ValueError:
            raise UserError("bad_config", f"{path} is {shown(raw)}; expected a number.") from None
    return text
