"""The hidden states of all calibration batches between two decoder blocks, kept off the device that computes.

Block-wise training visits every batch many times, one block after the other. What enters the block and what it has
to give are kept in CPU memory or, above a limit, in mapped files, and come to the device one batch at a time. So the
device holds one block, its student and one batch, however deep the model and however long the calibration data.
The model itself may stay on the CPU: `upq.models.placement` lends one block.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from upq.data import Batch
from upq.models import BlockCall, block_calls


class HiddenStates:
    """Tensors of one dtype and of known shapes: in CPU memory, or in a mapped file where they take more than
    `limit` bytes. Reading gives a tensor on `device`, writing copies one from there.

    On a CPU a read gives the kept tensor itself, which the next write to the same place changes.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
        folder: Path,
        limit: int,
    ) -> None:
        self.device = device
        sizes = [math.prod(shape) for shape in shapes]
        self.is_mapped = sum(sizes) * dtype.itemsize > limit
        if (
            self.is_mapped or device.type == "cuda"
        ):  # pinned at once: thousands of small pieces take seconds
            whole = (
                _mapped(folder, sum(sizes), dtype)
                if self.is_mapped
                else torch.empty(sum(sizes), dtype=dtype, pin_memory=True)
            )
            pieces = whole.split(sizes)
            self._kept = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        else:
            self._kept = [torch.empty(shape, dtype=dtype) for shape in shapes]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._kept[index].to(self.device, non_blocking=True)

    def __setitem__(self, index: int, value: torch.Tensor) -> None:
        # Copies between pinned memory and the device are asynchronous, but in order with each other.
        self._kept[index].copy_(value.detach(), non_blocking=True)


def _mapped(folder: Path, values: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor over a file without a name, whose space is free again as soon as the tensor is, or the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        return torch.from_file(file.name, shared=True, size=values, dtype=dtype)


class Stream:
    """One calibration batch on its way through the model; hidden states (rows, tokens, hidden).

    inputs: what the block in training reads. reference: the FP16 stream, in front of a block what enters it, behind
    it what its student has to give. Assigning to them stores. weight: (rows, tokens, 1), 1 for a real token.
    calls: how the model calls each block.
    """

    def __init__(
        self,
        index: int,
        inputs: HiddenStates,
        reference: HiddenStates,
        calls: list[BlockCall],
        weight: torch.Tensor,
    ) -> None:
        self._index, self._inputs, self._reference = index, inputs, reference
        self.calls, self.weight = calls, weight

    @property
    def inputs(self) -> torch.Tensor:
        """What the block in training reads, on the device."""
        return self._inputs[self._index]

    @inputs.setter
    def inputs(self, value: torch.Tensor) -> None:
        self._inputs[self._index] = value

    @property
    def reference(self) -> torch.Tensor:
        """The FP16 stream, on the device."""
        return self._reference[self._index]

    @reference.setter
    def reference(self, value: torch.Tensor) -> None:
        self._reference[self._index] = value


class Streams:
    """All calibration batches, in front of the same block; both sets of states together take at most `limit` bytes
    of memory, or lie in `folder`.
    """

    def __init__(self, streams: list[Stream]) -> None:
        self._streams = streams

    def __len__(self) -> int:
        return len(self._streams)

    def __getitem__(self, index: int) -> Stream:
        return self._streams[index]

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams)

    @staticmethod
    @torch.no_grad()
    def enter(
        model: Any, batches: Sequence[Batch], device: torch.device, folder: Path, limit: int
    ) -> Streams:
        """The streams in front of the first block. Embeds on the model's own device and runs no block."""
        if not batches:
            return Streams([])
        width = block_calls(model, batches[0].ids)[0].shape[-1]
        shapes = [(*batch.ids.shape, width) for batch in batches]
        inputs, reference = (
            HiddenStates(shapes, model.dtype, device, folder, limit // 2) for _ in range(2)
        )
        shared: dict[Any, torch.Tensor] = {}
        streams = []
        for index, batch in enumerate(batches):
            hidden, calls = block_calls(model, batch.ids)
            inputs[index] = reference[index] = hidden
            weight = batch.real.float().unsqueeze(-1).to(device)
            calls = _on(device, calls, shared)
            streams.append(Stream(index, inputs, reference, calls, weight))
        return Streams(streams)


def _on(device: torch.device, calls: list[BlockCall], shared: dict[Any, torch.Tensor]) -> Any:
    """The calls with their tensors on the device; batches of one shape share what is equal, such as positions."""
    move = partial(_moved, device=device, seen={}, shared=shared)
    return [
        BlockCall(
            tuple(move(item, at) for at, item in enumerate(call.args)),
            {name: move(item, name) for name, item in call.kwargs.items()},
        )
        for call in calls
    ]


def _moved(
    value: Any,
    place: Any,
    *,
    device: torch.device,
    seen: dict[int, torch.Tensor],
    shared: dict[Any, torch.Tensor],
) -> Any:
    """An argument at a place of its call on the device, or the equal one of an earlier batch."""
    if isinstance(value, torch.Tensor):
        if id(value) not in seen:
            first = shared.setdefault((place, value.shape, value.dtype), value.to(device))
            is_equal = torch.equal(first, value.to(device))
            seen[id(value)] = first if is_equal else value.to(device)
        return seen[id(value)]
    if isinstance(value, tuple | list):
        move = partial(_moved, device=device, seen=seen, shared=shared)
        return type(value)(move(item, (place, at)) for at, item in enumerate(value))
    return value
