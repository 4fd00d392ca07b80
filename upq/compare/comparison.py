"""A conversation and one answer to it, compared token by token: pieces of the text, and what each model thinks of them.

The tokens are those that the model wrote, where they are still known. Of an answer that was kept there is the text: it
is tokenized as the next turn of a chat would read it, and where the model ended it by itself, the token that ends an
answer is read as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from upq.compare.pieces import TextPiece, text_pieces, token_texts
from upq.compare.reading import REFERENCE, Model, Sampling, Seen, read_answer
from upq.decode import Decoding, end_ids
from upq.decode.fitting import fitted
from upq.models import chat_ids, encode, longest_sequence

#: Longest answer that is compared, tokens: what is told of each token takes about a kilobyte.
MOST_TOKENS = 1024
#: Tokens of the largest KL that are listed.
WORST = 5

_EXCHANGE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@dataclass(frozen=True)
class Answer:
    """An answer as a chat has it. ended: the model ended it by itself; ids: the tokens that it wrote, if they are still
    known; tokens: how many they were, 0 if that is not known either.
    """

    text: str
    ended: bool
    ids: Sequence[int] = ()
    tokens: int = 0


@dataclass(frozen=True)
class Comparison:
    """What each model thinks of one answer.

    ids: its tokens; seen: by precision, FP16's first; texts: of each token that is told of; is_cut: the answer goes on
    behind what was compared; made_anew: the model wrote other tokens, of which only the text is left.
    """

    ids: list[int]
    pieces: list[TextPiece]
    seen: dict[str, Seen]
    texts: dict[int, str]
    is_cut: bool
    made_anew: bool = False

    @cached_property
    def others(self) -> dict[str, Seen]:
        """The models that FP16 is compared with."""
        return {name: seen for name, seen in self.seen.items() if name != REFERENCE}

    @property
    def text(self) -> str:
        """The text that was compared."""
        return "".join(piece.text for piece in self.pieces)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; places of tokens are counted from 1."""
        return {
            "text": self.text,
            "is_cut": self.is_cut,
            "tokens": len(self.ids),
            "noise_floor": self.seen[REFERENCE].mean_differs,
            "models": {name: _summary(seen) for name, seen in self.others.items()},
            "pieces": [
                {"text": piece.text, "tokens": [at + 1 for at in range(piece.start, piece.end)]}
                for piece in self.pieces
            ],
            "by_token": [self._token(at) for at in range(len(self.ids))],
        }

    def _token(self, at: int) -> dict[str, Any]:
        return {
            "id": self.ids[at],
            "text": self.texts[self.ids[at]],
            "kl": {name: seen.kl[at] for name, seen in self.others.items()},
            "flipped": [name for name, seen in self.others.items() if seen.flipped[at]],
            "given": {name: seen.given[at] for name, seen in self.seen.items()},
            "likeliest": {
                name: [[self.texts[token], share] for token, share in seen.likeliest[at]]
                for name, seen in self.seen.items()
            },
        }


def compare(
    models: Mapping[str, Model],
    messages: Sequence[Mapping[str, str]],
    answer: Answer,
    decoding: Decoding | None = None,
) -> Comparison:
    """Let each model read an answer after its conversation, of which so much is read as when it was answered.

    models: by precision, FP16 among them; decoding: how the answer was drawn. Raises UserError as `read_answer` does,
    and `bad_chat_template`.
    """
    reference = models[REFERENCE]
    tokenizer = reference.tokenizer
    drawn = decoding or Decoding()
    limit = longest_sequence(reference.engine.config)
    said = [dict(message) for message in messages]
    prompt, _ = fitted(tokenizer, said, limit, drawn.max_new_tokens)
    whole = answer_ids(reference, answer)
    ids = whole[:MOST_TOKENS]
    sampling = Sampling(drawn.temperature, drawn.top_p, drawn.repetition_penalty)
    seen = read_answer(models, prompt, ids, sampling)
    likely = {token for one in seen.values() for best in one.likeliest for token, _ in best}
    return Comparison(
        ids=ids,
        pieces=text_pieces(tokenizer, ids),
        seen=seen,
        texts=token_texts(tokenizer, likely | set(ids)),
        is_cut=len(whole) > len(ids),
        made_anew=not answer.ids and answer.tokens not in (0, len(whole)),
    )


def answer_ids(model: Model, answer: Answer) -> list[int]:
    """The tokens of an answer, with the one that ends it where the model ended it."""
    if answer.ids:
        return list(answer.ids)
    tokenizer = model.tokenizer
    ids = encode(tokenizer, answer.text, plain=True)
    return [*ids, _end_of_answer(model)] if answer.ended else ids


def _end_of_answer(model: Model) -> int:
    """The token that the chat template writes behind an answer; without one, the tokenizer's own end."""
    ends = end_ids(model.engine, model.tokenizer)
    written = chat_ids(model.tokenizer, _EXCHANGE, add_generation_prompt=False)
    return next((token for token in reversed(written) if token in ends), min(ends))


def _summary(seen: Seen) -> dict[str, Any]:
    return {
        "kl": seen.mean_kl,
        "kl_p95": seen.kl_p95,
        "top1": seen.same_top1,
        "first_flip": seen.first_flip,
        "flips": sum(seen.flipped),
        "differs": seen.mean_differs,
        "worst": [at + 1 for at in seen.worst(WORST)],
    }
