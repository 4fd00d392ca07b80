"""Where an artifact's model comes from: what it is called, its id on the hub and its license, as its own files say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load, try_to_load_from_cache

from upq.artifact import Artifact
from upq.errors import UserError
from upq.files import file_problem
from upq.models import resolve
from upq.models.gguf_header import read_header
from upq.models.source import BUNDLED, BUNDLED_HUB_ID

#: The file that a model's page on the hub is made of.
CARD = "README.md"
#: Largest card that is read, 4 MiB.
MOST_CARD_BYTES = 1 << 22
#: Keys of a license in the header of a card, and the same in a GGUF file behind a point for each underline.
LICENSE = ("license", "license_name", "license_link")
#: Where a GGUF file says which model it was made of.
GGUF_SOURCES = ("general.source.repo_url", "general.source.huggingface.repository")
HUB_ID = re.compile(r"(?:https://huggingface\.co/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/?")
LONGEST_NAME = 80
LONGEST_LICENSE = 300


@dataclass(frozen=True)
class Origin:
    """hub_id: "" where nothing says it. license: some of LICENSE with their values; empty where nothing says it."""

    hub_id: str
    license: dict[str, str]


def file_name(artifact: Artifact) -> str:
    """What files of the model are called: letters, digits, dots and dashes, such as SmolLM2-135M-Instruct."""
    name = str(artifact.manifest["base_model"]["name"])
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name)[:LONGEST_NAME].strip("-.")
    return plain or "model"


def origin(artifact: Artifact) -> Origin:
    """What files on this machine say; nothing is fetched, and what cannot be read says nothing."""
    base = artifact.manifest["base_model"]
    try:
        place = resolve(base["source"], base.get("revision"))
        if place.kind == "hub":
            card = try_to_load_from_cache(place.text, CARD, revision=place.revision)
            return Origin(place.text, _license_of(card) if isinstance(card, str) else {})
        if place.kind == "folder":
            return Origin("", _license_of(f"{place.path}/{CARD}"))
        assert place.path is not None, "a GGUF file has a path"
        values = read_header(place.path).values
    except UserError:
        return Origin("", {})
    said = {name: values.get("general." + name.replace("_", ".")) for name in LICENSE}
    named = (HUB_ID.fullmatch(str(values.get(key))) for key in GGUF_SOURCES)
    made_of = next((match[1] for match in named if match), "")
    return Origin(BUNDLED_HUB_ID if base["source"] == BUNDLED else made_of, _texts(said))


def _license_of(card: str) -> dict[str, str]:
    """The license that the header of a model card names."""
    path = Path(card)
    if file_problem(path, MOST_CARD_BYTES):
        return {}
    try:
        header = metadata_load(path)
    except Exception:  # whatever the YAML library raises at a stranger's header
        return {}
    return _texts(header) if isinstance(header, dict) else {}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """What of LICENSE is a short text, where there is a license at all."""
    found = {name: values.get(name) for name in LICENSE}
    texts = {
        name: value
        for name, value in found.items()
        if isinstance(value, str) and 0 < len(value) <= LONGEST_LICENSE
    }
    return texts if LICENSE[0] in texts else {}
