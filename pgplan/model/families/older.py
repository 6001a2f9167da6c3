"""Plain decoders that came with code of their own: names and keys differ, the structure does not.

Baichuan 2, ChatGLM 3, the first Qwen. Their checkpoints fuse q, k and v into one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, norm
from pgplan.model.spec import LayerSpec, ModelSpec


def build_baichuan(config: Config) -> ModelSpec:
    """Build ``BaichuanForCausalLM``: multi-head attention."""
    config.require(*PLAIN_KEYS)
    heads = Heads.read(config)
    layer = LayerSpec(
        attention=heads.spec(),
        weights=(
            norm("input_layernorm", heads.hidden),
            *attention(heads, fused="self_attn.W_pack"),
            norm("post_attention_layernorm", heads.hidden),
            *gated_mlp(heads.hidden, config.size("intermediate_size")),
        ),
    )
    return _uniform(config, layer)


def build_chatglm(config: Config) -> ModelSpec:
    """Build ``ChatGLMModel`` (ChatGLM 2 and 3, GLM 4 9B): multi-query attention with a bias."""
    config.require("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "padded_vocab_size")
    if config.flag("add_bias_linear") or not config.flag("rmsnorm", default=True):
        raise ModelError(
            f"ChatGLMModel is known with add_bias_linear false and rmsnorm true, {config.where} says "
            f"otherwise; plan another model"
        )
    grouped = config.flag("multi_query_attention")
    config = _renamed(
        config,
        vocab_size="padded_vocab_size",
        intermediate_size="ffn_hidden_size",
        num_hidden_layers="num_layers",
        head_dim="kv_channels",
        num_key_value_heads="multi_query_group_num" if grouped else "num_attention_heads",
    )
    heads, block = Heads.read(config), "self_attention"
    names = ("dense_h_to_4h[gate]", "dense_h_to_4h[up]", "dense_4h_to_h")
    bias = config.flag("add_qkv_bias")
    layer = LayerSpec(
        attention=heads.spec(),
        weights=(
            norm("input_layernorm", heads.hidden),
            *attention(heads, bias=bias, fused=f"{block}.query_key_value", out=f"{block}.dense"),
            norm("post_attention_layernorm", heads.hidden),
            *gated_mlp(heads.hidden, config.size("intermediate_size"), names=names),
        ),
    )
    return _uniform(config, layer)


def build_qwen1(config: Config) -> ModelSpec:
    """Build ``QWenLMHeadModel``: ``intermediate_size`` speaks of gate and up projection together."""
    config.require(*PLAIN_KEYS)
    heads = Heads.read(config)
    layer = LayerSpec(
        attention=heads.spec(),
        weights=(
            norm("ln_1", heads.hidden),
            *attention(heads, bias=True, fused="attn.c_attn", out="attn.c_proj"),
            norm("ln_2", heads.hidden),
            *gated_mlp(heads.hidden, config.size("intermediate_size") // 2, names=("w2", "w1", "c_proj")),
        ),
    )
    return _uniform(config, layer)


def _uniform(config: Config, layer: LayerSpec) -> ModelSpec:
    return decoder(config, pattern=(None,) * config.num_layers, layer=lambda _: layer)


def _renamed(config: Config, **keys: str) -> Config:
    """Return the configuration with the values of other keys under the usual ones."""
    values: Mapping[str, object] = {usual: config.get(own) for usual, own in keys.items()}
    return Config({**config.data, **values}, config.where)
