"""Llama 4: attention in chunks in most layers, experts beside a shared MLP in all or every other layer."""

from __future__ import annotations

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, gated_mlp, matrix, norm
from pgplan.model.families.moe import experts_per_token
from pgplan.model.families.towers import llama4_tower, tower_notes
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec

_DEFAULTS = {
    "intermediate_size_mlp": 16384,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 8192,
    "max_position_embeddings": 131072,
}


def build_llama4(config: Config) -> ModelSpec:
    """Build ``Llama4ForConditionalGeneration``."""
    text = config.text.with_defaults(_DEFAULTS)
    text.require(*PLAIN_KEYS, "num_local_experts")
    heads, count = Heads.read(text), text.size("num_local_experts")
    bias, visited = text.flag("attention_bias"), experts_per_token(text, count)
    inner, dense_inner = text.size("intermediate_size"), text.size("intermediate_size_mlp")
    names, block = ("gate_up_proj[gate]", "gate_up_proj[up]", "down_proj"), "feed_forward"
    dense = gated_mlp(heads.hidden, dense_inner, prefix=block)
    sparse = (
        matrix(f"{block}.router", "router", count, heads.hidden),
        *gated_mlp(heads.hidden, inner, prefix=f"{block}.experts", part="experts", names=names, copies=count),
        *gated_mlp(heads.hidden, inner, prefix=f"{block}.shared_expert", part="shared_experts"),
    )

    def layer(kind: tuple[int | None, bool]) -> LayerSpec:
        chunk, is_sparse = kind
        return LayerSpec(
            attention=_chunked(heads, chunk),
            weights=(
                norm("input_layernorm", heads.hidden),
                *attention(heads, bias=bias, out_bias=bias),
                norm("post_attention_layernorm", heads.hidden),
                *(sparse if is_sparse else dense),
            ),
            num_experts=count if is_sparse else 0,
            experts_per_token=visited if is_sparse else 0,
        )

    return decoder(
        text,
        pattern=tuple(zip(_chunks(text), _is_sparse(text), strict=True)),
        layer=layer,
        towers=llama4_tower(config, hidden=heads.hidden),
        notes=tower_notes(config),
    )


def _chunked(heads: Heads, chunk: int | None) -> AttentionSpec:
    return AttentionSpec(
        kind="chunked" if chunk else "full",
        q_heads=heads.q,
        kv_heads=heads.kv,
        head_dim=heads.dim,
        v_head_dim=heads.dim,
        window=chunk,
    )


def _chunks(text: Config) -> tuple[int | None, ...]:
    """Return each layer's chunk in tokens; layers without rotary embedding see everything."""
    rotary, period = text.items("no_rope_layers"), text.size("no_rope_layer_interval", default=4)
    if rotary and len(rotary) != text.num_layers:
        raise ModelError(
            f"no_rope_layers must name every layer, got {len(rotary)} for {text.num_layers} layers in "
            f"{text.where}; leave it out or correct num_hidden_layers"
        )
    return text.windows(
        # The key is named against its meaning: 1 marks a layer that has rotary embedding.
        is_windowed=lambda index: bool(rotary[index]) if rotary else (index + 1) % period != 0,
        layer_type="chunked_attention",
        key="attention_chunk_size",
    )


def _is_sparse(text: Config) -> list[bool]:
    """Tell for each layer whether it has experts: those listed, else every n-th."""
    listed, step = text.items("moe_layers"), text.size("interleave_moe_layer_step", default=1)
    return [
        index in listed if listed is not None else (index + 1) % step == 0 for index in range(text.num_layers)
    ]
