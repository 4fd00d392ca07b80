"""The model card of an export: what the model is, what was measured of it, how it was made and how it is used.

It holds no figure that was not measured. Text from outside is escaped: in the header by the YAML library, in the text
for Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from upq.config import Precision, RunConfig, command, with_settings
from upq.export.formats import Format
from upq.export.model import PackedModel
from upq.export.origin import Origin, origin

#: Beginning of a format's key -> the library that the hub shows; transformers for all others.
LIBRARIES = {"gguf": "gguf", "mlx": "mlx"}
#: What a program that needs our own classes has in its lines.
OWN_IMPORT = "import upq.hf"
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")


@dataclass(frozen=True)
class Results:
    """What is known of a model beside its artifact; all of it may be missing.

    measured: its row of the run's measurements, and `reference` the row of FP16. scores: title of a suite -> rows as
    people read them. tokens: stage -> tokens that it was trained on.
    """

    measured: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)


def card(model: PackedModel, form: Format, found: str, size_bytes: int, results: Results) -> str:
    """The card of files of a model. found: what the comparison with the artifact found. size_bytes: of the files."""
    base = origin(model.artifact)
    header = yaml.safe_dump(_header(model, form, base), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{header}---",
        f"# {plain(model.name)}, {model.precision}",
        _what_it_is(model, form, base, size_bytes),
        "## What was measured",
        *_measured(model, results),
        "## How it was made",
        *_made(model, results),
        "## How to use it",
        *_used(model, form),
        "## What is exact",
        f"These files hold, of the quantized model as UPQ Studio keeps it: {plain(form.offer(model).exactness)}. They"
        f" were compared with it before they were handed out; {plain(found)}.",
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: object) -> str:
    """A text of one line in which no character means anything to Markdown."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def _header(model: PackedModel, form: Format, base: Origin) -> dict[str, Any]:
    made_of = {"base_model": base.hub_id, "base_model_relation": "quantized"}
    bits = f"{Precision[model.precision].bits}-bit"
    return {
        **(made_of if base.hub_id else {}),
        **base.license,
        "library_name": LIBRARIES.get(form.key.partition("-")[0], "transformers"),
        "pipeline_tag": "text-generation",
        "tags": ["quantized", bits, model.precision.lower(), form.key, "upq-studio"],
    }


def _what_it_is(model: PackedModel, form: Format, base: Origin, size_bytes: int) -> str:
    manifest = model.artifact.manifest
    name = plain(manifest["base_model"]["name"])
    whole = f"[{plain(base.hub_id)}](https://huggingface.co/{base.hub_id})" if base.hub_id else name
    text = (
        f"{whole} in {model.precision}, made with UPQ Studio {plain(manifest['versions']['upq'])} by method"
        f" {plain(manifest['method'])}, preset {plain(manifest['config'].get('preset', 'unknown'))}:"
        f" {manifest['bits_per_weight']:.4g} bits per weight of the quantized linears as trained,"
        f" {size_bytes / 1e6:,.1f} MB of files. The format is {plain(form.title)}, for {plain(form.runs_in)}."
    )
    if note := manifest["base_model"]["reference_note"]:
        text += f" {plain(note)}."
    if not base.license:
        text += " No file of the original says its license here; look at its page before you pass this on."
    return text


def _measured(model: PackedModel, results: Results) -> list[str]:
    parts = []
    if rows := _figures(model.precision, results):
        parts += [
            "On held-out answers of the FP16 model, which the training never saw. The model was measured in UPQ"
            " Studio, not in the programs below, which may round activations in their own way.",
            _table([("figure", model.precision, "FP16"), *rows]),
        ]
    for title, scores in results.scores.items():
        parts += [
            f"{plain(title)}, with 95 % intervals; lost and gained: where only FP16 is right, and the reverse.",
            _table([tuple(scores[0]), *(tuple(row.values()) for row in scores)]),
        ]
    return parts or ["Nothing was measured of this model."]


def _figures(precision: str, results: Results) -> list[tuple[str, str, str]]:
    """(figure, of this model, of FP16) of what there is."""
    own, whole = results.measured, results.reference
    rows = []
    if own.get("kl") is not None:
        sure = (own.get("kl_low"), own.get("kl_high"))
        interval = "" if None in sure else " (95 % interval {:.4f} to {:.4f})".format(*sure)
        rows.append(("KL divergence to FP16, nats a token", f"{own['kl']:.4f}{interval}", ""))
    if own.get("top1") is not None:
        rows.append(("same most likely token as FP16", f"{own['top1']:.1%}", ""))
    if own.get("ppl") is not None:
        reference = f"{whole['ppl']:.2f}" if whole.get("ppl") is not None else ""
        rows.append(("perplexity of these answers", f"{own['ppl']:.2f}", reference))
    if own.get("tokens") is not None:
        rows.append(("tokens measured", f"{own['tokens']:,}", ""))
    return rows


def _made(model: PackedModel, results: Results) -> list[str]:
    manifest = model.artifact.manifest
    config = _without_folders(RunConfig.from_values(manifest["config"]))
    facts = [("data", _data(config)), ("seed", str(manifest["seed"]))]
    if results.tokens:
        stages = ", ".join(f"{stage} {count:,}" for stage, count in results.tokens.items())
        facts.append(("tokens of each stage", stages))
    facts.append(("commit", manifest["commit"] or "not kept"))
    repeat = "This line repeats it at that commit; a + behind a commit means that files differed from it."
    listed = "\n".join(f"- {name}: {plain(value)}" for name, value in facts)
    return [listed, repeat, _code(command(config), "sh")]


def _data(config: RunConfig) -> str:
    data = config.data
    kind = {
        "builtin": "the built-in prompts",
        "hub": f"the data set {data.path}, split {data.split}",
        "file": f"the file {data.path}",
    }[data.source]
    whose = (
        ""
        if data.answer_column or data.messages_column or data.text_column
        else ", answered by the FP16 model"
    )
    own = f", and {data.own_prompts:,} prompts that the model wrote" if data.own_prompts else ""
    return f"at most {data.max_rows:,} rows of {kind}{whose}{own}"


def _without_folders(config: RunConfig) -> RunConfig:
    """A config that names files and folders of the machine by their last part only."""
    changes = {}
    if "/" in config.model.source and not _is_hub_id(config.model.source):
        changes["model.source"] = f"./{Path(config.model.source).name}"
    if config.data.source == "file":
        changes["data.path"] = Path(config.data.path).name
    return with_settings(config, changes)


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def _used(model: PackedModel, form: Format) -> list[str]:
    uses = form.uses(model)
    parts = ["In the folder of these files:"]
    if any(OWN_IMPORT in use.command for use in uses):
        parts.append(
            f"**These files need UPQ Studio** on the path of Python: `{OWN_IMPORT}` comes before anything else, and"
            " without it they cannot be loaded."
        )
    for use in uses:
        parts += [f"{plain(use.program)}:", _code(use.command, "")]
    return parts


def _code(text: str, language: str) -> str:
    """A block of code, fenced by more marks than any that the text has."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    lines = ["| " + " | ".join(map(plain, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
