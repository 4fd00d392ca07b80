"""Our own packed form for transformers: what an artifact holds, rotations included, as upq.hf loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from upq.export.folder import read_tensors, require_names, save_tensors, write_files
from upq.export.formats import Offer, Progress, Use, export_differs
from upq.export.model import PackedModel
from upq.files import sha256_file
from upq.hf import HOW_TO_LOAD, METHOD, MODEL_TYPE, REAL_TYPE

#: How the names of the files of weights begin: not as transformers looks for them.
STEM = "packed"
#: The file that says where a model comes from, and what it takes over from the manifest: nothing that names a place.
PROVENANCE = "upq.json"
TOLD = ("format_version", "precision", "method", "seed", "bits_per_weight", "commit", "versions")
TOLD_OF_BASE = ("name", "revision", "parameters")


class Packed:
    """upq.export.formats.Format: codes, scales and rotations as they are stored."""

    key, title = "packed", "Packed, for transformers"
    runs_in = "transformers, with this program's `upq.hf` imported"

    def offer(self, model: PackedModel) -> Offer:
        """The bytes of the artifact."""
        linears = model.linears.values()
        bits = 8 * sum(weight.size_bytes for weight in linears)
        weights = sum(rows * columns for rows, columns in (weight.shape for weight in linears))
        exactness = "bit for bit: codes, scales and rotations as they are stored"
        return Offer(model.artifact.size_bytes, bits / weights, exactness)

    def write(self, model: PackedModel, folder: Path, progress: Progress) -> None:
        """Shards of at most 5 GB, the tokenizer, and a config with the layers, their grids and the files' sha256."""
        weights = save_tensors(_tensors(model), folder, stem=STEM)
        progress(0.8)
        manifest = model.artifact.manifest
        quantization = {
            "quant_method": METHOD,
            "format_version": manifest["format_version"],
            REAL_TYPE: model.config["model_type"],
            "layers": manifest["layers"],
            "weights": weights,
            "sha256": {path.name: sha256_file(path) for path in folder.glob("*.safetensors")},
        }
        changes = {
            "model_type": MODEL_TYPE,
            "transformers_weights": HOW_TO_LOAD,
            "quantization_config": quantization,
        }
        write_files(model, folder, changes)
        told = json.dumps(_provenance(manifest), indent=1)
        (folder / PROVENANCE).write_text(told, encoding="utf-8")
        progress(1.0)

    def check(self, model: PackedModel, folder: Path, progress: Progress) -> str:
        """Every tensor is the stored one."""
        expected, found = _tensors(model), set[str]()
        for name, tensor in read_tensors(folder):
            wanted = expected.get(name)
            if wanted is not None and not (
                tensor.dtype == wanted.dtype and torch.equal(tensor, wanted)
            ):
                raise export_differs(f"{name} is not what the artifact holds.")
            found.add(name)
            progress(min(1.0, len(found) / len(expected)))
        require_names(found, set(expected))
        return "read back: every tensor is the stored one, bit for bit"

    def uses(self, model: PackedModel) -> list[Use]:
        """Transformers, where this program's code can be imported."""
        code = (
            "import upq.hf\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            'model = AutoModelForCausalLM.from_pretrained(".", dtype="float32")\n'
            'tokenizer = AutoTokenizer.from_pretrained(".")'
        )
        return [Use("transformers", code)]


def _tensors(model: PackedModel) -> dict[str, torch.Tensor]:
    """Every tensor under the name that it has in the model that upq.hf makes."""
    tensors = dict(model.plain)
    for name, weight in model.layers.items():
        transform = weight.transform.tensors if weight.transform else {}
        parts = weight.tensors | transform
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    return tensors


def _provenance(manifest: dict[str, Any]) -> dict[str, Any]:
    base = manifest.get("base_model", {})
    told = {name: manifest[name] for name in TOLD if name in manifest}
    return told | {"base_model": {name: base[name] for name in TOLD_OF_BASE if name in base}}
