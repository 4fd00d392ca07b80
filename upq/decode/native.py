"""Decoding on the CPU in C: one call per step for the whole model, over packed weights (kernels/cpu/csrc/decoder.h).

Takes the Llama family as transformers builds it: RMSNorm, rotary positions, grouped-query attention with optional
biases and query and key norms, SwiGLU. `unsupported` says what a model has that the kernels do not know.
"""

from __future__ import annotations

import copy
import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kernels.cpu import build, panels
from kernels.cpu.decoder import PROJECTIONS, Block, Model
from kernels.packing import PackedWeight
from upq.decode.cache_range import largest_cached
from upq.decode.engine import check_rewind
from upq.errors import UserError

FAMILY = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
#: Rotary frequencies that change with the length of the conversation.
CHANGING_ROPE = {"dynamic", "longrope"}
#: The kernels' limits (csrc/decoder.c): a head's size is a multiple of 16 up to this.
LARGEST_HEAD = 256
LARGEST_HALF = 65504


def unsupported(model: Any) -> str:
    """Why this model cannot be decoded in C here; "" where it can."""
    name, config = type(model).__name__, model.config
    if name not in FAMILY:
        return f"{name} is not one of {', '.join(sorted(FAMILY))}"
    if panels.library() is None:
        return "the C kernels could not be compiled"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act}"
    rotary = model.model.rotary_emb
    if rotary.rope_type in CHANGING_ROPE:
        return f"rotary positions of type {rotary.rope_type}"
    size = model.model.layers[0].self_attn.head_dim
    if size % 16 or size > LARGEST_HEAD or 2 * len(rotary.inv_freq) != size:
        return f"attention heads of size {size}"
    if problem := next(filter(None, map(_matrix_problem, _matrices(model))), ""):
        return problem
    if not largest_cached(model) <= LARGEST_HALF:
        return "keys or values that may go beyond the range of float16"
    return ""


def _matrices(model: Any) -> list[nn.Module]:
    layers = [
        block.get_submodule(name) for block in model.model.layers for name in PROJECTIONS.values()
    ]
    return [model.get_input_embeddings(), *layers, model.get_output_embeddings()]


def _matrix_problem(module: nn.Module) -> str:
    if isinstance(weight := _weight(module), PackedWeight):
        return panels.unsupported(weight)
    if not isinstance(module, nn.Linear | nn.Embedding):
        return f"a layer of type {type(module).__name__}"
    return "" if weight.abs().max() <= LARGEST_HALF else "weights beyond the range of float16"


def _weight(module: Any) -> PackedWeight | torch.Tensor:
    """The matrix of a layer, packed or not."""
    packed = getattr(module, "packed", None)
    return packed if isinstance(packed, PackedWeight) else module.weight


def _window(attention: Any, config: Any) -> int:
    """Positions that a block looks back on; 0: all. Qwen says it for each block, Mistral once for all."""
    everywhere = getattr(config, "sliding_window", None)
    return getattr(attention, "sliding_window", everywhere) or 0


def _precision(model: Any) -> str:
    """The type of most of the weights, for people."""
    bits = [
        weight.bits
        for weight in map(_weight, _matrices(model)[1:-1])
        if isinstance(weight, PackedWeight)
    ]
    return f"INT{max(bits, key=bits.count)}" if bits else "FP16"


class NativeEngine:
    """A model whose decoding is C (`upq.decode.engine.Engine`); the transformers model is not kept.

    instruction_set: one of kernels.cpu.build.INSTRUCTION_SETS; None takes the best of this processor. exact:
    activations stay float32, which is slower; else packed weights read them in 8 bits. extra_flags: more flags for
    the compiler.
    """

    def __init__(
        self,
        model: Any,
        threads: int = 0,
        instruction_set: str | None = None,
        *,
        exact: bool = False,
        extra_flags: tuple[str, ...] = (),
    ) -> None:
        if reason := unsupported(model):
            raise ValueError(f"This model cannot be decoded in C: {reason}.")
        self.config, self.generation_config = model.config, model.generation_config
        self.device = torch.device("cpu")
        self.threads = threads or torch.get_num_threads()
        self.kernels = panels.bind(build.load(instruction_set, extra_flags))
        self._rotary = model.model.rotary_emb
        self._kept: list[Any] = []  # what the structures point to
        # by the address of the weight, and whether there is a bias
        self._panels: dict[tuple[int, bool], panels.Panels] = {}
        self._transforms: dict[Any, panels.InputTransform] = {}  # by content
        self.span = 0 if exact else panels.SPAN
        self._arena = panels.Arena(sum(map(panels.Arena.room, map(_weight, _matrices(model)))))
        self.struct = self._model(model)
        name = instruction_set or build.instruction_set()
        precision = _precision(model)
        threads_text = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        rounded = "" if exact or precision == "FP16" else ", 8-bit activations"
        self.backend = f"native C, {precision}{rounded}, {name}, {threads_text}"
        self.memory_bytes = panels.memory_bytes(self._panels.values())
        self.memory_bytes += sum(
            part.nbytes for part in self._kept if isinstance(part, torch.Tensor)
        )

    def session(self, rows: int, length: int) -> NativeSession:
        """Room for `rows` sequences of at most `length` tokens. UserError("out_of_memory") where there is none."""
        positions = torch.arange(length).unsqueeze(0)
        cosine, sine = self._rotary(torch.empty(0), positions)
        half = cosine.shape[-1] // 2
        return NativeSession(self, rows, length, cosine[0, :, :half], sine[0, :, :half])

    def first_bad_block(self, ids: Sequence[int]) -> int | None:
        """The first block behind which the model gives logits that are not numbers, for a sequence; None: none."""
        for count in range(1, self.struct.blocks + 1):
            shorter = copy.copy(self)
            shorter.struct = Model.from_buffer_copy(self.struct)
            shorter.struct.blocks = count
            if not shorter.session(1, len(ids)).prefill(0, ids).isfinite().all():
                return count - 1
        return None

    def _model(self, model: Any) -> Model:
        config, first = model.config, model.model.layers[0].self_attn
        blocks = (Block * len(model.model.layers))(*map(self._block, model.model.layers))
        self._kept.append(blocks)
        return Model(
            hidden=config.hidden_size,
            blocks=len(blocks),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_size=first.head_dim,
            inner=config.intermediate_size,
            vocabulary=_weight(model.get_input_embeddings()).shape[0],
            span=self.span,
            epsilon=config.rms_norm_eps,
            attention_scale=first.scaling,
            block=blocks,
            final_norm=self._vector(model.model.norm.weight),
            embedding=self._matrix(model.get_input_embeddings()),
            head=self._matrix(model.get_output_embeddings()),
        )

    def _block(self, block: Any) -> Block:
        attention = block.self_attn
        norms = {"query_norm": "q_norm", "key_norm": "k_norm"}
        return Block(
            **{name: self._matrix(block.get_submodule(path)) for name, path in PROJECTIONS.items()},
            input_norm=self._vector(block.input_layernorm.weight),
            post_norm=self._vector(block.post_attention_layernorm.weight),
            **{
                name: self._vector(getattr(attention, theirs).weight)
                for name, theirs in norms.items()
                if hasattr(attention, theirs)
            },
            window=_window(attention, self.config),
        )

    def _matrix(self, module: Any) -> panels.Matrix:
        """The panels of a module's weight; a shared weight, of a tied head, is laid out once."""
        weight = _weight(module)
        bias = getattr(module, "bias", None)
        address = (weight.codes if isinstance(weight, PackedWeight) else weight).data_ptr()
        key = (address, bias is not None)
        if key not in self._panels:
            self._panels[key] = panels.Panels(
                self.kernels, weight, bias, self.span, self._arena, self._transforms
            )
        return self._panels[key].struct

    def _vector(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()


class NativeSession:
    """Key-value caches in C (`upq.decode.engine.RecallingSession`); one thread at a time may use it."""

    def __init__(
        self, engine: NativeEngine, rows: int, length: int, cosine: torch.Tensor, sine: torch.Tensor
    ) -> None:
        self.engine, self.lengths = engine, [0] * rows
        self._angles = (cosine.contiguous(), sine.contiguous())
        self._address = engine.kernels.session_new(
            ctypes.byref(engine.struct),
            *(rows, length, engine.threads, *(table.data_ptr() for table in self._angles)),
        )
        if not self._address:
            raise UserError(
                "out_of_memory",
                f"There is no memory for a conversation of {length} tokens.",
                "Close other programs, or choose a shorter answer.",
            )
        weakref.finalize(self, engine.kernels.session_free, self._address)

    def prefill(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """Forget what the row held and read a prompt: float32 logits (vocabulary,) of the token after it."""
        self.rewind(row, 0)
        return self.extend(row, ids)[0]

    def extend(self, row: int, ids: Sequence[int], wanted: int = 1) -> torch.Tensor:
        """Append tokens to a row: float32 logits (wanted, vocabulary) after each of the last `wanted` of them."""
        start, count = self.lengths[row], len(ids)
        positions, last = list(range(start, start + count)), list(range(count - wanted, count))
        logits = self._forward(list(ids), [row] * count, positions, last)
        self.lengths[row] += count
        return logits

    def rewind(self, row: int, length: int) -> None:
        """Forget what the row holds behind its first `length` tokens. ValueError if it holds fewer."""
        check_rewind(self.lengths[row], length)
        self.lengths[row] = length

    def recall(self, row: int, first: int, last: int) -> torch.Tensor:
        """float32 logits (last - first, vocabulary) after tokens that the row holds, again: only the head is computed.

        IndexError where it does not hold them.
        """
        if not 0 <= first < last <= self.lengths[row]:
            raise IndexError(
                f"A row of {self.lengths[row]} tokens does not hold {first} to {last}."
            )
        logits = torch.empty(last - first, self.engine.struct.vocabulary)
        self._checked(
            self.engine.kernels.session_recall(
                self._address, row, first, last - first, logits.data_ptr()
            )
        )
        return logits

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each of the named rows: float32 logits (len(rows), vocabulary) of the next ones."""
        positions = [self.lengths[row] for row in rows]
        logits = self._forward(list(tokens), list(rows), positions, list(range(len(rows))))
        for row in rows:
            self.lengths[row] += 1
        return logits

    def _forward(
        self, ids: list[int], rows: list[int], positions: list[int], wanted: list[int]
    ) -> torch.Tensor:
        logits = torch.empty(len(wanted), self.engine.struct.vocabulary)
        numbers = [
            (ctypes.c_int32 * len(values))(*values) for values in (ids, rows, positions, wanted)
        ]
        self._checked(
            self.engine.kernels.session_forward(
                *(self._address, len(ids), *numbers[:3], len(wanted), numbers[3], logits.data_ptr())
            )
        )
        return logits

    @staticmethod
    def _checked(failed: int) -> None:
        if failed == -1:
            raise IndexError("A token, row or position is out of range.")
        if failed:
            raise RuntimeError("The operating system refused to make a thread.")
