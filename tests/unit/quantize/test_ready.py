"""What a large model needs is chosen and recorded, and what a GPU has no memory for is refused."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import tiny_config
from tests.support.large_models import folder_of
from upq.cli.commands import config_of
from upq.cli.parser import parser
from upq.config import RunConfig, command, preset, with_settings
from upq.errors import UserError
from upq.quantize.ready import ready, savings

GB = 10**9
H100 = 84 * GB
CHOSEN = {
    "int4.distill.optimizer_bits": 8,
    "int4.distill.checkpointing": True,
    "int2.distill.optimizer_bits": 8,
    "int2.distill.checkpointing": True,
    "int2.distill.teacher": "int4",
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the config of an 8B model."""
    return str(folder_of("Llama-3.1-8B", tmp_path_factory.mktemp("models")))


def run_of(model: str, method: str = "rotated_upq", **changes: Any) -> RunConfig:
    dotted = {path.replace("__", "."): value for path, value in changes.items()}
    return with_settings(preset("standard", method), {"model.source": model} | dotted)


def repeated(config: RunConfig) -> RunConfig:
    """The config of the run that the shell line of a config starts."""
    options = parser().parse_args(shlex.split(command(config))[3:])
    return ready(config_of(options), [pair.split("=")[0] for pair in options.set], 0)


def test_a_large_model_takes_what_saves_memory_and_the_config_says_so(large: str) -> None:
    found = ready(run_of(large), gpu=H100)
    assert found == with_settings(run_of(large), CHOSEN)
    assert repeated(found) == found


def test_a_small_model_stays_as_it_is(tiny_model_dir: Path) -> None:
    config = tiny_config(tiny_model_dir)
    assert ready(config, gpu=H100) == config
    assert savings(config) == {}


@pytest.mark.parametrize("path", CHOSEN)
def test_what_a_person_has_chosen_stays_also_where_the_run_is_repeated(
    large: str, path: str
) -> None:
    asked = run_of(large)
    found = ready(asked, [path], 0)
    others = {name: value for name, value in CHOSEN.items() if name != path}
    assert found == with_settings(asked, others | {"save_memory": False})
    assert repeated(found) == found


def test_nothing_is_chosen_where_it_is_not_wanted_or_saves_nothing(large: str) -> None:
    assert savings(run_of(large, save_memory=False)) == {}
    assert savings(run_of(large, "gptq")) == {}, "nothing is distilled"
    scales = {"int4.distill.checkpointing": True, "int2.distill.checkpointing": True}
    assert savings(run_of(large, "efficientqat")) == scales, "weights have no moments"
    assert "int4.distill.teacher" not in savings(run_of(large)), "there is no INT4 model yet"


@pytest.mark.parametrize("gpu", [H100, 24 * GB])
def test_a_run_is_refused_with_what_was_found_and_needed_and_fits_with_what_is_named(
    large: str, gpu: int
) -> None:
    asked = run_of(large, save_memory=False)
    with pytest.raises(UserError) as caught:
        ready(asked, gpu=gpu)
    assert caught.value.code == "gpu_too_small"
    message = caught.value.message
    assert f"the GPU has {gpu // GB}.0 GB" in message
    assert 84 < float(re.findall(r"needs about ([\d.]+) GB", message)[0]) < 300
    named = dict(re.findall(r"(int[24][\w.]+)=([\w.]*\w)", message))
    assert named
    fitting = with_settings(asked, named)
    assert ready(fitting, gpu=gpu) == fitting
    for path in named:
        fewer = {name: value for name, value in named.items() if name != path}
        with pytest.raises(UserError):
            ready(with_settings(asked, fewer), gpu=gpu)


def test_where_no_setting_helps_the_refusal_says_so(large: str) -> None:
    with pytest.raises(UserError, match="no setting saves as much"):
        ready(run_of(large), gpu=2 * GB)


def test_a_cpu_refuses_nothing(large: str) -> None:
    assert ready(run_of(large, save_memory=False), gpu=0) == run_of(large, save_memory=False)


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("hub", None, r"data\.path is empty"),
        ("file", None, r"data\.path is empty"),
        ("file", "", "empty"),
        ("file", '{"question": "why?"}\n', "column"),
    ],
)
def test_data_that_cannot_be_read_are_refused_before_a_run_is_queued(
    tiny_model_dir: Path, tmp_path: Path, source: str, content: str | None, words: str
) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    changes = {"data.source": source, "data.path": "" if content is None else str(path)}
    with pytest.raises(UserError, match=words):
        ready(with_settings(tiny_config(tiny_model_dir), changes), gpu=0)
