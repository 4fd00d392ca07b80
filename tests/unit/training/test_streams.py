"""Hidden states kept in memory or in mapped files give the bits of a plain forward pass, one batch at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.helpers import examples
from upq.data import collate
from upq.models import LoadedModel, decoder_blocks
from upq.training.streams import HiddenStates, Streams

CPU = torch.device("cpu")
DATA = examples(6)
BATCHES = [collate(DATA[0:3]), collate(DATA[3:5]), collate(DATA[0:3])]
IN_MEMORY, IN_FILES = 2**30, 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [IN_MEMORY, IN_FILES])
def test_what_was_written_is_read(tmp_path: Path, dtype: torch.dtype, limit: int) -> None:
    shapes = [(2, 3, 4), (1, 5, 4)]
    states = HiddenStates(shapes, dtype, CPU, tmp_path, limit)
    values = [torch.randn(shape).to(dtype) for shape in shapes]
    for index, value in enumerate(values):
        states[index] = value
    assert states.is_mapped is (limit == IN_FILES)
    assert all(torch.equal(states[index], value) for index, value in enumerate(values))
    assert states[0].data_ptr() != values[0].data_ptr()


def test_the_limit_is_the_size_that_still_fits_into_memory(tmp_path: Path) -> None:
    assert not HiddenStates([(3, 4)], torch.float32, CPU, tmp_path, 48).is_mapped
    assert HiddenStates([(3, 4)], torch.float32, CPU, tmp_path, 47).is_mapped


def test_mapped_files_leave_nothing_in_the_folder(tmp_path: Path) -> None:
    states = HiddenStates([(3, 4)], torch.float32, CPU, tmp_path / "new", 0)
    states[0] = torch.ones(3, 4)
    assert states[0].sum() == 12
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("limit", [IN_MEMORY, IN_FILES])
@torch.no_grad()
def test_two_streams_run_through_the_blocks_as_through_the_model(
    tiny: LoadedModel, tmp_path: Path, limit: int
) -> None:
    _, blocks = decoder_blocks(tiny.model)
    streams = Streams.enter(tiny.model, BATCHES, CPU, tmp_path, limit)
    assert len(streams) == len(BATCHES)
    for index, block in enumerate(blocks):
        for stream in streams:
            stream.reference = stream.calls[index].run(block, stream.reference)
            stream.inputs = 2 * stream.calls[index].run(block, stream.inputs)
    for batch, stream in zip(BATCHES, streams, strict=True):
        entering = tiny.model.get_input_embeddings()(batch.ids)
        plain = doubled = entering
        for index, block in enumerate(blocks):
            plain = stream.calls[index].run(block, plain)
            doubled = 2 * stream.calls[index].run(block, doubled)
        assert torch.equal(stream.reference, plain)
        assert torch.equal(stream.inputs, doubled)
        whole = tiny.model(batch.ids, output_hidden_states=True).hidden_states
        last = tiny.model.model.norm(stream.reference)
        torch.testing.assert_close(last, whole[-1])
        assert torch.equal(stream.weight.squeeze(-1).bool(), batch.real)


def test_batches_of_one_shape_share_their_positions(tiny: LoadedModel, tmp_path: Path) -> None:
    first, other, again = Streams.enter(tiny.model, BATCHES, CPU, tmp_path, IN_MEMORY)
    cosines = [one.calls[0].kwargs["position_embeddings"][0] for one in (first, other, again)]
    assert cosines[0] is cosines[2]
    assert cosines[0].shape != cosines[1].shape or cosines[0] is cosines[1]
    assert first.calls[1].kwargs["position_embeddings"][0] is cosines[0], "and so do the blocks"


def test_no_batches_make_no_streams(tiny: LoadedModel, tmp_path: Path) -> None:
    assert len(Streams.enter(tiny.model, [], CPU, tmp_path, IN_MEMORY)) == 0
