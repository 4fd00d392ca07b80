"""WikiText-2: the text and the chunks of the published protocol, and perplexity as a naive loop computes it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from upq.errors import UserError
from upq.evaluation import read_chunk
from upq.evaluation.intervals import bootstrap_mean
from upq.evaluation.wikitext import Chunk, chunks, context_of, difference, joined_text, perplexity
from upq.models import LoadedModel

ROOT = Path(__file__).parents[3]
UPQ_DATA = Path(os.environ.get("UPQ_DATA", ROOT.parent / "shared" / "data"))


def test_a_file_is_joined_as_the_rows_of_the_hub_are(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_bytes(b" \n = Title = \n \n One \x0c line . \n")
    # What the hub's rows for these bytes are, and how GPTQ and EfficientQAT join them.
    rows = ["", " = Title = \n", "", " One \x0c line . \n"]
    assert joined_text(path) == "\n\n".join(rows)
    path.write_bytes(b" = Title = \n end")
    assert joined_text(path) == " = Title = \n\n\n end"


def test_the_official_file_has_the_known_number_of_rows() -> None:
    path = UPQ_DATA / "wikitext2_test.txt"
    if not path.exists():
        pytest.skip(f"{path.name} is not in UPQ_DATA")
    text = joined_text(path)
    assert text.startswith("\n\n = Robert Boulter = \n\n\n")
    content = path.read_text(encoding="utf-8").split("\n")
    kept = sum(len(line) + 1 for line in content[:-1] if line.strip())
    assert len(text) == kept + 2 * (4358 - 1)


def test_only_whole_chunks_are_read_and_they_do_not_overlap(tiny: LoadedModel) -> None:
    text = "".join(map(chr, range(97, 123))) * 4
    ids = tiny.tokenizer(text)["input_ids"]
    found = chunks(tiny.tokenizer, text, 40)
    assert found == [ids[:40], ids[40:80]]
    assert chunks(tiny.tokenizer, text, 52) == [ids[:52], ids[52:]]
    assert chunks(tiny.tokenizer, text, 40, limit=1) == [ids[:40]]
    with pytest.raises(UserError, match=r"104 tokens, less than one chunk of 105"):
        chunks(tiny.tokenizer, text, 105)


def test_a_short_model_reads_its_own_context(tiny: LoadedModel) -> None:
    assert context_of(tiny.model) == 512


def test_perplexity_is_that_of_the_published_code(tiny: LoadedModel) -> None:
    """The loop of GPTQ's eval: mean loss of each chunk, times its length, over all lengths."""
    pieces = [list(range(start, start + 50)) for start in (20, 80, 140)]
    total = 0.0
    for ids in pieces:
        window: Any = torch.tensor([ids])
        total += tiny.model(input_ids=window, labels=window).loss.item() * len(ids)
    results = [read_chunk(tiny.model, ids) for ids in pieces]
    assert [one.tokens for one in results] == [49] * 3
    value, (low, high) = perplexity(results)
    assert value == pytest.approx(math.exp(total / 150), rel=1e-5)
    assert low <= value <= high


def test_intervals_are_over_chunks_and_differences_over_pairs_of_them() -> None:
    before = [Chunk(nll=2.0 * 10 + at, tokens=10) for at in range(20)]
    after = [Chunk(nll=one.nll + 1.0, tokens=10) for one in before]
    _, (low, high) = perplexity(before)
    ends = bootstrap_mean([one.nll for one in before], [10] * 20)
    assert (low, high) == pytest.approx(tuple(map(math.exp, ends)))
    lost, interval = difference(before, after)
    assert (lost, *interval) == pytest.approx((0.1, 0.1, 0.1))
    assert high > low


def test_a_chunk_survives_json() -> None:
    one = Chunk(nll=1234.5678901234567, tokens=2047)
    assert Chunk.from_json(json.loads(json.dumps(one.to_json()))) == one
