"""Hugging Face transformers and accelerate: a complete, contiguous ``device_map``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter
from pgplan.errors import EngineError
from pgplan.model.spec import ModelSpec

if TYPE_CHECKING:
    from pgplan.planning.record import Plan

# Where transformers 5 keeps the language model, and what stands beside it, in models with towers.
_WITH_TOWERS = {
    "Gemma3ForConditionalGeneration": (
        "model.language_model",
        ("model.vision_tower", "model.multi_modal_projector"),
    ),
    "Qwen3VLForConditionalGeneration": ("model.language_model", ("model.visual",)),
    "Qwen3VLMoeForConditionalGeneration": ("model.language_model", ("model.visual",)),
}


class HuggingFace(Exporter):
    """Write the ``device_map`` for ``from_pretrained``."""

    name = "hf"
    title = "transformers"
    default_version = "5.23"
    syntax = "a device_map with an entry per layer"
    checked = "transformers 5.23.0: meta models; accelerate 1.15.0: its check_device_map"

    def export(self, plan: Plan) -> str:
        """Return Python that loads the model over the devices."""
        self.refuse_tp(
            plan, mend="plan with tp_size 1, or give from_pretrained tp_plan='auto' and no device_map"
        )
        entries = [f'    "{name}": {device},' for name, device in device_map(plan.model, plan.split).items()]
        lines = [
            self.header(plan),
            "from transformers import AutoModelForCausalLM",
            "",
            "device_map = {",
            *entries,
            "}",
            f'model = AutoModelForCausalLM.from_pretrained("{plan.model.source}", device_map=device_map)',
        ]
        return "\n".join(lines) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the device of each layer; accelerate itself takes maps that go back and forth."""
        found = re.findall(r"[\"'][\w.]*\b(?:layers|h|blocks)\.(\d+)[\"']\s*:\s*[\"']?(?:cuda:)?(\w+)", text)
        if not found:
            return None
        devices = {int(layer): device for layer, device in found}
        missing = [layer for layer in range(num_layers) if layer not in devices]
        if missing or len(devices) > num_layers:
            what = f"lacks layer {missing[0]}" if missing else f"has {len(devices)}"
            raise EngineError(
                f"a device_map names each of the {num_layers} layers, but it {what}; add or drop it"
            )
        if not all(device.isdecimal() and int(device) < pp_size for device in devices.values()):
            raise EngineError(
                f"a device_map of {pp_size} stages names devices 0 to {pp_size - 1}, but has "
                f"{', '.join(sorted(set(devices.values())))}; number them so, without cpu and disk"
            )
        order = [int(devices[layer]) for layer in range(num_layers)]
        if order != sorted(order):
            raise EngineError(
                "a pipeline has each stage's layers in a row, but the device_map goes back to an earlier "
                "device; order the layers by device"
            )
        return [order.count(stage) for stage in range(pp_size)]


def device_map(model: ModelSpec, split: Sequence[int]) -> dict[str, int]:
    """Return the device of every module that holds weights or rotary tables.

    A tied head stays with the embedding, whose tensor it is: accelerate would otherwise keep two.

    Raises:
        EngineError: If the names of the model's modules are not known.
    """
    return dict(_entries(model, split))


def _entries(model: ModelSpec, split: Sequence[int]) -> Iterator[tuple[str, int]]:
    prefix, towers = _module_names(model)
    last = len(split) - 1
    yield from ((tower, 0) for tower in towers)
    yield f"{prefix}.embed_tokens", 0
    yield f"{prefix}.rotary_emb", 0
    layer = 0
    for stage, count in enumerate(split):
        for _ in range(count):
            yield f"{prefix}.layers.{layer}", stage
            layer += 1
    yield f"{prefix}.norm", last
    yield "lm_head", 0 if model.tied else last


def _module_names(model: ModelSpec) -> tuple[str, tuple[str, ...]]:
    if model.architecture in _WITH_TOWERS:
        return _WITH_TOWERS[model.architecture]
    norms = [norm.name for norm in model.final_norm]
    usual = model.embedding.name == "model.embed_tokens" and norms == ["model.norm"]
    if model.towers or not usual:
        raise EngineError(
            f"a device_map needs the names of all modules, which are not known for {model.architecture}; "
            f"export to json and fill them in"
        )
    return "model", ()
