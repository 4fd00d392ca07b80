"""A model's shape from its config alone, before any weight is read or even here."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoConfig

from upq.models.experts import mixtures
from upq.models.gguf_header import read_header
from upq.models.hub import hub_file
from upq.models.skeleton import config_errors, skeleton
from upq.models.source import BUILDING, Source, resolve
from upq.models.structure import block_linears, looked_up, plan_embeddings, plan_layers
from upq.models.vet import vet_config

#: Many pages ask for the same model at once. The first one looks, which takes seconds; the others wait for its cache.
_LOOKS = tuple(threading.Lock() for _ in range(16))


@dataclass(frozen=True)
class Shape:
    """A model as the estimate sees it: numbers of parameters, and the layers that would be packed."""

    parameters: int
    stored_bytes: int  #: of a parameter, as the loaded model holds it
    head: int
    tied: bool  #: whether the head is the embedding
    vocabulary: int
    int4: dict[str, tuple[int, int]]
    int2: dict[str, tuple[int, int]]
    embeddings: dict[str, tuple[int, int]]
    looked_up: str | None  #: the one of them that 4 bits may hold
    active: int  #: quantized weights that a token meets: of experts, those of the chosen ones
    busiest: int  #: inputs of the widest layer that is quantized, or of all experts of a block that a token meets
    skipped: tuple[str, ...]
    skipped_embeddings: tuple[str, ...]

    @property
    def quantized(self) -> int:
        """Weights that are quantized."""
        return sum(rows * columns for rows, columns in self.int2.values())

    @property
    def hidden(self) -> int:
        """Features of a hidden state between two blocks."""
        return self.head // self.vocabulary

    @property
    def widest(self) -> int:
        """Inputs of the widest layer that is quantized."""
        return max(columns for _, columns in self.int2.values())

    @property
    def depth(self) -> int:
        """Decoder blocks that have layers to quantize: their names part at the block's number."""
        return len({"".join(re.findall(r"^\D*\d+", name)) for name in self.int2})


def inspect(source: str, revision: str | None, int4_group: int, int2_group: int) -> Shape:
    """Shape of a model from its config; reads no weights. Raises the UserErrors of resolve, hub_file, vet_config and
    read_header.
    """
    place = resolve(source, revision)
    if place.kind == "hub":
        place = replace(place, path=hub_file(place.text, "config.json", revision).parent)
    assert place.path is not None
    stamp = place.path.stat().st_mtime_ns
    with _LOOKS[hash(place) % len(_LOOKS)]:
        return _inspect(place, stamp, int4_group, int2_group)


@lru_cache(maxsize=32)
def _inspect(place: Source, stamp: int, int4_group: int, int2_group: int) -> Shape:
    model, config = _skeleton(place, stamp)
    planned = {"INT4": plan_layers(model, int4_group), "INT2": plan_layers(model, int2_group)}
    skipped = {
        f"{layer.name}: {layer.reason}"
        for plan in planned.values()
        for layer in plan
        if not layer.quantize
    }
    shapes = [
        {layer.name: layer.shape for layer in plan if layer.quantize} for plan in planned.values()
    ]
    both = shapes[0].keys() & shapes[1].keys()
    embeddings = plan_embeddings(model)
    head = model.get_output_embeddings().weight
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        stored_bytes=2 if _is_stored_in_16_bits(place, config) else 4,
        head=head.numel(),
        tied=head is model.get_input_embeddings().weight,
        vocabulary=len(head),
        int4={name: shapes[0][name] for name in both},
        int2={name: shapes[1][name] for name in both},
        embeddings={layer.name: layer.shape for layer in embeddings if layer.quantize},
        looked_up=looked_up(model),
        active=_active(model, shapes[1]),
        busiest=_busiest(model, shapes[1]),
        skipped=tuple(sorted(skipped)),
        skipped_embeddings=tuple(
            f"{layer.name}: {layer.reason}" for layer in embeddings if not layer.quantize
        ),
    )


def _active(model: Any, layers: dict[str, tuple[int, int]]) -> int:
    """Weights of the layers that a token meets on its way."""
    shares = {name: chosen / experts.count for name, experts, chosen in mixtures(model)}
    total = 0.0
    for name, (rows, columns) in layers.items():
        experts = name.rsplit(".", 2)[0]  # above the expert and its layer
        total += rows * columns * shares.get(experts, 1.0)
    return round(total)


def _busiest(model: Any, layers: dict[str, tuple[int, int]]) -> int:
    """The inputs that a layer, or the chosen experts of a mixture together, read of a token, at most."""
    together = [
        chosen * sum(part.in_features for part in block_linears(experts.expert(0)).values())
        for _, experts, chosen in mixtures(model)
    ]
    return max(*together, *(columns for _, columns in layers.values()), 0)


@lru_cache(maxsize=4)
def _skeleton(place: Source, _stamp: int) -> tuple[Any, Any]:
    """(the model without memory for its weights, its config); seconds for a GGUF file."""
    assert place.path is not None
    if place.kind == "gguf":
        read_header(place.path)
    else:
        vet_config(place.path, place.name)
    code = "unsupported_arch" if place.kind == "gguf" else "bad_config"
    with BUILDING, config_errors(place.name, code):
        model = skeleton(config := _config(place))
    model.tie_weights()  # out here, because in there every assigned parameter becomes a new one
    return model, config


def _config(place: Source) -> Any:
    """The config of a place whose files are here and vetted."""
    assert place.path is not None
    file = place.path
    gguf = {"gguf_file": file.name} if place.kind == "gguf" else {}
    folder = file.parent if gguf else file
    return AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True, **gguf
    )


def _is_stored_in_16_bits(place: Source, config: Any) -> bool:
    """As its config says; what GGUF holds is read as float32."""
    return place.kind != "gguf" and config.dtype in (torch.float16, torch.bfloat16)
