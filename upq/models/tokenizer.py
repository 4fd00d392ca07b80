"""A tokenizer as bytes, and conversations as token ids.

The surprise: apply_chat_template tokenizes what a person typed together with the template's own
markers, so `<|im_end|>` in a question ends the turn. `chat_ids` gives the same ids for harmless
text and keeps roles from being forged for the rest.
"""

import hashlib
import re
import tempfile
import threading
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import TemplateError
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from upq.errors import UserError

Message = dict[str, str]  # {"role": ..., "content": ...}

# split_special_tokens is a switch on the shared tokenizer, so two threads would disturb each other.
_TOKENIZING = threading.Lock()
# What a template can raise: Jinja's own errors, and Python's from the expressions in it.
_TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Every file needed to load the tokenizer and its chat template again with no network."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        root = Path(folder)
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


def load_tokenizer(files: dict[str, bytes]) -> PreTrainedTokenizerBase:
    """The inverse of `tokenizer_files`. Raises UserError `corrupt_file` for an unsafe name."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(
                    "corrupt_file", f"The tokenizer holds a file with an unsafe name, {name!r}."
                )
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation as the template lays it out, for showing and for tests.

    Raises UserError `bad_chat_template` with the template's own words when it refuses.
    """
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except _TEMPLATE_ERRORS as error:
        raise UserError(
            "bad_chat_template",
            f"The chat template cannot render this conversation: {error or type(error).__name__}",
            "Some templates refuse a system message, or two turns of one role in a row;"
            " if yours is broken, mend chat_template in the model's folder.",
        ) from error
    return str(text)


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a conversation in which no content can pose as a template marker.

    Harmless content gives exactly the ids of apply_chat_template. Content holding special tokens
    is tokenized as plain text and set into the rendered template.
    Raises UserError `bad_chat_template`.
    """
    with _TOKENIZING:
        hostile = [message["content"] for message in messages if _forges(tokenizer, message)]
        if not hostile:
            return encode(tokenizer, render_chat(tokenizer, messages, add_generation_prompt))
        stand_ins = _stand_ins(hostile, messages)
        masked = [
            {**message, "content": stand_ins.get(message["content"], message["content"])}
            for message in messages
        ]
        text = render_chat(tokenizer, masked, add_generation_prompt)
        contents = {stand_in: content for content, stand_in in stand_ins.items()}
        pieces = re.split("(" + "|".join(contents) + ")", text)
        return [
            token
            for piece in pieces
            for token in encode(tokenizer, contents.get(piece, piece), plain=piece in contents)
        ]


def encode(tokenizer: PreTrainedTokenizerBase, text: str, plain: bool = False) -> list[int]:
    """Token ids of a text; plain: no special token is recognised in it."""
    if not text:
        return []
    # A long text only matters where it is used, and there it is refused with the model's limit.
    return tokenizer(
        text, add_special_tokens=False, split_special_tokens=plain, verbose=False
    ).input_ids


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that only a template may write, the unknown token left out."""
    added: dict[int, AddedToken] = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {token for token, entry in added.items() if entry.special}
    unknown: Any = tokenizer.unk_token_id
    return (marked | set(tokenizer.all_special_ids)) - {unknown}


def _forges(tokenizer: PreTrainedTokenizerBase, message: Message) -> bool:
    """Whether tokenizing the content as it stands yields a special token it must not hold."""
    content = message["content"]
    # The unknown token also stands for rare characters, so there only its spelling counts.
    if tokenizer.unk_token and str(tokenizer.unk_token) in content:
        return True
    return not special_ids(tokenizer).isdisjoint(encode(tokenizer, content))


def _stand_ins(hostile: list[str], messages: list[Message]) -> dict[str, str]:
    """Content -> a word for its place in the template that no message can contain."""
    everything = "\0".join(message["content"] for message in messages)
    digest = hashlib.sha256(everything.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return {content: f"content{digest}n{index}x" for index, content in enumerate(hostile)}
