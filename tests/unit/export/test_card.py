"""A model card says what was measured and no more, and text from outside is text in its header and below."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.exported_runs import HOSTILE, checked, exportable_run
from upq.artifact import Artifact
from upq.export import CARD, FORMATS, PackedModel, Results, Use, export, file_name, opened
from upq.export.card import card, plain
from upq.export.dense import Dense
from upq.export.origin import Origin, origin
from upq.jobs import exports
from upq.models import LoadedModel
from upq.store import Store


@pytest.fixture
def model(store: Store, tiny: LoadedModel, tiny_model_dir: Path) -> PackedModel:
    run_id = exportable_run(store, tiny, tiny_model_dir)
    assert run_id == 1
    return exports.model_of(store, run_id, "INT2")


def read(text: str) -> tuple[dict[str, Any], str]:
    """(header, body) of a card."""
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def written(
    model: PackedModel, folder: Path, results: Results | None = None
) -> tuple[dict[str, Any], str]:
    export(model, "safetensors", folder, results=results)
    return read((folder / CARD).read_text(encoding="utf-8"))


def with_base(model: PackedModel, **changes: Any) -> PackedModel:
    """The same model of another origin."""
    manifest = json.loads(json.dumps(model.artifact.manifest))
    manifest["base_model"] |= changes
    artifact = dataclasses.replace(model.artifact, manifest=manifest)
    return opened(artifact, file_name(artifact))


def test_a_card_has_every_figure_of_its_run_and_the_line_that_repeats_it(
    model: PackedModel, store: Store, tmp_path: Path
) -> None:
    checked(store, 1, {"FP16": [True, True], "INT2": [False, True]})
    checked(store, 1, {"FP16": [True] * 3, "INT2": [True] * 3}, "ifeval")
    newest = checked(store, 1, {"FP16": [True] * 4, "INT2": [False, False, False, True]}, "ifeval")
    checked(store, 1, {"INT4": [True]}, "ifeval")
    assert store.run(newest).state == "done"
    header, body = written(model, tmp_path / "out", exports.results_of(store, 1, "INT2"))
    assert header["pipeline_tag"] == "text-generation"
    assert header["library_name"] == "transformers"
    assert {"2-bit", "int2", "safetensors"} <= set(header["tags"])
    assert not {"base_model", "base_model_relation", "license"} & header.keys()
    for words in (
        "0.1235 (95 % interval 0.1000 to 0.1500)",
        "87.5%",
        "| 4.50 | 3.25 |",
        "1,234",
        "int4 1,700",
        "seed: 0",
        "2.5 bits per weight",
        "No file of the original says its license here",
        "Built\\-in checks",
        "25.0 % [",
        "python -m upq run --model ./tiny-llama --method upq --preset smoke",
        'AutoModelForCausalLM.from_pretrained(".", dtype="float16")',
        "the decoded weights, each rounded to float16",
        "read back: every tensor is the decoded one",
    ):
        assert words in body.replace("\\(", "(").replace("\\)", ")").replace("\\[", "["), words
    (row,) = [line for line in body.splitlines() if line.startswith("| INT2 | 25.0")]
    assert "| 3 | 0 |" in row, "flips: lost and gained"
    assert str(tmp_path.parent) not in body, "no folder of this machine"


def test_a_card_has_no_figure_that_was_not_measured(model: PackedModel, tmp_path: Path) -> None:
    _, body = written(model, tmp_path / "out")
    measured = body.partition("## What was measured")[2].partition("## How it was made")[0]
    assert measured.strip() == "Nothing was measured of this model."
    _, body = written(model, tmp_path / "part", Results(measured={"kl": 0.5, "top1": None}))
    measured = body.partition("## What was measured")[2].partition("## How it was made")[0]
    assert "| 0.5000 |" in measured
    assert not re.search("interval|most likely|perplexity of|tokens measured", measured)


def test_the_card_counts_the_files_and_is_none_of_them(model: PackedModel, tmp_path: Path) -> None:
    made = export(model, "safetensors", tmp_path / "out")
    assert CARD not in {path.name for path in made.files}
    assert f"{made.size_bytes / 1e6:,.1f} MB of files" in (made.folder / CARD).read_text().replace(
        "\\", ""
    )


def test_text_from_outside_is_text(model: PackedModel, tmp_path: Path) -> None:
    hostile = with_base(model, name=HOSTILE, source="/nowhere", reference_note=HOSTILE)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", hostile.name)
    results = Results(
        measured={"kl": 0.5},
        scores={HOSTILE: [{"model": "INT2", HOSTILE: HOSTILE}]},
        tokens={HOSTILE: 5},
    )

    class Odd(Dense):
        title = runs_in = HOSTILE

        def uses(self, model: PackedModel) -> list[Use]:
            return [Use(HOSTILE, f"a\n```\n# {HOSTILE}\n````")]

    header, body = read(card(hostile, Odd(), HOSTILE, 5, results))
    assert header["tags"][0] == "quantized"
    assert "license" not in header
    outside = re.sub(r"^(`{5,})\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert "alert" in outside
    assert "`````" not in outside, "the block of code ends where it should"
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(|^---$|^license", outside, re.MULTILINE)
    heads = re.findall("^#+ (.+)$", outside, re.MULTILINE)
    assert heads[1:] == ["What was measured", "How it was made", "How to use it", "What is exact"]
    assert len(re.findall(r"(?<!\\)\|", plain("a | b"))) == 0


def test_files_that_need_our_classes_say_so(model: PackedModel) -> None:
    class Ours(Dense):
        def uses(self, model: PackedModel) -> list[Use]:
            return [Use("transformers", "import upq.hf\nmodel = ...")]

    assert "These files need UPQ Studio" in card(model, Ours(), "", 5, Results())
    assert "These files need UPQ Studio" not in card(model, Dense(), "", 5, Results())


def test_every_format_has_a_card(model: PackedModel) -> None:
    for form in FORMATS:
        assert read(card(model, form, "", 5, Results()))[0]["tags"]


def made_of(artifact: Artifact, source: Path | str) -> Origin:
    manifest = artifact.manifest | {
        "base_model": artifact.manifest["base_model"] | {"source": str(source)}
    }
    return origin(dataclasses.replace(artifact, manifest=manifest))


def test_the_license_is_what_the_models_own_files_say(
    model: PackedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    header = "---\nlicense: other\nlicense_name: mine\nlicense_link: https://e.test\nlicenses: no\n---\n# Hi\n"
    (folder / CARD).write_text(header)
    found = made_of(model.artifact, folder)
    assert found == Origin(
        "", {"license": "other", "license_name": "mine", "license_link": "https://e.test"}
    )
    told, _ = read(card(with_base(model, source=str(folder)), Dense(), "", 5, Results()))
    assert (told["license"], told["license_name"]) == ("other", "mine")
    for content in (
        "no header",
        "---\nlicense: [a]\n---\n",
        "---\n{{:\n---\n",
        "---\nlicense_name: x\n---\n",
    ):
        (folder / CARD).write_text(content)
        assert made_of(model.artifact, folder) == Origin("", {})
    (folder / CARD).unlink()
    (folder / CARD).mkdir()
    assert made_of(model.artifact, folder) == Origin("", {})
    assert made_of(model.artifact, tmp_path / "gone") == Origin("", {})


def test_a_model_of_the_hub_is_named_as_the_base(model: PackedModel) -> None:
    of_the_hub = with_base(model, source="owner/tiny-it", name="tiny-it")
    header, body = read(card(of_the_hub, Dense(), "", 5, Results()))
    assert (header["base_model"], header["base_model_relation"]) == ("owner/tiny-it", "quantized")
    assert "https://huggingface.co/owner/tiny-it" in body
    assert of_the_hub.name == "tiny-it"


def test_the_bundled_model_is_one_of_the_hub_with_the_license_of_its_file(
    model: PackedModel, bundled: LoadedModel
) -> None:
    found = made_of(model.artifact, "bundled")
    assert found == Origin("HuggingFaceTB/SmolLM2-135M-Instruct", {"license": "apache-2.0"})
    assert with_base(model, name=bundled.info.name).name == "SmolLM2-135M-Instruct"
