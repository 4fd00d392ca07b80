"""Names of series: they are stored, so they are written out here as every data folder has them."""

import pytest

from upq.config import QUANTIZED
from upq.context import STAGES, TOKENS, SeriesNames, curve_of, is_over_steps


def test_the_series_of_each_precision_are_called_as_in_old_data_folders() -> None:
    int4, int2 = (SeriesNames(precision.key) for precision in QUANTIZED)
    assert (int4.block_before, int4.block_after) == ("int4_block_before", "int4_block_after")
    assert (int2.block_before, int2.block_after) == ("int2_block_before", "int2_block_after")
    assert (int4.held_out_kl, int2.held_out_kl) == ("held_out_kl_int4", "held_out_kl_int2")
    assert (int4.over_steps("jsd"), int2.over_steps("jsd")) == ("int4_jsd", "jsd")
    assert int4.distill_stage + TOKENS == "int4_distill_tokens"
    assert {int4.key, int4.distill_stage, int2.key, int2.distill_stage} <= {*STAGES}


@pytest.mark.parametrize("curve", ["jsd", "next_token", "grad_norm", "lr", "tokens_per_s"])
def test_a_curve_is_told_from_its_series(curve: str) -> None:
    for precision in QUANTIZED:
        series = SeriesNames(precision.key).over_steps(curve)
        assert curve_of(series) == (precision.key, curve)
        assert is_over_steps(series)


def test_errors_of_blocks_and_counts_of_tokens_are_not_over_steps() -> None:
    names = SeriesNames("int2")
    for series in (names.block_before, names.block_after, names.distill_stage + TOKENS):
        assert not is_over_steps(series)
    assert is_over_steps(names.held_out_kl)
