"""`python -m upq serve`: the models of a run behind an address, for other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from upq.jobs import Models
from upq.serve import Endpoint, Offered, Row, bound, is_local, offered, run_server
from upq.store import Store
from upq.units import duration, size


def serve(store: Store, run_id: int, precisions: Sequence[str], options: Any) -> None:
    """Load the models, say where they are, and answer until Ctrl-C. options: host, port, key, cors."""
    there = offered(store, run_id, precisions)
    listening = bound(options.host, options.port)
    models = Models(store)
    for model in there.values():
        _load(models, model)
    port = listening.getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(
        f"Base URL http://{host}:{port}/v1, models {', '.join(there)}. Ctrl-C ends it.", flush=True
    )
    if not is_local(options.host) and not options.key:
        print("Anyone who reaches this address can use it; see --key.", file=sys.stderr)
    endpoint = Endpoint(models, there, Row())
    run_server(endpoint, listening, options.key, options.cors)
    print("Stopped.")


def _load(models: Models, model: Offered) -> None:
    served = models.get(model.run_id, model.precision, model.source)
    loaded = f"{size(served.size_bytes)}, loaded in {duration(served.load_s)}"
    print(f"{model.id}: {loaded}, {served.backend}", flush=True)
