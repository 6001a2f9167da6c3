"""Tell by its name where a tensor belongs, and what it is for there.

Checkpoints agree on little but this: a decoder layer is a number after ``layers``, ``h`` or ``blocks``, a
tower says what it sees or hears, and what belongs to a quantized matrix stands beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Place = Literal["embedding", "layer", "head", "tower", "draft", "outside"]
Role = Literal["weight", "bias", "scale", "zero points", "order", "input scale", "nested", "other", "buffer"]

# What the last part of a name says. Sources: the loaders of vLLM (vllm/model_executor/layers/quantization)
# and the checkpoints of GPTQ, AWQ, compressed-tensors, ModelOpt, bitsandbytes and mlx.
_ROLES: dict[str, Role] = {
    "weight": "weight",
    "qweight": "weight",
    "weight_packed": "weight",
    "blocks": "weight",
    "bias": "bias",
    "scale": "scale",
    "scales": "scale",
    "weight_scale": "scale",
    "weight_scale_inv": "scale",
    "absmax": "scale",
    "SCB": "scale",
    "qzeros": "zero points",
    "weight_zero_point": "zero points",
    "biases": "zero points",
    "g_idx": "order",
    "weight_g_idx": "order",
    "input_scale": "input scale",
    "input_global_scale": "input scale",
    "activation_scale": "input scale",
    "nested_absmax": "nested",
    "weight_scale_2": "other",
    "weight_global_scale": "other",
    "weight_shape": "other",
    "weight_format": "other",
    "quant_map": "other",
    "nested_quant_map": "other",
}
# Weights for few loaders only: rotary tables, masks, what the routers of DeepSeek and its kin add to their
# scores (float32, one number per expert), and scales of a quantized KV cache.
_BUFFERS = frozenset(
    "inv_freq masked_bias e_score_correction_bias expert_bias cos_cached sin_cached k_scale v_scale q_scale "
    "prob_scale output_scale embed_positions_sin freqs_cis position_ids".split()
)
# GPT-2's kin keep the causal mask as the bias of the attention module itself, xIELU two constants.
_CONSTANTS = re.compile(r"(?:^|\.)(?:(?:attn|attention)\.bias|act_fn\.(?:beta|eps))$")
_LAYER = re.compile(r"^(?:(.*?)\.)?(?:layers|h|blocks)\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"(?<=\bexperts\.)\d+\.")
# Fused experts have no ".weight": their parts are told by what follows the matrix's own name.
_FUSED = re.compile(
    r"^(.+_proj)_(blocks|bias|scales?|weight_scale(?:_inv|_2)?|input_scale|weight_packed|weight_global_scale)$"
)
_DRAFT = re.compile(r"(?:^|\.)(?:mtp\w*|eagle\w*|nextn\w*|medusa\w*|draft\w*)\.")
_TOWER = re.compile(
    r"(?:^|\.)\w*(?:vision|visual|image|audio|speech|sound|video|vit|multi_modal|multimodal|mm_|projector|"
    r"connector|aligner|resampler)\w*\."
)
_EMBEDDINGS = frozenset("embed_tokens wte word_embeddings embed_in tok_embeddings embeddings embed".split())
_HEADS = frozenset("lm_head output embed_out output_layer head".split())


@dataclass(frozen=True, slots=True)
class TensorName:
    """Hold what a tensor's name says.

    Args:
        place: Where it belongs.
        layer: The decoder layer, 0-based; -1 outside of them.
        module: The module inside its layer (outside: its last name), without an expert's number.
        role: What it is for there.
        part: The last part of the name, e.g. ``"weight_scale_inv"``.
    """

    place: Place
    layer: int
    module: str
    role: Role
    part: str


def parse(name: str, *, num_layers: int) -> TensorName:
    """Read a tensor's name; layers from ``num_layers`` on are drafts, as DeepSeek V3 numbers them.

    >>> found = parse("model.layers.3.mlp.experts.17.up_proj.weight_scale_inv", num_layers=61)
    >>> found.layer, found.module, found.role
    (3, 'mlp.experts.up_proj', 'scale')
    """
    module, part, role = _module_and_role(name)
    if _DRAFT.search(name):
        return TensorName("draft", -1, module, role, part)
    inside = _LAYER.match(name)
    if _TOWER.search(f"{inside[1] if inside else name}."):
        return TensorName("tower", -1, module, role, part)
    if inside:
        layer, own = int(inside[2]), _EXPERT.sub("", _module_and_role(inside[3])[0])
        return TensorName("layer" if layer < num_layers else "draft", layer, own, role, part)
    last = module.rpartition(".")[2]
    place: Place = "embedding" if last in _EMBEDDINGS else "head" if last in _HEADS else "outside"
    return TensorName(place, -1, last, role, part)


def _module_and_role(name: str) -> tuple[str, str, Role]:
    """Split a name into its module, its last part and what that is for."""
    # bitsandbytes hangs its scales under the weight: "q_proj.weight.absmax".
    module, _, part = name.replace(".weight.", ".").rpartition(".")
    if part in _BUFFERS or _CONSTANTS.search(name):
        return f"{module}.{part}", part, "buffer"
    if part.startswith(("bitsandbytes__", "quant_state")):
        return module.removesuffix(".quant_state"), part, "other"
    if part in _ROLES:
        return module, part, _ROLES[part]
    fused = _FUSED.match(part)
    if fused:
        return f"{module}.{fused[1]}", fused[2], _ROLES[fused[2]]
    # A parameter of its own, such as attention sinks.
    return f"{module}.{part}" if module else part, "weight", "weight"
