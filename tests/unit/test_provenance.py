"""A result's machine, versions, commit and tokens, and the shell line that repeats it."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from upq import machine
from upq.cli.commands import config_of
from upq.cli.parser import parser
from upq.config import METHODS, PRESETS, RunConfig, command, preset, settings, with_settings
from upq.context import training_tokens

#: A value for each setting that is not the default of any preset.
UNUSUAL: dict[str, Any] = {
    "model.revision": "v1.0",
    "data.path": "my data/ä 'quoted' $HOME;rm.jsonl",
    "data.source": "file",
    "seed": 7,
    "threads": 3,
    "embedding_bits": 16,
    "data.answer_temperature": 0.123456789012345,
    "int2.distill.weight_lr": 3.3e-7,
    "int2.distill.tokens": 1_234_567,
    "int2.blockwise.epochs": 9,
    "measure.baselines": False,
}


def read_back(line: str) -> RunConfig:
    """The config that the command line makes of a printed line."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "upq"]
    return config_of(parser().parse_args(words[3:]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_printed_line_repeats_a_preset_without_naming_a_setting(name: str, method: str) -> None:
    config = preset(name, method)
    line = command(config)
    assert read_back(line) == config
    assert "--set" not in line


@pytest.mark.parametrize("path", UNUSUAL)
def test_a_printed_line_repeats_every_kind_of_setting(path: str) -> None:
    source = {"data.source": "hub", "data.path": "owner/name"} if path != "data.path" else {}
    changed = {**source, "data.source": "file", path: UNUSUAL[path]}
    config = with_settings(preset("quick"), {"model.source": "a b/$(c)'d'.gguf", **changed})
    line = command(config)
    assert read_back(line) == config
    assert dict(settings(config))[path]["value"] == UNUSUAL[path]


def test_the_line_survives_a_real_shell() -> None:
    config = with_settings(preset("smoke"), {"model.source": "a 'b' \"c\" $HOME `id` \\ *"})
    words = subprocess.run(
        ["sh", "-c", "printf '%s\\n' " + command(config)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert config.model.source in words.stdout.split("\n")


def test_the_environment_names_this_checkout_and_this_machine(tmp_path: Path) -> None:
    facts = json.loads(json.dumps(machine.environment()))
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=machine.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if head.returncode == 0:
        assert head.stdout.startswith(facts["commit"].rstrip("+"))
        assert len(facts["commit"]) >= 12
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["memory_bytes"] > 2**28
    assert set(facts["versions"]) == {"upq", "torch", "transformers"}


def test_a_copy_inside_somebody_elses_checkout_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(machine, "ROOT", tmp_path / "copy")
    assert machine.commit() == ""


def test_tokens_are_summed_by_stage_and_speeds_are_no_tokens() -> None:
    points = [
        {"series": "int4_tokens", "step": 0, "value": 8000.0},
        {"series": "distill_tokens", "step": 0, "value": 500.0},
        {"series": "distill_tokens", "step": 1, "value": 480.0},
        {"series": "tokens_per_s", "step": 0, "value": 99.0},
    ]
    assert training_tokens(points) == {"int4": 8000, "distill": 980}
