"""A tokenizer as bytes, and conversations as token ids.

The surprise: apply_chat_template tokenizes what a person typed together with the template's own
markers, so `<|im_end|>` in a question ends the turn. `chat_ids` gives the same ids for harmless
text and keeps roles from being forged for the rest. A template is a stranger's program: it runs in a
process that can be killed, and what it does with a message is looked at.
"""

import hashlib
import re
import tempfile
import threading
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from upq.errors import UserError
from upq.files import is_whole
from upq.killable import Killable, Stopped

Message = dict[str, str]  # {"role": ..., "content": ...}

#: Seconds of work that a template may take; a long one takes some milliseconds.
TEMPLATE_SECONDS = 5
# split_special_tokens is a switch on the shared tokenizer, so two threads would disturb each other.
_TOKENIZING = threading.Lock()
_RENDER = Killable(Path(__file__).with_name("template.py"), "render", TEMPLATE_SECONDS)


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

    Raises UserError `bad_chat_template` with the template's own words when it refuses, or where it does not end.
    """
    try:
        template = tokenizer.get_chat_template()
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        text = _RENDER(template, messages, add_generation_prompt, special)
        if not is_whole(text):
            raise ValueError("it writes half of a character (a lone surrogate)")
    except (Stopped, ValueError) as error:
        raise UserError(
            "bad_chat_template",
            f"The chat template cannot render this conversation: {error}",
            "Some templates refuse a system message, or two turns of one role in a row;"
            " if yours is broken, mend chat_template in the model's folder.",
        ) from error
    return text


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a conversation in which no content can pose as a template marker, and none is lost.

    Harmless content gives exactly the ids of apply_chat_template. Content holding special tokens
    is tokenized as plain text and set into the rendered template.
    Raises UserError `bad_chat_template`, also where the template drops or changes what was said, or `bad_text`.
    """
    if not all(is_whole(message["content"]) for message in messages):
        raise UserError(
            "bad_text",
            "A message holds half of a character (a lone surrogate), which no tokenizer takes.",
            "Write it again; a text was probably cut in the middle of an emoji.",
        )
    hostile = [message["content"] for message in messages if _forges(tokenizer, message)]
    stand_ins = _stand_ins(hostile, messages)
    masked = [
        {**message, "content": stand_ins.get(message["content"], message["content"])}
        for message in messages
    ]
    text = render_chat(tokenizer, masked, add_generation_prompt)
    contents = {stand_in: content for content, stand_in in stand_ins.items()}
    _vet_contents(tokenizer, masked, text, contents)
    pieces = re.split("(" + "|".join(map(re.escape, contents)) + ")", text) if contents else [text]
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
    with _TOKENIZING:
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


def _stand_ins(contents: list[str], messages: list[Message]) -> dict[str, str]:
    """Content -> a word for its place in the template that no message can contain.

    It is at least as long, and of large and small letters and signs that are escaped in other languages, so that a
    template that cuts or changes content shows it.
    """
    everything = "\0".join(message["content"] for message in messages)
    digest = hashlib.sha256(everything.encode()).hexdigest()[:16]
    return {
        content: f"Content{digest}n{index}X<&'".ljust(len(content), "x")
        for index, content in enumerate(contents)
    }


def _vet_contents(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    text: str,
    stand_ins: Container[str],
) -> None:
    """Refuse a template that does not hand on what was said. Raises UserError `bad_chat_template`.

    Spaces at both ends, which many leave out, do not count. Some templates take words of their own out of a content,
    such as the thoughts in an earlier answer; they hand on a stand-in whole, and are trusted with the rest.
    """
    for place, message in enumerate(messages):
        content = message["content"]
        if content.strip() in text:
            continue
        if content not in stand_ins:
            [stand_in] = _stand_ins([content], messages).values()
            tried = [*messages]
            tried[place] = {**message, "content": stand_in}
            if stand_in in render_chat(tokenizer, tried):
                continue
        raise UserError(
            "bad_chat_template",
            f"The chat template drops or changes what the {message['role']} says.",
            "It is probably made for content in parts, as of models that see; mend chat_template in the model's"
            " folder, or choose a model for text.",
        )
