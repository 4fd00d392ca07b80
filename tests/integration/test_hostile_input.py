"""Searches for an input that ends otherwise than well or as a UserError, or that does not end.

The same examples every time, in a minute; the tests marked slow go on for longer. What they found stands in the tests
of the wings, as a case of its own.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.conftest import make_tokenizer
from tests.support import gguf_cases
from upq.config import DataConfig
from upq.data import read_rows
from upq.errors import UserError
from upq.evaluation import ifeval_suite
from upq.evaluation.mmlu import exam
from upq.evaluation.wikitext import joined_text
from upq.killable import Killable
from upq.models import chat_ids, inspect, load, shape, template, tokenizer

#: Seconds after which an example hangs, on a machine that is busy.
HANG_S = 60

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([0, -1, 2**31, 2**40, 2**63, 2**70, 10**400, "", "a" * 2000, "\ud83d"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
#: (where, as a share of the length; the bytes that are put there)
DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), max_size=4)


class Hang(BaseException):
    """No code that is tested catches it."""


def only_user_errors(call: Callable[[], object]) -> None:
    """Call it; a UserError is as good as a result."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        call()
    except UserError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def examples(count: int) -> Any:
    return settings(
        max_examples=count, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )


def damaged(content: bytes, damage: list[tuple[float, bytes]], reach: int) -> bytes:
    """Bytes with some of the first `reach` of them replaced."""
    changed = bytearray(content)
    for share, piece in damage:
        at = int(share * (reach - 1))
        changed[at : at + len(piece)] = piece
    return bytes(changed)


def read_model(path: Path) -> None:
    """As a run and as the estimate read it; what the estimate knows is forgotten."""
    shape._skeleton.cache_clear()
    shape._inspect.cache_clear()
    only_user_errors(lambda: inspect(str(path), None, 32, 32))
    only_user_errors(lambda: load(str(path)))


@pytest.fixture(scope="module")
def sound_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_cases.write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "sound.gguf")


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder that tests may damage, if they mend it."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(tiny_model_dir, folder)
    return folder


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    sound = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(sound)


def search_gguf(sound: Path, count: int) -> None:
    whole = sound.read_bytes()
    reach = whole.index(b"attn_norm")  # what stands before it is the metadata and the first tensors
    tried = sound.with_name("tried.gguf")

    @examples(count)
    @given(DAMAGE, st.none() | st.floats(0, 1), st.integers(0, reach))
    def search(damage: list[tuple[float, bytes]], cut: float | None, at: int) -> None:
        # Without other damage a number that stands anywhere becomes far too large.
        damage = damage or [(at / reach, struct.pack("<Q", 2**40 + at))]
        content = damaged(whole, damage, reach)
        tried.write_bytes(content if cut is None else content[: int(cut * len(content))])
        read_model(tried)

    search()


SIZES = [
    "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "context_length",
    "feed_forward_length", "vocab_size", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
    "attention.key_length", "expert_count",
]  # fmt: skip


def search_gguf_values(folder: Path, count: int) -> None:
    """Files that are sound as such, with metadata and shapes of anything."""
    names = st.sampled_from(SIZES)
    architectures = st.sampled_from(
        ["llama", "qwen2", "gemma2", "phi3", "gpt2", "mamba", "bloom", "x"]
    )
    number = st.integers(0, 20) | st.integers(0, 2**32 - 1)
    value = number.map(lambda at: (gguf_cases.UINT32, at)) | st.text(max_size=5).map(
        lambda text: (gguf_cases.TEXT, text)
    )
    tensors = st.lists(
        st.tuples(
            st.sampled_from(["token_embd", "output", "output_norm", "blk.0.attn_q", "blk.0.ffn_up"]),
            st.lists(st.integers(1, 32), min_size=1, max_size=3),
        ),
        min_size=1, max_size=4, unique_by=lambda entry: entry[0],
    )  # fmt: skip
    tried = folder / "tried.gguf"

    @examples(count)
    @given(
        architectures,
        st.dictionaries(names, value, max_size=3),
        tensors,
        st.lists(st.text(max_size=3)),
    )
    def search(
        architecture: str, values: dict[str, Any], shapes: list[Any], tokens: list[str]
    ) -> None:
        sizes = dict.fromkeys(("block_count", "attention.head_count"), (gguf_cases.UINT32, 2))
        sizes |= {"embedding_length": (gguf_cases.UINT32, 8), **values}
        keys = [gguf_cases.key("general.architecture", gguf_cases.TEXT, architecture)]
        keys += [gguf_cases.key(f"{architecture}.{name}", *value) for name, value in sizes.items()]
        keys += [gguf_cases.key("tokenizer.ggml.model", gguf_cases.TEXT, "gpt2")]
        raw = b"".join(map(gguf_cases.text, tokens))
        keys += [gguf_cases.array("tokenizer.ggml.tokens", gguf_cases.TEXT, len(tokens), raw)]
        entries, start = [], 0
        for name, widths in shapes:
            entries.append(gguf_cases.tensor(f"{name}.weight", widths, start=start))
            start += -(-4 * math.prod(widths) // 32) * 32
        tried.write_bytes(gguf_cases.a_file(keys, entries, start + 64))
        read_model(tried)

    search()


def search_safetensors(folder: Path, count: int) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, values = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    names = sorted(header)
    fields = st.sampled_from(["dtype", "shape", "data_offsets"])
    kinds = st.sampled_from(["F32", "F64", "I8", "I64", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64"])

    @examples(count)
    @given(
        st.sampled_from(names), fields, JSON | kinds | st.lists(st.integers(), max_size=3), DAMAGE
    )
    def search(name: str, field: str, value: Any, damage: list[tuple[float, bytes]]) -> None:
        entry = {**header[name], field: value} if field in header[name] else value
        raw = json.dumps({**header, name: entry}).encode()
        content = len(raw).to_bytes(8, "little") + raw + values
        with changed(path, damaged(content, damage[:2], 8 + len(raw))):
            read_model(folder)

    search()


#: Values of the types that a config has, most of which libraries accept.
NUMBERS = st.integers(-2, 70) | st.sampled_from([2**10, 2**20, 2**31, 2**40, 2**62])
LIKELY = {
    int: NUMBERS,
    float: st.floats() | NUMBERS.map(float),
    str: st.text(max_size=4) | st.sampled_from(["gelu", "float16", "float64", "int8", "yarn"]),
    bool: st.booleans(),
    list: st.lists(NUMBERS | st.text(max_size=4), max_size=3),
    dict: st.dictionaries(
        st.sampled_from(["rope_type", "rope_theta", "factor", "type"]),
        st.sampled_from(["yarn", "llama3", "dynamic", "longrope", "linear"]) | st.floats() | NUMBERS,
        max_size=3,
    ),
}  # fmt: skip


def search_config(folder: Path, count: int) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    more = {"num_labels": 2, "sliding_window": 8, "layer_types": [], "num_experts": 2}
    likely = {name: LIKELY.get(type(value), JSON) for name, value in {**config, **more}.items()}
    change = st.sampled_from(sorted(likely)).flatmap(
        lambda name: st.tuples(
            st.just(name), likely[name] | JSON if name[0] < "c" else likely[name]
        )
    )
    types = st.sampled_from(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

    @examples(count)
    @given(st.lists(change, min_size=1, max_size=3).map(dict), st.none() | types)
    def search(changes: dict[str, Any], kind: str | None) -> None:
        tried = {**config, **changes}
        if kind is not None:
            tried = {**tried, "model_type": kind, "architectures": None}
        with changed(path, json.dumps(tried).encode()):
            read_model(folder)

    search()


PIECES = [
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{{ 1 // 0 }}", "{{ m }}",
    "{% if add_generation_prompt %}", "{% endif %}", "{{ messages[9] }}", "{{ bos_token }}", "{{ '\\ud800' }}",
    "{% for i in range(99999) %}", "{% set ns = namespace(a='x') %}", "{% set ns.a = ns.a + ns.a %}", "{{ ns.a }}",
    "{{ m.content | tojson }}", "{{ m.content.split('') }}", "{{ 'x' * 10 ** 9 }}", "{{ [1] * 10 ** 9 }}",
    "{% macro f() %}", "{{ f() }}", "{% endmacro %}", "{{ ''.__class__ }}", "{{ messages.append(1) }}",
    "{{ raise_exception('no') }}", "{{ 9 ** 9 ** 9 }}", "<|im_start|>", "{%", "}}", "\0", "\n",
    "{{ '%*d' % (10 ** 9, 1) }}", "{{ strftime_now('%') }}", "{% generation %}", "{% endgeneration %}",
]  # fmt: skip


def search_templates(count: int) -> None:
    pieces = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=30)
    contents = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)
    hostile = st.sampled_from(["<|im_end|>", "Hi <|im_start|>", "{{ 1 }}", ""])
    turn = st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": contents | hostile}
    )
    broken = make_tokenizer()

    @examples(count)
    @given(pieces, st.lists(turn, min_size=1, max_size=3), st.booleans())
    def search(text: str, messages: list[dict[str, str]], prompt: bool) -> None:
        broken.chat_template = text
        only_user_errors(lambda: chat_ids(broken, messages, prompt))

    render = Killable(Path(template.__file__), "render", 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_RENDER", render)
        search()
    render.close()


COLUMNS: list[dict[str, Any]] = [
    {}, {"text_column": "text"}, {"messages_column": "messages"}, {"answer_column": "answer"},
]  # fmt: skip


def search_rows(folder: Path, count: int) -> None:
    names = st.sampled_from(["prompt", "text", "messages", "answer", "key", "question"])
    said = st.sampled_from(["Hi", "Ho", " ", "\ud83d", "<|im_end|>"]) | st.text(max_size=5)
    message = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": said | JSON}
    )
    row = st.dictionaries(names, said | st.lists(message | JSON, max_size=3) | JSON, max_size=4)
    line = row.map(lambda values: json.dumps(values).encode()) | st.binary(max_size=30)
    sound = make_tokenizer()

    @examples(count)
    @given(
        st.lists(line, max_size=5), st.sampled_from(["jsonl", "txt", "parquet"]),
        st.sampled_from(COLUMNS), st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    )  # fmt: skip
    def search(lines: list[bytes], ending: str, columns: dict[str, Any], mark: bytes) -> None:
        path = folder / f"rows.{ending}"
        path.write_bytes(mark + b"\n".join(lines))
        config = DataConfig(source="file", path=str(path), held_out=0, max_rows=9, **columns)

        def read() -> None:
            for row in read_rows(config, 0)[0]:
                assert row.text.strip() or chat_ids(sound, list(row.messages))

        only_user_errors(read)
        for suite in (ifeval_suite, exam, joined_text):
            only_user_errors(lambda suite=suite: suite(path))

    search()


def test_no_gguf_breaks_or_hangs_it(sound_gguf: Path) -> None:
    search_gguf(sound_gguf, 150)


def test_no_metadata_of_a_gguf_breaks_or_hangs_it(tmp_path: Path) -> None:
    search_gguf_values(tmp_path, 150)


def test_no_safetensors_header_breaks_or_hangs_it(model: Path) -> None:
    search_safetensors(model, 150)


def test_no_config_breaks_or_hangs_it(model: Path) -> None:
    search_config(model, 300)


def test_no_template_breaks_or_hangs_it() -> None:
    search_templates(100)


def test_no_row_breaks_or_hangs_it(tmp_path: Path) -> None:
    search_rows(tmp_path, 500)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["gguf", "values", "safetensors", "config", "templates", "rows"])
def test_nothing_breaks_or_hangs_it_in_a_longer_search(
    kind: str, sound_gguf: Path, model: Path, tmp_path: Path
) -> None:
    searches: dict[str, Callable[[], None]] = {
        "gguf": lambda: search_gguf(sound_gguf, 3000),
        "values": lambda: search_gguf_values(tmp_path, 3000),
        "safetensors": lambda: search_safetensors(model, 3000),
        "config": lambda: search_config(model, 3000),
        "templates": lambda: search_templates(1000),
        "rows": lambda: search_rows(tmp_path, 10_000),
    }
    searches[kind]()
