"""Small runs with something to export, and the words that a stranger's model may bring along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.grids import GRIDS
from tests.support.helpers import tiny_config
from tests.support.store_cases import a_check
from upq.artifact import assembly
from upq.config import CheckConfig
from upq.models import LoadedModel, plan_layers
from upq.store import Store

#: Text that would be markup, a heading, the end of a header or a second key, were it not escaped.
HOSTILE = "<script>alert(1)</script> [x](http://e.test) | `` ` `` *a*\n---\nlicense: mit\n# Head"


def exportable_run(
    store: Store, loaded: LoadedModel, folder: Path, precisions: tuple[str, ...] = ("INT4", "INT2")
) -> int:
    """A done run of the tiny model, rounded to nearest, measured and trained on made-up figures."""
    config = tiny_config(folder)
    run_id = store.enqueue(config)
    run = store.claim("cpu@here:1", 1, 60.0)
    assert run is not None
    lease = store.lease(run)
    for name in precisions:
        packed = {}
        for layer in plan_layers(loaded.model, 32):
            weight = loaded.model.get_parameter(f"{layer.name}.weight")
            packed[layer.name] = GRIDS[name].pack(weight, *GRIDS[name].fit(weight, 32))
        lease.save_artifact(assembly.build(name, packed, loaded, config))
    lease.save_measurements(
        [
            {"label": "FP16", "precision": "FP16", "kl": 0.0, "top1": 1.0, "ppl": 3.25},
            *(
                {"label": name, "precision": name, "kl": 0.123456, "kl_low": 0.1, "kl_high": 0.15}
                | {"top1": 0.875, "ppl": 4.5, "tokens": 1234}
                for name in precisions
            ),
        ]
    )
    lease.metrics([("int4_tokens", 1, 800.0, 0.0), ("int4_tokens", 2, 900.0, 0.0)])
    lease.finish("done")
    return run_id


def checked(
    store: Store, run_id: int, passed: dict[str, list[bool]], suite: str = "builtin"
) -> int:
    """A done check of a run. passed: precision -> whether each prompt was followed."""
    values: dict[str, Any] = {**vars(a_check(run_id)), "suite": suite, "precisions": tuple(passed)}
    check_id = store.enqueue_check(CheckConfig(**values))
    run = store.claim("cpu@here:1", 1, 60.0)
    assert run is not None
    for precision, outcomes in passed.items():
        for position, is_right in enumerate(outcomes):
            verdict = {"instruction_id": "a", "strict": is_right, "loose": is_right, "reason": "r"}
            outcome = {"key": position, "response": "Hello", "verdicts": [verdict]}
            store.lease(run).save_check_result(precision, position, outcome)
    store.lease(run).finish("done")
    return check_id
