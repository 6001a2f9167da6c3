"""Load a model from the catalogue, a checkpoint's folder, a ``config.json``, a dict, or the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shown
from typing import Literal

from pgplan.errors import ModelError
from pgplan.model.agreement import agree
from pgplan.model.config import Config
from pgplan.model.families import ALIASES, BUILDERS, Builder
from pgplan.model.families.blocks import PLAIN_KEYS
from pgplan.model.families.llama import build_llama
from pgplan.model.quantization import DTYPE_KEYS, lay_out
from pgplan.model.sources import find
from pgplan.model.spec import ModelSpec

# What names of quantized checkpoints hold.
_FORMATS = re.compile(
    r"(?<![a-z0-9])(nvfp4|mxfp[468]|fp[468]|int[48]|w[48]a(4|8|16)|awq|gptq|[2-8]bit)(?![a-z0-9])",
    re.IGNORECASE,
)
# A configuration with one of these describes more than a plain decoder, whatever its other keys say.
NOT_PLAIN = (
    "kv_lora_rank",
    "linear_num_value_heads",
    "mamba_num_heads",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
    "ssm_cfg",
    "state_size",
    "text_config",
)


def load_model(
    source: str | Path | Mapping[str, object],
    *,
    assume: Literal["llama"] | None = None,
    dtype: str | None = None,
) -> ModelSpec:
    """Read a model's layers, weight by weight, from its configuration.

    Where safetensors files lie beside the configuration, their headers are read too (no tensor is): the
    sizes must agree, and each weight counts as it is stored. The model's ``notes`` say what differs.

    Args:
        source: A folder with ``config.json`` and, if there, safetensors files; the path of a
            ``config.json`` (the files beside it are not looked at); a catalogue name (see
            ``catalogue_names``); a repository of the Hugging Face Hub, if ``huggingface_hub`` is
            installed; or the configuration as a dict.
        assume: ``"llama"`` reads a configuration of an unknown architecture as a plain decoder, if its
            keys are those of one.
        dtype: Dtype of activations and of weights that are not quantized, e.g. ``"float16"``;
            ``None``: what the configuration says, bfloat16 where it says nothing.

    Raises:
        ModelError: If the source cannot be read, its architecture is not known, its numbers contradict
            each other, or its checkpoint is another model's. One line with rule, value and mend.

    >>> model = load_model("llama-3.1-70b")
    >>> model.num_layers, model.parameters
    (80, 70553706496)
    >>> load_model("llama-3.1-70b").with_layers(40).num_layers
    40
    """
    found = find(source)
    config = Config(found.config, found.where)
    architecture, builder = _builder(config, assume=assume)
    model = builder(config)
    model = replace(model, name=found.name, source=found.origin, architecture=architecture)
    if found.checkpoint is None:
        model = lay_out(model, config, dtype=dtype)
        return replace(model, notes=(*model.notes, *_format_notes(model)))
    if dtype is None and config.get(*DTYPE_KEYS) is None and config.text.get(*DTYPE_KEYS) is None:
        dtype = found.checkpoint.dtype
    return agree(lay_out(model, config, dtype=dtype), found.checkpoint)


def _format_notes(model: ModelSpec) -> tuple[str, ...]:
    """Say so where the name promises a quantization of which the configuration knows nothing."""
    promised = _FORMATS.search(model.name)
    if promised is None or any(weight.storage.bits < 16 for kind in model.kinds for weight in kind.weights):
        return ()
    return (
        f"no quantization_config, although the name says {promised[0]}: planned in {model.dtype}; give the "
        f"checkpoint's folder, whose hf_quant_config.json or tensors tell",
    )


def _assume_llama(config: Config) -> ModelSpec:
    model = build_llama(config)
    notes = ["the architecture is not known and read as a plain decoder, as asked"]
    if config.get("sliding_window", "layer_types") is not None:
        notes.append("every layer is taken to attend to everything, whatever sliding_window says")
    return replace(model, notes=tuple(notes))


def _builder(config: Config, *, assume: str | None) -> tuple[str, Builder]:
    """Return the architecture's name as the engines know it, and its builder."""
    if assume not in (None, "llama"):
        raise ModelError(f"assume must be 'llama' or None, got {assume!r}; other families are not guessed")
    names = [*(config.items("architectures") or ()), config.get("model_type")]
    stated = [str(name) for name in names if name]
    for name in stated:
        name = ALIASES.get(name, name)
        if name in BUILDERS:
            return name, BUILDERS[name]
    against = [key for key in NOT_PLAIN if config.get(key) is not None]
    missing = [key for key in PLAIN_KEYS if config.get(key) is None]
    if assume == "llama" and not against and not missing:
        return "LlamaForCausalLM", _assume_llama
    called = "none (no architectures, no model_type)"
    if stated:
        called = stated[0] if stated[0].isidentifier() else shown(stated[0])
    if assume == "llama":
        reason = f"has {', '.join(against)}" if against else f"lacks {', '.join(missing)}"
        raise ModelError(
            f"assume='llama' needs the keys of a plain decoder, but {config.where} ({called}) {reason}; "
            f"use one of the known architectures, of which {_nearest(stated)}"
        )
    hint = "" if against or missing else "assume='llama' reads it as a plain decoder, whose keys it has; "
    raise ModelError(
        f"the architecture must be a known one, got {called} in {config.where}; {hint}{_nearest(stated)}"
    )


def _nearest(stated: list[str]) -> str:
    """Name the known architectures that are spelled most like the stated ones."""
    import difflib  # a few milliseconds that only this message needs

    near = dict.fromkeys(name for word in stated for name in difflib.get_close_matches(word[:99], BUILDERS))
    nearest = f"the nearest are {', '.join(near)}; " if near else ""
    return f"{nearest}pgplan.model.families.BUILDERS holds all {len(BUILDERS)}"
