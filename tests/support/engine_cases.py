"""What tests of engines share: random models of any kind, prompts, and the tokens of transformers for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from upq.decode import TransformersEngine

VOCABULARY = 128
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip


def random_model(kind: str, settings: dict[str, Any]) -> Any:
    """A causal model of SHAPE in float32, never ending an answer. settings: of its config; attn_implementation."""
    options = dict(settings)
    attention = options.pop("attn_implementation", None)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **options})
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model = model.float().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large enough that the logits are not flat
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = None
    return model


def random_prompts(*lengths: int) -> list[list[int]]:
    """The same token ids every time, one list for each length."""
    source = torch.Generator().manual_seed(3)
    return [
        torch.randint(2, VOCABULARY, (length,), generator=source).tolist() for length in lengths
    ]


def check_neighbours(model: Any) -> None:
    """A row that is filled again and its neighbour, which goes on meanwhile, keep apart."""
    engine = TransformersEngine(model)
    first, second, third = random_prompts(30, 12, 5)
    session = engine.session(2, 64)
    whole = greedy(engine.session(1, 64), 0, second, 12)
    answer = [int(session.prefill(1, second).argmax())]
    for other in (first, third):
        assert greedy(session, 0, other, 4) == greedy(engine.session(1, 64), 0, other, 4)
        for _ in range(5):
            answer.append(int(session.step([1], answer[-1:])[0].argmax()))
    assert answer == whole[: len(answer)]


def generated(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    """What transformers decodes greedily."""
    ids = torch.tensor([list(prompt)], device=model.device)
    mask = torch.ones_like(ids)
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
    return out[0, len(prompt) :].tolist()


def greedy(session: Any, row: int, prompt: Sequence[int], tokens: int) -> list[int]:
    """One answer, while the other rows rest."""
    answer = [int(session.prefill(row, prompt).argmax())]
    while len(answer) < tokens:
        answer.append(int(session.step([row], answer[-1:])[0].argmax()))
    return answer
