"""Settings: every bad value is refused by its full dotted name, every good one survives JSON."""

import dataclasses
import json
import types
import typing
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upq.config import (
    METHODS,
    PRECISIONS,
    PRESETS,
    QUANTIZED,
    Precision,
    RunConfig,
    preset,
    settings,
    with_settings,
)
from upq.errors import UserError

SETTINGS = dict(settings())
NUMBERS = [path for path, spec in SETTINGS.items() if spec["low"] is not None]


def bad_value(spec: dict[str, Any]) -> Any:
    """A value of a type that the setting does not take."""
    return {"not": "this"} if spec["type"] is not bool else 1


@pytest.mark.parametrize("path", SETTINGS)
def test_a_value_of_the_wrong_type_is_refused_by_the_full_name_of_its_setting(path: str) -> None:
    with pytest.raises(UserError) as caught:
        with_settings(RunConfig(), {path: bad_value(SETTINGS[path])})
    assert caught.value.code == "bad_config"
    assert caught.value.message.startswith(f"{path} is ")


@pytest.mark.parametrize("path", NUMBERS)
def test_a_number_out_of_range_is_refused_with_its_name_and_range(path: str) -> None:
    low, high = SETTINGS[path]["low"], SETTINGS[path]["high"]
    for value in (low - 1, high + 1):
        with pytest.raises(UserError) as caught:
            with_settings(RunConfig(), {path: str(value)})
        assert caught.value.code == "bad_config"
        assert caught.value.message.startswith(f"{path} is ")
        assert f"{low:g} to {high:g}" in caught.value.message


@pytest.mark.parametrize("path", NUMBERS)
def test_both_ends_of_a_range_are_allowed(path: str) -> None:
    for end in (SETTINGS[path]["low"], SETTINGS[path]["high"]):
        changed = with_settings(RunConfig(), {path: end})
        assert dict(settings(changed))[path]["value"] == end


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"int2.distill.beta": "1.5"}, "int2.distill.beta is 1.5; expected 0 to 1."),
        ({"int2.distill.beta": "half"}, "int2.distill.beta is 'half'; expected a number."),
        ({"int2.distill.beta": float("nan")}, "int2.distill.beta is nan"),
        ({"int2.distill.beta": "inf"}, "int2.distill.beta is inf"),
        ({"int2.distill.beta": 10**400}, "int2.distill.beta is 1000"),
        ({"int2.blockwise.epochs": 1.5}, "int2.blockwise.epochs is 1.5; expected int."),
        ({"int4.blockwise.epochs": True}, "int4.blockwise.epochs is True; expected int."),
        ({"measure.baselines": "maybe"}, "measure.baselines is 'maybe'; expected bool."),
        (
            {"method": "magic"},
            "method is 'magic'; expected one of rotated_upq, portable_upq, upq, efficientqat, unisvq, gptq, rtn.",
        ),
        ({"embedding_bits": "12"}, "embedding_bits is '12'; expected one of 16, 8, 4."),
        ({"device": "abacus"}, "device is 'abacus'; expected one of auto, cpu, cuda."),
        ({"preset": "huge"}, "preset is 'huge'; expected one of smoke, quick"),
        ({"data.source": "file"}, "data.path is empty; data.source=file needs one."),
        ({"model.revision": 3}, "model.revision is 3; expected str or NoneType."),
        (
            {"int4.rounding": "ldlq", "int4.blockwise.tokens": 0},
            "int4.rounding is ldlq, which needs calibration tokens; int4.blockwise.tokens is 0.",
        ),
        ({"int2.codebook": "lattice"}, "expected int2.rounding=ldlq and int2.grid=odd with it."),
    ],
)
def test_the_message_says_what_was_found_and_what_was_expected(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        with_settings(RunConfig(), changes)
    assert caught.value.code == "bad_config"
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("int2.distil.beta", "int2.distill.beta"),
        ("beta", ".distill.beta"),
        ("int2.blockwse.tokens", "int2.blockwise.tokens"),
        ("int2.distill.temprature", "int2.distill.temperature"),
        ("groupsize", "group_size"),
        ("seeds", "seed"),
    ],
)
def test_an_unknown_setting_suggests_the_nearest_one(name: str, suggestion: str) -> None:
    with pytest.raises(UserError) as caught:
        with_settings(RunConfig(), {name: 1})
    assert caught.value.message == f"Unknown setting {name}."
    assert caught.value.hint.endswith(f"{suggestion}?")


def test_a_message_quotes_a_long_value_in_short() -> None:
    for changes in (
        {"seed": 10**400},
        {"seed": ["x" * 5000]},
        {"x" * 5000: 1},
        {"seed": "9" * 5000},
    ):
        with pytest.raises(UserError) as caught:
            with_settings(RunConfig(), changes)
        assert 20 < len(caught.value.message) < 300


def test_a_name_like_no_other_is_answered_with_the_list_of_settings() -> None:
    with pytest.raises(UserError) as caught:
        with_settings(RunConfig(), {"qqqqqqqq": 1})
    assert "--help-settings" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{nope", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[]", "config is []"),
        ('{"data": 3}', "data. is 3"),
        ('{"int2": {"distill": {"betta": 0.5}}}', "Unknown setting int2.distill.betta."),
        ('{"int2": {"distill": {"beta": 2}}}', "int2.distill.beta is 2"),
        ('{"version": 99}', "version 99"),
        ('{"version": "1"}', "version is '1'"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        RunConfig.from_json(text)
    assert caught.value.code == "bad_config"
    assert words in caught.value.message


def values(spec: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Every allowed value of a setting."""
    kind, low, high = spec["type"], spec["low"], spec["high"]
    if typing.get_origin(kind) is Literal:
        return st.sampled_from(typing.get_args(kind))
    if isinstance(kind, types.UnionType):
        return st.none() | st.text()
    numbers = {int: st.integers(low, high), float: st.floats(low, high)} if low is not None else {}
    return {bool: st.booleans(), str: st.text(), **numbers}[kind]


FREE = {path: spec for path, spec in SETTINGS.items() if path not in ("preset", "data.path")}


@given(changes=st.fixed_dictionaries({}, optional={path: values(s) for path, s in FREE.items()}))
def test_any_config_survives_json(changes: dict[str, Any]) -> None:
    texts = {path for path, value in changes.items() if isinstance(value, str)}
    parsed = {path: changes[path] for path in changes.keys() - texts}
    config = with_settings(RunConfig(), {"data.path": "x", **parsed})
    for path in texts & {"data.source", "model.source", "device"}:
        config = with_settings(config, {path: changes[path]})
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_method_in_every_preset_is_valid_and_survives_json(name: str, method: str) -> None:
    config = preset(name, method)
    assert (config.preset, config.method) == (name, method)
    assert RunConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["version"] == config.version


def test_preset_lease_is_overnight_with_the_settings_of_the_eight_minutes() -> None:
    filling = {"tokens": 80_000_000, "batch_tokens": 16_384, "checkpoint_seconds": 86_400.0}
    for_int4 = filling | {"seconds": 90.0, "weight_lr": 0.002, "scale_lr": 0.002, "norm_lr": 0.001}
    for_int2 = filling | {"seconds": 450.0, "weight_lr": 0.003, "scale_lr": 0.003, "norm_lr": 0.001}
    once = {"epochs": 1, "batch_tokens": 2048}
    sections = {
        "int4.distill": for_int4,
        "int2.distill": for_int2,
        "int4.blockwise": once | {"tokens": 49_152},
        "int2.blockwise": once | {"tokens": 65_536},
        "data": {"own_prompts": 3400, "answers_per_prompt": 3},
        "measure": {"baselines": False},
    }
    table = {
        f"{part}.{name}": value for part, own in sections.items() for name, value in own.items()
    }
    assert preset("lease") == with_settings(preset("overnight"), table | {"preset": "lease"})


@pytest.mark.parametrize("precision", QUANTIZED)
def test_preset_standard_can_move_a_weight_by_steps_of_its_grid(precision: Precision) -> None:
    """Adam moves a value by its rate a step, and a cosine's mean is half of its peak."""
    distill = preset("standard").of(precision).distill
    tokens = min(distill.tokens, 80_000 * distill.seconds)  # as measured on an H200
    assert tokens < distill.tokens, "the time ends it, not the tokens"
    assert 0.5 * distill.weight_lr * tokens / distill.batch_tokens > 1


def test_without_a_rotation_preset_lease_lets_weights_learn_by_their_own_steps() -> None:
    table = {"distill.weight_unit": "group", "distill.batch_tokens": 32_768}
    both = {
        f"{precision.key}.{path}": value for precision in QUANTIZED for path, value in table.items()
    }
    for name in ("lease", "standard"):
        portable, rotated = preset(name, "portable_upq"), preset(name)
        assert portable.int4.distill == with_settings(rotated, both).int4.distill
        assert portable.int2.distill == with_settings(rotated, both).int2.distill
    assert preset("quick", "portable_upq").int2.distill.weight_lr == 0


def test_preset_standard_takes_about_an_hour() -> None:
    config = preset("standard")
    assert 2700 <= config.int4.distill.seconds + config.int2.distill.seconds <= 3300


def test_an_unknown_preset_or_method_is_refused() -> None:
    with pytest.raises(
        UserError, match="expected one of smoke, quick, overnight, lease, standard, paper"
    ):
        preset("fast")
    with pytest.raises(
        UserError, match="method is 'magic'; expected one of rotated_upq, portable_upq, upq"
    ):
        preset("smoke", "magic")


def test_the_defaults_of_the_fields_are_those_of_the_method_that_a_config_without_one_has() -> None:
    bare = RunConfig.from_values({})
    assert bare == RunConfig()
    assert bare.method == "upq"
    amounts = ("tokens", "epochs", "lr", "seconds", "rows", "seed", "preset", "embedding_bits")
    of_preset = dict(settings(preset("quick", "upq")))
    for path, setting in settings(bare):
        if not path.endswith(amounts):
            assert setting["value"] == of_preset[path]["value"], path


#: What a run of version 0.1.0 stored, shortened where a setting has kept its default.
VERSION_1 = """{"data": {"answer_tokens": 24, "held_out": 4, "max_rows": 8, "sequence_tokens": 96},
 "device": "auto", "embedding_bits": 8,
 "int2": {"distill": {"batch_tokens": 256, "beta": 0.7, "scale_lr": 0.001, "tokens": 512, "weight_lr": 0.0003},
  "group_size": 32, "scale_init": "search",
  "warm_start": {"batch_tokens": 256, "epochs": 1, "scale_lr": 0.005, "tokens": 300, "weight_lr": 0.01}},
 "int4": {"blockwise": {"batch_tokens": 256, "epochs": 3, "scale_lr": 0.005, "tokens": 256, "weight_lr": 0.01},
  "group_size": 64, "scale_init": "absmax"},
 "measure": {"answer_tokens": 24, "baselines": true}, "method": "upq",
 "model": {"revision": null, "source": "bundled"}, "preset": "smoke", "seed": 7, "threads": 0, "version": 1}"""


def test_a_config_of_version_1_is_read_as_what_it_did() -> None:
    config = RunConfig.from_json(VERSION_1)
    assert (config.version, config.method, config.seed) == (2, "upq", 7)
    assert (config.int4.blockwise.epochs, config.int4.scale_init) == (3, "absmax")
    assert config.int4.distill.tokens == 0, "INT4 had no end-to-end training"
    assert (config.int2.blockwise.tokens, config.int2.blockwise.weight_lr) == (300, 0.01)
    assert (config.int2.distill.tokens, config.int2.distill.beta) == (512, 0.7)
    assert (config.int2.start, config.int2.group_size) == ("int4", 32)
    for one in (config.int4, config.int2):
        assert (one.grid, one.rotation, one.rounding) == ("odd", "none", "nearest")
    assert RunConfig.from_json(config.to_json()) == config


def test_rounding_to_nearest_of_version_1_trains_nothing_in_version_2_either() -> None:
    config = RunConfig.from_json(VERSION_1.replace('"method": "upq"', '"method": "rtn"'))
    for one in (config.int4, config.int2):
        assert (one.blockwise.tokens, one.distill.tokens) == (0, 0)


def test_text_from_a_command_line_is_parsed_by_the_type_of_its_setting() -> None:
    config = with_settings(
        RunConfig(),
        {
            "int2.distill.tokens": "1_000_000",
            "int2.distill.beta": "0.25",
            "measure.baselines": "False",
            "embedding_bits": "8",
            "model.revision": "",
            "data.max_rows": 12.0,
        },
    )
    assert config.int2.distill.tokens == 1_000_000
    assert config.int2.distill.beta == 0.25
    assert config.measure.baselines is False
    assert config.embedding_bits == 8
    assert config.model.revision is None
    assert type(config.data.max_rows) is int


def test_every_setting_has_a_help_text_and_a_default_within_its_range() -> None:
    for path, spec in SETTINGS.items():
        assert spec["help"], path
        if spec["low"] is not None:
            assert spec["low"] <= spec["value"] <= spec["high"], path


def test_a_config_cannot_be_changed_in_place() -> None:
    config = RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


def test_a_precision_knows_its_names_and_bits() -> None:
    assert [precision.name for precision in Precision] == list(PRECISIONS)
    assert [(one.name, one.key, one.bits) for one in QUANTIZED] == [
        ("INT4", "int4", 4),
        ("INT2", "int2", 2),
    ]
    assert [RunConfig().of(precision) for precision in QUANTIZED] == [
        RunConfig().int4,
        RunConfig().int2,
    ]


ABSORBED = {"int4.rotation": "absorbed", "int2.rotation": "absorbed"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"int2.rotation": "absorbed", "int2.start": "int4"}, "int2.start is int4"),
        ({"int4.rotation": "absorbed", "int2.start": "int4"}, "int2.start is int4"),
        (ABSORBED | {"int2.absorbed_kind": "hadamard"}, "only one rewritten model is kept"),
        (
            ABSORBED
            | {"int4.absorbed_kind": "block_hadamard", "int2.absorbed_kind": "block_hadamard"}
            | {"int4.rotation_block": 32},
            "block_hadamard in blocks of 32; rotation=absorbed, block_hadamard in blocks of 64",
        ),
    ],
    ids=["only INT2", "only INT4", "two kinds", "two block sizes"],
)
def test_absorbed_rotations_that_would_need_two_models_or_a_change_of_basis_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        with_settings(RunConfig(), changes)
    assert caught.value.code == "bad_config"
    assert words in caught.value.message
    assert "absorbed_kind" in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"int2.rotation": "absorbed", "int2.start": "fp16"},
        ABSORBED | {"int2.start": "int4"},
        ABSORBED | {"int4.rotation_block": 32, "int2.start": "int4"},
        {"int2.absorbed_kind": "hadamard", "int2.start": "int4"},
    ],
    ids=["INT2 alone", "both", "blocks that a uniform rotation has not", "a kind without rotation"],
)
def test_one_rewritten_model_is_allowed(changes: dict[str, Any]) -> None:
    config = with_settings(RunConfig(), changes)
    assert with_settings(RunConfig(), {}) != config
    assert RunConfig.from_json(config.to_json()) == config
