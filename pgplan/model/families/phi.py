"""Phi 3 and Phi 4: a plain decoder whose checkpoints fuse q, k, v and gate, up into one tensor each."""

from __future__ import annotations

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, norm
from pgplan.model.spec import LayerSpec, ModelSpec


def build_phi3(config: Config) -> ModelSpec:
    """Build ``Phi3ForCausalLM``: every layer has the window, if there is one."""
    config.require(*PLAIN_KEYS)
    heads, intermediate = Heads.read(config), config.size("intermediate_size")
    names = ("gate_up_proj[gate]", "gate_up_proj[up]", "down_proj")

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=heads.spec(window),
            weights=(
                norm("input_layernorm", heads.hidden),
                *attention(heads, fused="self_attn.qkv_proj"),
                norm("post_attention_layernorm", heads.hidden),
                *gated_mlp(heads.hidden, intermediate, names=names),
            ),
        )

    window = config.optional_size("sliding_window")
    return decoder(config, pattern=(window,) * config.num_layers, layer=layer)
