"""Packed models in transformers: after `import upq.hf`, from_pretrained loads the folders of upq.export.packed.

Codes stay packed in memory, and rotations act on activations. What is loaded is vetted as any artifact, after the
sha256 of its files has been compared.

transformers takes random weights, with no more than a warning, where only the quantization is unknown to it. So the
config of such a folder has a type of its own, at which the automatic classes stop; the name of its file of weights is
no name but what to do, at which LlamaForCausalLM and its like stop; and no file is called as transformers expects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from upq.artifact import Artifact
from upq.artifact.assembly import packed_form
from upq.artifact.vet import damaged, require_known_version, vetted_layers
from upq.errors import UserError, shown
from upq.files import sha256_file
from upq.layers import PackedEmbedding, replace_module
from upq.models import RoutedExperts, parameter_names, unstack_experts

#: The name of the quantization in a config.json.
METHOD = "upq"
#: The type of a folder's model; what transformers says that it does not know where this module is not imported.
MODEL_TYPE = "needs-import-upq.hf"
#: Where the real type stands. Under the name "model_type" transformers would take this part of a config for all of it.
REAL_TYPE = "type_of_model"
#: A file of weights, or the index of several, in the folder itself.
WEIGHTS = re.compile(r"[\w-]+\.safetensors(\.index\.json)?")
#: What stands where transformers looks for the name of the file of weights; its error shows it.
HOW_TO_LOAD = "import upq.hf, then load the folder with AutoModelForCausalLM"


class PackedConfig(PreTrainedConfig):
    """What AutoConfig finds under MODEL_TYPE: the way to the config of the model's real type."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config of the type that stands beside the packed layers. Raises UserError("artifact_damaged")."""
        found = config_dict.get("quantization_config")
        quantization = found if isinstance(found, dict) else {}
        real = quantization.get(REAL_TYPE)
        if not isinstance(real, str) or real == MODEL_TYPE or real not in CONFIG_MAPPING:
            raise damaged(f"config.json describes a packed model of the unknown type {real!r}.")
        weights = quantization.get("weights")
        if not isinstance(weights, str) or not WEIGHTS.fullmatch(weights):
            raise damaged(f"config.json names {shown(weights)} as the file of weights.")
        values = {**config_dict, "model_type": real, "transformers_weights": weights}
        return CONFIG_MAPPING[real].from_dict(values, **kwargs)


class PackedQuantization(QuantizationConfigMixin):
    """quantization_config of a packed folder.

    format_version, layers: as in an artifact's manifest; type_of_model: of transformers; weights: the file to begin
    with; sha256: of every file of weights.
    """

    def __init__(
        self,
        format_version: int = 0,
        type_of_model: str = "",
        weights: str = "",
        layers: Mapping[str, Any] | None = None,
        sha256: Mapping[str, str] | None = None,
        **_: Any,
    ) -> None:
        self.quant_method = cast(Any, METHOD)
        self.format_version, self.type_of_model = format_version, type_of_model
        self.weights, self.layers, self.sha256 = weights, layers, sha256


class PackedQuantizer(HfQuantizer):
    """Gives a model without values packed layers, which transformers then fills by their names."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Replace the layers that are packed. Raises UserError: artifact_version, artifact_damaged."""
        unstack_experts(model)
        for module in model.modules():
            if isinstance(module, RoutedExperts):
                module.shell._is_hf_initialized = True  # it has no parameters left to be drawn
        for target, source in model.all_tied_weights_keys.items():
            _set_parameter(model, target, model.get_parameter(source))
        # transformers builds models on no device, and what is read here would be there as well.
        with torch.device("cpu"):
            packed = vetted_layers(self._artifact(kwargs.get("checkpoint_files")), model)
        users = {names[0]: names for names in parameter_names(model)}
        #: A module that holds the same weight as another one -> that one.
        self.sharing: dict[str, str] = {}
        for name, weight in packed.items():
            _, *others = users[f"{name}.weight"]
            form = packed_form(model.get_submodule(name), weight.to("meta"), model.config.dtype)
            replace_module(model, name, form)
            for other in others:
                self.sharing[other.removesuffix(".weight")] = name
                _set_parameter(model, other, None)
            _expect(model, name, others)
        return model

    def _artifact(self, files: Sequence[str] | None) -> Artifact:
        """What the files hold, as an artifact has it: the zeros of groups have another name there."""
        settings = cast(PackedQuantization, self.quantization_config)
        require_known_version(settings.format_version)
        tensors = _read(files, settings.sha256)
        for name in settings.layers if isinstance(settings.layers, Mapping) else ():
            if f"{name}.zeros" in tensors:
                tensors[f"{name}.zero"] = tensors.pop(f"{name}.zeros")
        return Artifact("", {"layers": settings.layers}, tensors, {})

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Let a head hold the buffers of its embedding, and embeddings know where they are."""
        for module in model.modules():
            if isinstance(module, PackedEmbedding):
                module.settle(module.codes.device, model.config.dtype)
        for name, first in self.sharing.items():
            packed = model.get_submodule(first).packed
            form = packed_form(model.get_submodule(name), packed, model.config.dtype)
            replace_module(model, name, form)
        return model.eval()

    def is_serializable(self) -> bool:
        """What save_pretrained asks. Raises UserError("cannot_write"): files that it writes would not be vetted."""
        raise UserError(
            "cannot_write",
            "A packed model is not saved again; copy the folder that it was loaded from.",
        )

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradient."""
        return False


def _read(files: Sequence[str] | None, digests: object) -> dict[str, torch.Tensor]:
    """The tensors of files whose sha256 are these, by name of the file. Raises UserError("artifact_damaged")."""
    if not files or not isinstance(digests, Mapping):
        raise damaged("There are no files of weights with a sha256 for each in config.json.")
    tensors = {}
    for path in map(Path, files):
        if sha256_file(path) != digests.get(path.name):
            raise damaged(f"{path.name} is damaged: its sha256 is not the one in config.json.")
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise damaged(f"{path.name} cannot be read: {error}.") from error
    return tensors


def _expect(model: Any, name: str, others: Sequence[str]) -> None:
    """Tell transformers that a packed layer has no weight to be found, nor to be shared by its means."""
    ignored = model._keys_to_ignore_on_load_missing or ()
    model._keys_to_ignore_on_load_missing = {*ignored, rf"^{re.escape(name)}\.weight$"}
    for other in (f"{name}.weight", *others):
        model.all_tied_weights_keys.pop(other, None)


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent).register_parameter(leaf, parameter)


AutoConfig.register(MODEL_TYPE, PackedConfig)
register_quantization_config(METHOD)(PackedQuantization)
register_quantizer(METHOD)(PackedQuantizer)
