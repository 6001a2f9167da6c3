"""gpt-oss: experts with biases, attention sinks, and a window in every other layer."""

from __future__ import annotations

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, matrix, norm
from pgplan.model.families.moe import experts_per_token
from pgplan.model.spec import LayerSpec, ModelSpec, Shard, Weight


def build_gpt_oss(config: Config) -> ModelSpec:
    """Build ``GptOssForCausalLM``: layers 0, 2, 4, ... have a window."""
    config = config.with_defaults({"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128})
    config.require(*PLAIN_KEYS, "num_local_experts", "num_experts_per_tok")
    heads, inner, count = (
        Heads.read(config),
        config.size("intermediate_size"),
        config.size("num_local_experts"),
    )
    bias, visited = config.flag("attention_bias", default=True), experts_per_token(config, count)

    def expert(name: str, rows: int, cols: int, shard: Shard) -> Weight:
        return matrix(f"mlp.experts.{name}", "experts", rows, cols, shard=shard, bias=True, copies=count)

    def layer(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=heads.spec(window),
            weights=(
                norm("input_layernorm", heads.hidden),
                # One learned logit per head, which takes the attention that no token should get.
                norm("self_attn.sinks", heads.q, part="attention", units=heads.q),
                *attention(heads, bias=bias, out_bias=bias),
                norm("post_attention_layernorm", heads.hidden),
                matrix("mlp.router", "router", count, heads.hidden, bias=True),
                expert("gate_up_proj", 2 * inner, heads.hidden, "column"),
                expert("down_proj", heads.hidden, inner, "row"),
            ),
            num_experts=count,
            experts_per_token=visited,
        )

    return decoder(config, pattern=config.windows(is_windowed=lambda index: index % 2 == 0), layer=layer)
