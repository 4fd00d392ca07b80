"""Markdown that a model wrote, as markup that can do nothing: no HTML, no link to follow, no picture to fetch.

markdown-it-py reads it, and its tokens are drawn with `tag`, which escapes. A link or a picture is shown as its text
with its address behind it. What cannot be drawn in bounded time or depth is shown as the plain text that it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import accumulate, pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ui.html.markup import Html, join, tag

#: Marks of emphasis, links and pictures in one text; each may cost a search through all that follows.
MAX_MARKS = 2000
#: Blocks in blocks, as quotes in lists, and emphasis in emphasis.
MAX_DEPTH = 20
_MARKS = re.compile(r"[*_\[!~]")
#: Tokens that become the element of their name; headings stand below those of the page.
_NAMES = {
    "h1": "h4", "h2": "h4", "h3": "h5", "h4": "h6", "h5": "h6", "h6": "h6",
    **{name: name for name in (
        "p", "ul", "ol", "li", "blockquote", "em", "strong", "s", "table", "thead", "tbody", "tr", "th", "td"
    )},
}  # fmt: skip
#: What a person reads as a unit, so that each finds its own direction of writing. A paragraph in one leaves it to it:
#: what finds a direction of its own is not looked at for that of what it stands in.
_DIRECTED = frozenset({"p", "li", "blockquote", "h4", "h5", "h6", "th", "td"})

# Definitions of addresses are left as they are written, since a reader would miss them; so is HTML.
_reader = (
    MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_DEPTH})
    .enable(["table", "strikethrough"])
    .disable("reference")
)


def markdown(text: str) -> Html:
    """Draw a whole text."""
    return join(block for _, block in _blocks(_with_plain_lines(text)))


class GrowingMarkdown:
    """A text that grows while it is drawn again and again: what is closed is drawn once, only its last block anew."""

    def __init__(self) -> None:
        self._closed, self._drawn = "", Html("")

    def draw(self, text: str) -> Html:
        """Draw the text so far; it may have become any other."""
        text = _with_plain_lines(text)
        if not text.startswith(self._closed):
            self._closed, self._drawn = "", Html("")
        rest = text[len(self._closed) :]
        blocks = _blocks(rest)
        # A block whose first line is whole closes the ones before it, whatever is appended.
        closing = [at for at, (start, _) in enumerate(blocks) if "\n" in rest[start:]]
        closed = closing[-1] if closing else 0
        if closed:
            self._closed += rest[: blocks[closed][0]]
            self._drawn += join(block for _, block in blocks[:closed])
        return self._drawn + join(block for _, block in blocks[closed:])


def _with_plain_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _blocks(text: str) -> list[tuple[int, Html]]:
    """Draw the outermost blocks of a text, each with the place in it where it begins."""
    if len(_MARKS.findall(text)) > MAX_MARKS:
        return [(0, _plain(text))]
    tokens = _reader.parse(text)
    if any(token.level >= MAX_DEPTH - 1 for token in tokens):
        return [(0, _plain(text))]
    starts = [at for at, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
    places = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    return [
        (places[(tokens[start].map or [0])[0]], _drawn(tokens[start:end]))
        for start, end in pairwise([*starts, len(tokens)])
    ]


def _plain(text: str) -> Html:
    return tag("p", text, class_="plain", dir="auto")


def _drawn(tokens: Iterable[Token]) -> Html:
    """Draw tokens one after another: each opening one begins an element, the closing one ends it."""
    open_elements: list[tuple[str, str | None, list[object]]] = [("", None, [])]
    hidden = 0
    for token in tokens:
        children = open_elements[-1][2]
        if token.type in ("link_open", "link_close"):
            if token.nesting > 0:
                open_elements.append(("link", _address(token), []))
            else:
                _, address, inside = open_elements.pop()
                open_elements[-1][2].append(_with_address(join(inside), address or ""))
        elif token.nesting > 0 and len(open_elements) > 2 * MAX_DEPTH:
            hidden += 1
        elif token.nesting < 0 and hidden:
            hidden -= 1
        elif token.nesting > 0:
            open_elements.append((token.tag, _start(token), []))
        elif token.nesting < 0:
            name, start, inside = open_elements.pop()
            open_elements[-1][2].append(_element(_NAMES[name], inside, start, token))
        else:
            children.append(_leaf(token))
    return join(open_elements[0][2])


def _element(name: str, inside: list[object], start: str | None, token: Token) -> Html:
    if token.hidden:  # a paragraph in a tight list
        return join(inside)
    directed = name in _DIRECTED and not (name == "p" and token.level)
    element = tag(name, *inside, dir="auto" if directed else None, start=start)
    return tag("div", element, class_="table", tabindex=0) if name == "table" else element


def _start(token: Token) -> str | None:
    return str(token.attrGet("start")) if token.attrGet("start") is not None else None


def _leaf(token: Token) -> Html | str | None:
    if token.type == "inline":
        return _drawn(token.children or [])
    if token.type in ("softbreak", "hardbreak"):  # models end lines where they mean it
        return tag("br")
    if token.type == "code_inline":
        return tag("code", token.content)
    if token.type in ("fence", "code_block"):
        return _code(token.content.removesuffix("\n"), token.info.strip())
    if token.type == "hr":
        return tag("hr")
    if token.type == "image":
        return _with_address(token.content, _address(token))
    return token.content


def _code(code: str, language: str) -> Html:
    """Draw code as it is, with what it says to be and a button that copies it."""
    copy = tag("button", "Copy", class_="link", data_action="copy", data_text=code)
    head = tag("div", tag("span", language.split(" ")[0] or "text"), copy, class_="code-head")
    return tag("div", head, tag("pre", tag("code", code), tabindex=0, dir="ltr"), class_="code")


def _address(token: Token) -> str:
    address = str(token.attrGet("href") or token.attrGet("src") or "")
    title = token.attrGet("title")
    return f"{address}, {title}" if title else address


def _with_address(text: Html | str, address: str) -> Html:
    """Draw what a link or a picture says, and in brackets where it leads, unless it says just that."""
    if not address or text == join([address]):
        return join([text])
    return join([text, tag("span", f" ({address})", class_="address")])
