"""The four presets: how large a run is, from a proof that everything works to the published budget."""

from __future__ import annotations

from upq.config import (
    PRESETS,
    BlockwiseConfig,
    DataConfig,
    DistillConfig,
    Int2Config,
    Int4Config,
    MeasureConfig,
    RunConfig,
)
from upq.errors import UserError


def preset(name: str) -> RunConfig:
    """The RunConfig of a preset. smoke: under 60 s on 2 cores; quick: under 12 minutes on 2 cores for the
    bundled model; standard: about an hour on one GPU for 1B; paper: the published budget (30B tokens).
    """
    if name not in PRESETS:
        raise UserError("bad_config", f"preset is {name!r}; expected one of {', '.join(PRESETS)}.")
    return {"smoke": _smoke, "quick": _quick, "standard": _standard, "paper": _paper}[name]()


def _smoke() -> RunConfig:
    blockwise = BlockwiseConfig(
        tokens=256, epochs=1, batch_tokens=256, weight_lr=0.01, scale_lr=0.005
    )
    return RunConfig(
        preset="smoke",
        embedding_bits=8,
        data=DataConfig(max_rows=8, held_out=4, answer_tokens=24, sequence_tokens=96),
        int4=Int4Config(blockwise=blockwise),
        int2=Int2Config(
            warm_start=blockwise,
            distill=DistillConfig(tokens=512, batch_tokens=256, checkpoint_seconds=5.0),
        ),
        measure=MeasureConfig(answer_tokens=24),
    )


def _quick() -> RunConfig:
    return RunConfig(
        preset="quick",
        embedding_bits=8,
        data=DataConfig(max_rows=208),
        int4=Int4Config(
            blockwise=BlockwiseConfig(
                tokens=8000, epochs=1, batch_tokens=512, weight_lr=0.01, scale_lr=0.003
            )
        ),
        int2=Int2Config(
            warm_start=BlockwiseConfig(
                tokens=10_000, epochs=2, batch_tokens=512, weight_lr=0.03, scale_lr=0.01
            ),
            distill=DistillConfig(tokens=32_000, batch_tokens=512, weight_lr=3e-4, scale_lr=1e-3),
        ),
    )


def _standard() -> RunConfig:
    size = {"tokens": 262_144, "epochs": 2, "batch_tokens": 4096}
    return RunConfig(
        preset="standard",
        embedding_bits=8,
        data=DataConfig(answers_per_prompt=4, answer_tokens=512, sequence_tokens=1024),
        int4=Int4Config(blockwise=BlockwiseConfig(**size, weight_lr=0.003, scale_lr=0.001)),
        int2=Int2Config(
            warm_start=BlockwiseConfig(**size, weight_lr=0.01, scale_lr=0.005),
            distill=DistillConfig(
                tokens=4_000_000,
                batch_tokens=8192,
                weight_lr=3e-4,
                scale_lr=1e-3,
                checkpoint_seconds=600.0,
            ),
        ),
    )


def _paper() -> RunConfig:
    return RunConfig(
        preset="paper",
        data=DataConfig(
            source="hub",
            path="HuggingFaceTB/dclm-edu",
            text_column="text",
            max_rows=10_000_000,
            sequence_tokens=2048,
        ),
        int4=Int4Config(
            group_size=0,
            blockwise=BlockwiseConfig(
                tokens=2_000_000, epochs=2, batch_tokens=4096, weight_lr=1e-3, scale_lr=1e-3
            ),
        ),
        int2=Int2Config(
            group_size=0,
            scale_init="absmax",
            warm_start=BlockwiseConfig(tokens=0),
            distill=DistillConfig(
                tokens=30_000_000_000,
                batch_tokens=16_384,
                accumulation=16,
                weight_lr=1e-3,  # ParetoQ's 2e-5 at a step of 0.02, common from 1B on
                scale_lr=1e-3,
                warmup_share=0.0,
                checkpoint_seconds=1800.0,
            ),
        ),
    )
