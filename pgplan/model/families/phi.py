"""Phi: 1.5 and 2 with a plain MLP and biases everywhere, 3 and 4 with fused tensors.

Checkpoints of Phi 3 and 4 fuse q, k, v and gate, up into one tensor each. Phi MoE is in ``moe.py``.
"""

from __future__ import annotations

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, norm
from pgplan.model.families.ungated import two_matrices, uniform
from pgplan.model.spec import LayerSpec, ModelSpec


def build_phi(config: Config) -> ModelSpec:
    """Build ``PhiForCausalLM`` (Phi 1.5 and 2): one norm per layer, whose output attention and MLP share."""
    config.require(*PLAIN_KEYS)
    heads, inner = Heads.read(config), config.size("intermediate_size")
    qk_norms = ("q_layernorm", "k_layernorm") if config.flag("qk_layernorm") else ()
    layer = LayerSpec(
        attention=heads.spec(),
        weights=(
            norm("input_layernorm", heads.hidden, bias=True),
            *attention(heads, bias=True, out_bias=True, out="self_attn.dense"),
            *(norm(f"self_attn.{name}", heads.dim, part="attention", bias=True) for name in qk_norms),
            *two_matrices(heads.hidden, inner, names=("mlp.fc1", "mlp.fc2"), bias=True),
        ),
    )
    names = ("model.embed_tokens", "model.final_layernorm", "lm_head")
    return uniform(config, layer, names=names, norm_bias=True, head_bias=True)


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
