"""Which layers INT2 keeps in INT4's form, so that the whole takes as many bits as were asked for.

The harm of a layer is taken to be that of its kind times that of its block: KL(FP16 || model) on a few training answers
where the layers of one kind alone (all queries, all down projections, ...) are rounded to INT2, and where those of one
block alone are. Layers are kept by harm per byte until the bits are spent. Held-out answers have no part in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from kernels.reference import weight_of
from upq.config import Precision
from upq.evaluation import Reference
from upq.layers import Forms
from upq.models import decoder_blocks
from upq.quantize import checkpoint
from upq.quantize.sizes import packed_bytes
from upq.quantize.stages import Work

#: Training answers that harm is measured on.
ANSWERS = 4
#: A probe that seems to help is noise; its layers come last, by their share of this. Nats.
LEAST_HARM = 1e-6
INT2, INT4 = Precision.INT2, Precision.INT4


def with_wide_layers(work: Work) -> Work:
    """The work with the layers chosen that INT2 keeps in INT4's form; the same where the config asks for none."""
    if not work.config.int2.bits_target:
        return work
    folder = work.context.checkpoint_dir / "wide-layers"
    if (kept := checkpoint.load(folder)) is not None:
        return replace(work, wide=frozenset(kept[1]["layers"]))
    chosen = affordable(_harms(work), _costs(work, INT2), _costs(work, INT4), _budget(work))
    checkpoint.save(folder, {}, {"layers": sorted(chosen)})
    share = len(chosen) / len(work.layers)
    work.context.log(
        f"INT2 keeps {len(chosen)} layers ({share:.0%}) in INT4's form: {_words(chosen)}"
    )
    return replace(work, wide=frozenset(chosen))


def affordable(
    harms: Mapping[str, float], narrow: Mapping[str, int], wide: Mapping[str, int], budget: float
) -> list[str]:
    """The layers to keep wide, those first whose harm is greatest for what they cost more. budget: bytes of all."""
    left = budget - sum(narrow.values())
    chosen = []
    for name in sorted(harms, key=lambda name: -harms[name] / max(1, wide[name] - narrow[name])):
        extra = wide[name] - narrow[name]
        if extra <= left:
            chosen.append(name)
            left -= extra
    return chosen


def _budget(work: Work) -> float:
    weights = sum(work.given.weight(name).numel() for name in work.layers)
    return work.config.int2.bits_target * weights / 8


def _costs(work: Work, precision: Precision) -> dict[str, int]:
    """Bytes of each layer."""
    config, costs = work.config.of(precision), {}
    for name in work.layers:
        rows, columns = work.given.weight(name).shape
        costs[name] = packed_bytes({name: (rows, columns)}, precision.bits, config)
    return costs


def _harms(work: Work) -> dict[str, float]:
    """The harm of every layer, by name."""
    prefix, _ = decoder_blocks(work.teacher)
    kinds: dict[str, list[str]] = {}
    places: dict[str, list[str]] = {}
    for name in work.layers:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
        places.setdefault(name.removeprefix(f"{prefix}.").partition(".")[0], []).append(name)
    groups = [*kinds.values(), *places.values()]
    reference = Reference(work.teacher, work.dataset.train[:ANSWERS], work.context.check)
    forms, found = work.forms(INT2), dict.fromkeys(work.layers, 1.0)
    for names in groups:
        work.context.check()
        with _rounded(work, names, forms):
            model = copy.copy(
                work.teacher
            )  # of the same weights, so that it is not taken for the reference
            kl = reference.measure(model, work.context.check).kl
        for name in names:
            found[name] *= max(kl, LEAST_HARM)
    return found


@contextmanager
def _rounded(work: Work, names: Sequence[str], forms: Forms) -> Iterator[None]:
    """Some weights of the FP16 model on their nearest levels; afterwards they are what they were."""
    weights = {name: work.teacher.get_parameter(f"{name}.weight") for name in names}
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                form = forms.of(name)
                latent = weight.detach().float()
                packed = form.grid.pack(latent, *form.grid.fit(latent, form.group_size))
                weight.copy_(weight_of(packed))
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept[name])


def _words(names: Sequence[str]) -> str:
    """How many layers of each kind there are."""
    kinds = [name.rpartition(".")[2] for name in names]
    return (
        ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(sorted(kinds))) or "none"
    )
