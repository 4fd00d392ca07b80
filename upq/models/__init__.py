"""A name becomes a vetted model: its files, its tokenizer, its structure, and where its weights lie."""

from upq.models.experts import Expert, RoutedExperts, expert_of, unstack_experts
from upq.models.forward import BlockCall, block_calls, last_hidden, recomputed
from upq.models.loading import LoadedModel, load
from upq.models.logits import CHUNK_ROWS, head
from upq.models.placement import (
    LARGEST_SHARE,
    blocks_away,
    compute_dtype,
    copy_to_quantize,
    in_float32,
    is_lent,
    keep_freed_memory,
    on_device,
    place,
    placed_copy,
    serving_device,
)
from upq.models.residual import Residual, cannot_absorb, residual_of
from upq.models.shape import Shape, inspect
from upq.models.source import BUILDING, resolve
from upq.models.structure import (
    LOOKED_UP_GROUP,
    decoder_blocks,
    longest_sequence,
    looked_up,
    parameter_names,
    plan_embeddings,
    plan_layers,
)
from upq.models.tokenizer import (
    chat_ids,
    encode,
    load_tokenizer,
    render_chat,
    special_ids,
    tokenizer_files,
)
from upq.models.trial import trial_ids

__all__ = [
    "BUILDING",
    "CHUNK_ROWS",
    "LARGEST_SHARE",
    "LOOKED_UP_GROUP",
    "BlockCall",
    "Expert",
    "LoadedModel",
    "Residual",
    "RoutedExperts",
    "Shape",
    "block_calls",
    "blocks_away",
    "cannot_absorb",
    "chat_ids",
    "compute_dtype",
    "copy_to_quantize",
    "decoder_blocks",
    "encode",
    "expert_of",
    "head",
    "in_float32",
    "inspect",
    "is_lent",
    "keep_freed_memory",
    "last_hidden",
    "load",
    "load_tokenizer",
    "longest_sequence",
    "looked_up",
    "on_device",
    "parameter_names",
    "place",
    "placed_copy",
    "plan_embeddings",
    "plan_layers",
    "recomputed",
    "render_chat",
    "residual_of",
    "resolve",
    "serving_device",
    "special_ids",
    "tokenizer_files",
    "trial_ids",
    "unstack_experts",
]
