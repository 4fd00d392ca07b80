"""Write docs/api.md: every endpoint with its arguments, their types, ranges, defaults and meanings.

`make fix` calls it: python -m scripts.make_api_doc
"""

from __future__ import annotations

import json
from pathlib import Path

from ui.api import ENDPOINTS
from ui.gate import MAX_BODY
from ui.requests import Request

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
INTRODUCTION = f"""# API

Generated from the code by `make fix`; a test compares the two.

The functions of the page are named endpoints of the running app. With Python, `pip install gradio_client`:

    from gradio_client import Client

    client = Client("http://127.0.0.1:7860")
    started = client.predict(preset="smoke", api_name="/start_run")
    print(client.predict(started["run_id"], api_name="/run_status"))

Over HTTP a call has two steps; the first takes the arguments by name, the second streams what comes of it:

    curl -s http://127.0.0.1:7860/gradio_api/call/v2/run_status -H 'Content-Type: application/json' -d '{{"run_id": 1}}'
    curl -N http://127.0.0.1:7860/gradio_api/call/run_status/EVENT_ID

Arguments that are missing take their defaults; one without a default has to be given. A value of another type or out of
range, an unknown name or an argument too many is refused in one sentence that names it, before anything is done. What
an endpoint refuses beyond that is in [errors](errors.md), whose sentences it answers. A number without a fraction is a
whole number, whether it is written 3 or 3.0.

The app takes no files: only the routes that the page and these endpoints need are open, none of which stores or fetches
anything, and a request has at most {MAX_BODY:,} bytes.
"""


def api_doc() -> str:
    """The text of docs/api.md."""
    sections = [_section(name, endpoint.request) for name, endpoint in ENDPOINTS.items()]
    return "\n".join([INTRODUCTION, *sections])


def _section(name: str, request: type[Request]) -> str:
    rows = [
        [
            f"`{argument}`",
            request.expected(argument),
            "none" if field.is_required() else f"`{json.dumps(field.default)}`",
            field.description or "",
        ]
        for argument, field in request.model_fields.items()
    ]
    head = ["argument", "takes", "default", "meaning"]
    table = [head, ["---"] * len(head), *rows] if rows else []
    lines = ["| " + " | ".join(row) + " |" for row in table] or ["It takes no arguments."]
    return "\n".join([f"## {name}", "", request.__doc__ or "", "", *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(api_doc(), encoding="utf-8")
