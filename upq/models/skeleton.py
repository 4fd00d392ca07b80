"""A model without memory for its weights: what a config asks for, before a library makes room for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from upq.errors import UserError
from upq.models.experts import unstack_experts

#: A model has at most so many times the values of its file, and SLACK more. Twice where a head is tied.
MOST_TIMES, SLACK = 3, 1 << 20


@contextmanager
def config_errors(name: str, code: str = "bad_config") -> Iterator[None]:
    """What libraries raise while they read the config of `name` becomes a UserError."""
    try:
        yield
    except Exception as error:  # whatever the models of transformers raise, assertions among it
        raise UserError(
            code,
            f"No model can be built from the config of {name}: {error or type(error).__name__}",
            "Download the model again, or update transformers.",
        ) from error


def skeleton(config: Any) -> Any:
    """The model of a config on the meta device, its experts taken apart, its weights not tied; whoever calls holds
    BUILDING.
    """
    model = _as_described(config)
    unstack_experts(model)
    return model


def _as_described(config: Any) -> Any:
    with init_empty_weights(include_buffers=True):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def vet_amount(config: Any, stored: int, name: str) -> None:
    """Refuse a config that asks for far more weights than the `stored` values that its files hold.

    transformers would fill the rest with random numbers, and the memory with it. Raises UserError: weights_mismatch,
    bad_config.
    """
    with config_errors(name):
        wanted = sum(parameter.numel() for parameter in _as_described(config).parameters())
    if wanted > MOST_TIMES * stored + SLACK:
        raise UserError(
            "weights_mismatch",
            f"The config of {name} describes a model of {wanted} weights, but its files hold {stored}.",
            "Config and weights must come from one model; download it again.",
        )
