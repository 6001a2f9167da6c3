"""Hugging Face transformers and accelerate: a complete, contiguous ``device_map``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter
from pgplan.engines.launching import model_remarks, model_word
from pgplan.errors import EngineError
from pgplan.model.spec import ModelSpec

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Modules:
    """Name where transformers keeps what a device map places: the decoder, its last norm, head and towers."""

    decoder: str = "model"
    norm: str = "norm"
    head: str = "lm_head"
    towers: tuple[str, ...] = ()


_USUAL = _Modules()
_MODULES = {
    "PhiForCausalLM": _Modules(norm="final_layernorm"),
    "Gemma3ForConditionalGeneration": _Modules(
        decoder="model.language_model", towers=("model.vision_tower", "model.multi_modal_projector")
    ),
    "Llama4ForConditionalGeneration": _Modules(
        decoder="language_model.model",
        head="language_model.lm_head",
        towers=("vision_model", "multi_modal_projector"),
    ),
    "Qwen3VLForConditionalGeneration": _Modules(decoder="model.language_model", towers=("model.visual",)),
    "Qwen3VLMoeForConditionalGeneration": _Modules(decoder="model.language_model", towers=("model.visual",)),
}
# Models that come with code of their own and name their modules as nobody else does.
_OWN_NAMES = frozenset({"ChatGLMForConditionalGeneration", "ChatGLMModel", "QWenLMHeadModel"})


class HuggingFace(Exporter):
    """Write the ``device_map`` for ``from_pretrained``."""

    name = "hf"
    title = "transformers"
    default_version = "5.23"
    writes = "Python, a `device_map`"
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
            *model_remarks(plan),
            "from transformers import AutoModelForCausalLM",
            "",
            "device_map = {",
            *entries,
            "}",
            f'model = AutoModelForCausalLM.from_pretrained("{model_word(plan)}", device_map=device_map)',
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
    names, last = _modules(model), len(split) - 1
    yield from ((tower, 0) for tower in names.towers)
    yield f"{names.decoder}.embed_tokens", 0
    yield f"{names.decoder}.rotary_emb", 0
    stages = (stage for stage, count in enumerate(split) for _ in range(count))
    for layer, stage in enumerate(stages):
        yield f"{names.decoder}.layers.{layer}", stage
    yield f"{names.decoder}.{names.norm}", last
    yield names.head, 0 if model.tied else last


def _modules(model: ModelSpec) -> _Modules:
    if model.architecture in _MODULES:
        return _MODULES[model.architecture]
    usual = model.embedding.name == "model.embed_tokens" and model.architecture not in _OWN_NAMES
    if model.towers or not usual or any(norm.name != "model.norm" for norm in model.final_norm):
        raise EngineError(
            f"a device_map needs the names of all modules, which are not known for {model.architecture}; "
            f"export to json and fill them in"
        )
    return _USUAL
