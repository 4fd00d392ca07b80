"""Write docs/settings.md: every setting with its value in each preset, its range and its meaning.

`make fix` calls it: python -m scripts.make_settings_doc
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

from upq.config import PRESETS, preset, settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
INTRODUCTION = """# Settings

Generated from the code by `make fix`; a test compares the two.

A run starts from a preset. Each setting below can then be changed: in the app under "Advanced: every setting", on the
command line with `--set NAME=VALUE`, in the API with `settings_json`. `python -m upq run --help-settings` prints the
same list for one preset. A value out of range is refused by name before the run starts. The whole config is stored with
the run and inside each artifact.
"""


def settings_doc() -> str:
    """The text of docs/settings.md."""
    columns = [dict(settings(preset(name))) for name in PRESETS]
    rows = [
        [
            f"`{path}`",
            *(_shown(column[path]["value"]) for column in columns),
            _allowed(spec),
            spec["help"],
        ]
        for path, spec in columns[0].items()
    ]
    head = ["setting", *PRESETS, "allowed", "meaning"]
    table = [head, ["---"] * len(head), *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return INTRODUCTION + "\n" + "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else value or "empty"
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _allowed(spec: dict[str, Any]) -> str:
    if spec["low"] is not None:
        return f"{_shown(spec['low'])} to {_shown(spec['high'])}"
    if typing.get_origin(spec["type"]) is typing.Literal:
        return ", ".join(map(str, typing.get_args(spec["type"])))
    return "true, false" if spec["type"] is bool else "text"


if __name__ == "__main__":
    PAGE.write_text(settings_doc(), encoding="utf-8")
