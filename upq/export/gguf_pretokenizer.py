"""Which of llama.cpp's rules cuts a text into words before byte-pair merging: `tokenizer.ggml.pre` of a GGUF.

llama.cpp knows each rule by a name. Its converter finds the name by the ids that a tokenizer gives for one text;
those of the usual families are below. A vocabulary of its own gives other ids, so there the rule itself is compared.
"""

from __future__ import annotations

import hashlib
from typing import Any

from upq.export.formats import cannot_export

#: The text that llama.cpp's converter hashes the ids of.
TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙"
    " 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天\uff5e "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure?"
    " 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
#: sha256 of the ids -> the name.
NAMES = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",  # Llama 3
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",  # Qwen 1.5 to 3
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",  # SmolLM, SmolLM2
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",  # Mistral Nemo
    "0e9433cbbb161f89e264eb32e8e64bfe69e834973ffca5d41d3948a604a3e2a3": "pixtral",
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
    "049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754": "deepseek-llm",
    "347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821": "deepseek-coder",
    "9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e": "falcon3",
}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DIGITS, WORDS_OF_GPT2 = "each digit", "words of GPT-2"
#: The steps of a rule -> the name.
RULES = {
    (WORDS_OF_GPT2,): "gpt-2",
    (DIGITS, WORDS_OF_GPT2): "smollm",
    (rf"{_WORDS}\p{{N}}{{1,3}}{_REST}",): "llama-bpe",
    (rf"{_WORDS}\p{{N}}{_REST}",): "qwen2",
}


def pre_tokenizer(tokenizer: Any, definition: dict[str, Any]) -> str:
    """llama.cpp's name. definition: what tokenizer.json says. Raises UserError("cannot_export") for an unknown rule."""
    ids = str(tokenizer.encode(TEXT)).encode()
    steps = tuple(_steps(definition.get("pre_tokenizer") or {}))
    name = NAMES.get(hashlib.sha256(ids).hexdigest()) or RULES.get(steps)
    if name is None:
        raise cannot_export(
            f"The tokenizer cuts texts by a rule that we do not know by llama.cpp's name: {steps!r:.200}.",
            "Take the safetensors format; llama.cpp's own converter may know the rule.",
        )
    return name


def _steps(rule: dict[str, Any]) -> list[str]:
    """What a rule of tokenizer.json does, step by step; unknown steps by their types."""
    kind = rule.get("type")
    if kind == "Sequence":
        return [step for part in rule["pretokenizers"] for step in _steps(part)]
    if kind == "ByteLevel":
        return [WORDS_OF_GPT2] if rule.get("use_regex", True) else []
    if kind == "Digits" and rule.get("individual_digits"):
        return [DIGITS]
    if kind == "Split" and rule.get("behavior") == "Isolated" and not rule.get("invert"):
        return [str(rule["pattern"].get("Regex"))]
    return [f"a {kind}"]
