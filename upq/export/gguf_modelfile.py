"""The Modelfile with which Ollama takes a GGUF: its template in Ollama's language, where ends of answers stand, its
length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upq.errors import UserError
from upq.models import render_chat

#: Tokens for which Ollama makes room at once: it needs memory for all of them.
LARGEST_CONTEXT = 8192


@dataclass(frozen=True)
class Turns:
    """A kind of chat template: behind begin, every turn is before, role, between, content and after."""

    begin: str
    before: str
    between: str
    after: str

    def text(self, messages: list[dict[str, str]]) -> str:
        """A conversation, and the beginning of an answer."""
        turns = [
            f"{self.before}{one['role']}{self.between}{one['content']}{self.after}"
            for one in messages
        ]
        return "".join([self.begin, *turns, self.before, "assistant", self.between])

    def template(self) -> str:
        """The same in Ollama's language; llama.cpp writes the token of the beginning itself."""
        turn = f"{self.before}{{{{ .Role }}}}{self.between}{{{{ .Content }}}}{self.after}"
        return f"{{{{- range .Messages }}}}{turn}{{{{ end }}}}{self.before}assistant{self.between}"


KNOWN = (
    Turns("", "<|im_start|>", "\n", "<|im_end|>\n"),
    Turns("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
)
#: What is compared. A turn each of a role, contents that no template would write by itself.
CONVERSATION = [
    {"role": "user", "content": "first words"},
    {"role": "assistant", "content": "second words"},
    {"role": "user", "content": "third words"},
]
SYSTEM = {"role": "system", "content": "words before all"}


def modelfile(file: str, tokenizer: Any, stops: list[str], context: int) -> str:
    """The content of a Modelfile. A template of no known kind is left to Ollama, which then guesses from the GGUF's."""
    lines = [f"FROM ./{file}"]
    known = next((kind for kind in KNOWN if _is_of(kind, tokenizer)), None)
    if known is None:
        lines.append(
            "# The chat template is of a kind that we cannot translate; Ollama looks at the GGUF's own."
        )
    else:
        lines.append(f'TEMPLATE """{known.template()}"""')
        if words := _words_of_its_own(known, tokenizer):
            lines.append(f'SYSTEM """{words}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines.append(f"PARAMETER num_ctx {min(context, LARGEST_CONTEXT)}")
    return "\n".join(lines) + "\n"


def _is_of(kind: Turns, tokenizer: Any) -> bool:
    """Whether the chat template writes conversations as this kind does."""
    messages = [SYSTEM, *CONVERSATION]
    try:
        return render_chat(tokenizer, messages) == kind.text(messages)
    except UserError:  # some templates refuse a system message
        return False


def _words_of_its_own(kind: Turns, tokenizer: Any) -> str:
    """What the chat template lets the system say where nobody else does."""
    text = render_chat(tokenizer, CONVERSATION)
    start = f"{kind.begin}{kind.before}system{kind.between}"
    rest = kind.text(CONVERSATION).removeprefix(kind.begin)
    if not text.startswith(start) or not text.endswith(f"{kind.after}{rest}"):
        return ""
    return text[len(start) : -len(f"{kind.after}{rest}")]
