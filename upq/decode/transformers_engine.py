"""Decoding any model with transformers' own forward pass, on the CPU and on NVIDIA GPUs.

Models with plain full attention decode all rows of a session at once, each at its own position; on a GPU the whole
step is a CUDA graph, unless the CPU lends the weights or experts are chosen. Models that keep another state (sliding
windows, recurrent layers) go row by row.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from upq.decode.engine import Session, check_rewind
from upq.decode.fused_step import FusedStep, unsupported
from upq.decode.row_cache import RowCache, bucket
from upq.decode.served_linear import prepare_layers, prepared_backends, prepared_bytes
from upq.layers import memory_bytes
from upq.models import BlockCall, RoutedExperts, decoder_blocks, is_lent

#: What models call the state that they return and take back.
STATE_NAMES = ("past_key_values", "cache_params", "state")
#: Rotary embeddings whose frequencies follow the longest sequence of the batch.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
#: Held while work is given to a GPU: what another thread does there could spoil the capture of a graph.
GPU_LOCK = threading.Lock()


class TransformersEngine:
    """Engine over a transformers model on its device, in its dtype; packed layers are prepared in place."""

    def __init__(self, model: Any) -> None:
        prepare_layers(model)
        self.model = model
        self.config, self.generation_config = model.config, model.generation_config
        self.device: torch.device = model.device
        self.memory_bytes = memory_bytes(model) + prepared_bytes(model)
        on_gpu = self.device.type == "cuda"
        self.lock: AbstractContextManager = GPU_LOCK if on_gpu else nullcontext()
        self.by_rows = _has_plain_attention(model)
        # Which experts compute is read from the device in every step, and a graph cannot wait for that.
        routes = any(isinstance(module, RoutedExperts) for module in model.modules())
        self.by_graphs = on_gpu and self.by_rows and not is_lent(model) and not routes
        self.fused_step: FusedStep | None = None
        if self.by_graphs and not unsupported(model):
            self.fused_step = FusedStep(model)
        runner = "CUDA graph" if self.by_graphs else "transformers"
        self.backend = f"{runner}, {_kernels(model)}"
        takes = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in takes
        self.takes_wanted = "logits_to_keep" in takes
        self.state_name = next((name for name in STATE_NAMES if name in takes), STATE_NAMES[0])

    def session(self, rows: int, length: int) -> Session:
        """Room for `rows` sequences of at most `length` tokens each; memory is taken as they grow."""
        if not self.by_rows:
            return PlainSession(self, rows)
        kind = GraphSession if self.by_graphs else RowSession
        return kind(self, rows, length)

    def read(
        self, ids: Sequence[int], state: Any, start: int = 0, wanted: int = 1
    ) -> tuple[torch.Tensor, Any]:
        """Run tokens from position `start` on, behind `state`: float32 logits (wanted, vocabulary) after each of the
        last `wanted` of them, and the new state.
        """
        given = {self.state_name: state, "use_cache": True}
        if self.takes_wanted:
            given["logits_to_keep"] = wanted
        if self.takes_positions:
            positions = torch.arange(start, start + len(ids), device=self.device)
            given["position_ids"] = positions.unsqueeze(0)
        with self.lock, torch.inference_mode():
            out = self.model(input_ids=torch.tensor([list(ids)], device=self.device), **given)
        return out.logits[0, -wanted:].float(), getattr(out, self.state_name, None)

    def first_bad_block(self, ids: Sequence[int]) -> int | None:
        """The first decoder block that gives values that are not finite for a sequence; None where none does."""
        bad: list[int] = []

        def look(index: int) -> Callable[..., None]:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                if not BlockCall.hidden_of(output).isfinite().all():
                    bad.append(index)

            return hook

        blocks = decoder_blocks(self.model)[1]
        handles = [block.register_forward_hook(look(at)) for at, block in enumerate(blocks)]
        try:
            self.read(ids, None)
        finally:
            for handle in handles:
                handle.remove()
        return min(bad, default=None)


class PlainSession:
    """Each row keeps whatever state its model makes; rows are computed one after the other.

    A model that returns no state reads the whole sequence for every token.
    """

    def __init__(self, engine: TransformersEngine, rows: int) -> None:
        self.engine = engine
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.states: list[Any] = [None] * rows

    def prefill(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """Forget what the row held and read a prompt: float32 logits (vocabulary,)."""
        self.rewind(row, 0)
        return self.extend(row, ids)[0]

    def rewind(self, row: int, length: int) -> None:
        """Forget what the row holds behind its first `length` tokens; they are read again by the next call."""
        check_rewind(len(self.ids[row]), length)
        self.ids[row], self.states[row] = self.ids[row][:length], None

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row: float32 logits (len(rows), vocabulary)."""
        given = zip(rows, tokens, strict=True)
        return torch.cat([self.extend(row, [token]) for row, token in given])

    def extend(self, row: int, ids: Sequence[int], wanted: int = 1) -> torch.Tensor:
        """Append tokens to a row: float32 logits (wanted, vocabulary) after each of the last `wanted` of them."""
        self.ids[row].extend(ids)
        unread = self.ids[row] if self.states[row] is None else ids
        start = len(self.ids[row]) - len(unread)
        logits, self.states[row] = self.engine.read(unread, self.states[row], start, wanted)
        return logits


class RowSession:
    """All rows of a step in one forward pass over a RowCache."""

    def __init__(self, engine: TransformersEngine, rows: int, length: int) -> None:
        self.engine, self.length = engine, length
        self.lengths = [0] * rows
        self.cache = RowCache(rows)

    def prefill(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """Forget what the row held and read a prompt: float32 logits (vocabulary,). ValueError if it is too long."""
        self.rewind(row, 0)
        return self.extend(row, ids)[0]

    def extend(self, row: int, ids: Sequence[int], wanted: int = 1) -> torch.Tensor:
        """Append tokens to a row: float32 logits (wanted, vocabulary) after each of the last `wanted` of them."""
        start = self.lengths[row]
        self._reserve(start + len(ids))
        with torch.inference_mode():
            held = DynamicCache(config=self.engine.config)
            self.cache.copy_row(row, start, held)
        logits, filled = self.engine.read(ids, held, start, wanted)
        with torch.inference_mode():
            self.cache.load(row, filled)
        self.lengths[row] += len(ids)
        return logits

    def rewind(self, row: int, length: int) -> None:
        """Forget what the row holds behind its first `length` tokens. ValueError if it holds fewer."""
        check_rewind(self.lengths[row], length)
        self.lengths[row] = length

    @torch.inference_mode()
    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row: float32 logits (len(rows), vocabulary). ValueError if a row is full."""
        longest = max(self.lengths[row] for row in rows) + 1
        self._reserve(longest)
        logits = self._step(rows, tokens, longest)
        for row in rows:
            self.lengths[row] += 1
        return logits

    def _step(self, rows: Sequence[int], tokens: Sequence[int], span: int) -> torch.Tensor:
        every = list(rows) == list(range(len(self.lengths)))
        device = self.engine.device
        inputs = torch.tensor([tokens, [self.lengths[row] for row in rows]], device=device)
        self.cache.rows = None if every else torch.tensor(rows, device=device)
        return self._forward(inputs, span)

    def _forward(self, inputs: torch.Tensor, span: int) -> torch.Tensor:
        """inputs: (2, n) int64, tokens and their positions -> logits (n, vocabulary)."""
        tokens, positions = inputs.unsqueeze(-1)
        self.cache.positions, self.cache.span = inputs[1], span
        seen = torch.arange(span, device=positions.device) <= positions
        out = self.engine.model(
            input_ids=tokens,
            attention_mask=self._mask(seen[:, None, None]),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.logits[:, -1].float()

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        model = self.engine.model
        if model.config._attn_implementation == "sdpa":
            return seen
        hidden = torch.finfo(model.dtype).min
        return torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, hidden)

    def _reserve(self, tokens: int) -> None:
        if tokens > self.length:
            raise ValueError(f"{tokens} tokens do not fit into a row of {self.length}")
        if tokens >= self.cache.capacity:  # one place behind the end of every row stays free
            wanted = max(tokens + 1, 2 * self.cache.capacity)
            self._grow(bucket(min(wanted, self.length + 1)))

    @torch.inference_mode()
    def _grow(self, capacity: int) -> None:
        self.cache.grow(capacity)


class GraphSession(RowSession):
    """A RowSession on a GPU, where every step computes all rows, so that it is one CUDA graph for each span.

    A row that is not asked for writes into the free place behind its end, which its next token overwrites.
    """

    def __init__(self, engine: TransformersEngine, rows: int, length: int) -> None:
        super().__init__(engine, rows, length)
        self.inputs = torch.zeros(2, rows, dtype=torch.int64, device=engine.device)
        self.stream = torch.cuda.Stream(engine.device)
        # None after the first step of a span, which runs as it is: libraries and kernels set themselves up in it.
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor] | None] = {}

    def _grow(self, capacity: int) -> None:
        super()._grow(capacity)
        self.graphs.clear()

    def _forward(self, inputs: torch.Tensor, span: int) -> torch.Tensor:
        if self.engine.fused_step is None:
            return super()._forward(inputs, span)
        return self.engine.fused_step(inputs[0], inputs[1], self.cache, span)

    def _step(self, rows: Sequence[int], tokens: Sequence[int], span: int) -> torch.Tensor:
        given = [0] * len(self.lengths)
        for row, token in zip(rows, tokens, strict=True):
            given[row] = token
        with self.engine.lock:
            self.inputs.copy_(torch.tensor([given, self.lengths]))
            logits = self._replay(bucket(span))
            # The next replay writes over what this one gave, so all rows are copied, but not by a list of them.
            every = list(rows) == list(range(len(given)))
            return logits.clone() if every else logits[list(rows)]

    def _replay(self, span: int) -> torch.Tensor:
        here = torch.cuda.current_stream(self.engine.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            if span not in self.graphs:
                self.graphs[span] = None
                logits = self._forward(self.inputs, span)
            else:
                graph, logits = self.graphs[span] or self._capture(span)
                graph.replay()
        here.wait_stream(self.stream)
        return logits

    def _capture(self, span: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            logits = self._forward(self.inputs, span)
        self.graphs[span] = graph, logits
        return graph, logits


def _has_plain_attention(model: Any) -> bool:
    """Whether each layer keeps keys and values of all tokens and nothing else, and positions are given from outside.

    Such a model may compute sequences of different lengths side by side in a RowCache.
    """
    takes = inspect.signature(model.forward).parameters
    config = model.config.get_text_config()
    if not {"position_ids", "past_key_values", "attention_mask"} <= takes.keys():
        return False
    if not model._can_compile_fullgraph or config._attn_implementation not in ("sdpa", "eager"):
        return False
    if model.config.is_encoder_decoder or getattr(config, "alibi", False):
        return False
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers):
        return False
    kinds = [str(getattr(module, "rope_type", "")) for module in model.modules()]
    return not any(kind in found for found in kinds for kind in LENGTH_DEPENDENT_ROPE)


def _kernels(model: Any) -> str:
    return " and ".join(prepared_backends(model)) or f"torch {model.dtype}".replace("torch.", "")
