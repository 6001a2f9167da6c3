"""Decoders with multi-head latent attention (arXiv 2405.04434): DeepSeek V2 and V3, Kimi K2, MiniCPM 3.

Keys and values are projected down to one latent vector per token, which is all that the cache holds,
together with a rotary key that all heads share; per-head keys and values are projected up from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, decoder, draft_layer, gated_mlp, matrix, norm
from pgplan.model.families.moe import dense_then_sparse, experts_per_token, routed_and_shared
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, Weight

_MLA_KEYS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Hold the sizes of multi-head latent attention."""

    hidden: int
    heads: int
    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    v: int
    bias: bool

    @classmethod
    def read(cls, config: Config) -> Latent:
        """Read them from a configuration."""
        hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
        return cls(
            hidden=hidden,
            heads=heads,
            q_rank=config.optional_size("q_lora_rank"),
            kv_rank=config.size("kv_lora_rank"),
            nope=config.size("qk_nope_head_dim"),
            rope=config.size("qk_rope_head_dim"),
            v=config.size("v_head_dim", default=hidden // heads),
            bias=config.flag("attention_bias"),
        )

    def spec(self) -> AttentionSpec:
        """Return what the layer keeps per token: the latent, and one rotary key."""
        return AttentionSpec(
            kind="mla",
            q_heads=self.heads,
            kv_heads=1,
            head_dim=self.nope + self.rope,
            v_head_dim=self.v,
            kv_lora_rank=self.kv_rank,
            rope_dim=self.rope,
        )

    def weights(self) -> tuple[Weight, ...]:
        """Write the projections: down-projections and their norms are whole on every rank."""
        query_rows = self.heads * (self.nope + self.rope)
        if self.q_rank:
            query: tuple[Weight, ...] = (
                matrix("self_attn.q_a_proj", "attention", self.q_rank, self.hidden, bias=self.bias),
                norm("self_attn.q_a_layernorm", self.q_rank, part="attention"),
                self._up("self_attn.q_b_proj", query_rows, self.q_rank),
            )
        else:
            query = (self._up("self_attn.q_proj", query_rows, self.hidden),)
        latent = self.kv_rank + self.rope
        return (
            *query,
            matrix("self_attn.kv_a_proj_with_mqa", "attention", latent, self.hidden, bias=self.bias),
            norm("self_attn.kv_a_layernorm", self.kv_rank, part="attention"),
            self._up("self_attn.kv_b_proj", self.heads * (self.nope + self.v), self.kv_rank),
            matrix(
                "self_attn.o_proj",
                "attention",
                self.hidden,
                self.heads * self.v,
                shard="row",
                units=self.heads,
                bias=self.bias,
            ),
        )

    def _up(self, name: str, rows: int, cols: int) -> Weight:
        return matrix(name, "attention", rows, cols, shard="column", units=self.heads)


def build_deepseek_v2(config: Config) -> ModelSpec:
    """Build ``DeepseekV2ForCausalLM``."""
    return _deepseek(config.with_defaults({"q_lora_rank": 1536, "n_shared_experts": 2}))


def build_deepseek_v3(config: Config) -> ModelSpec:
    """Build ``DeepseekV3ForCausalLM``, which Kimi K2 is too."""
    defaults = {"q_lora_rank": 1536, "n_shared_experts": 1, "first_k_dense_replace": 3}
    return _deepseek(config.with_defaults(defaults))


def _deepseek(config: Config) -> ModelSpec:
    config.require(*PLAIN_KEYS, *_MLA_KEYS, "v_head_dim", "moe_intermediate_size", "n_routed_experts")
    latent, count = Latent.read(config), config.size("n_routed_experts")
    visited = experts_per_token(config, count)
    dense = gated_mlp(latent.hidden, config.size("intermediate_size"))
    sparse = routed_and_shared(
        config, hidden=latent.hidden, num_experts=count, intermediate=config.size("moe_intermediate_size")
    )

    def layer(is_sparse: bool) -> LayerSpec:
        return LayerSpec(
            attention=latent.spec(),
            weights=(
                norm("input_layernorm", latent.hidden),
                *latent.weights(),
                norm("post_attention_layernorm", latent.hidden),
                *(sparse if is_sparse else dense),
            ),
            num_experts=count if is_sparse else 0,
            experts_per_token=visited if is_sparse else 0,
        )

    return decoder(
        config,
        pattern=dense_then_sparse(config),
        layer=layer,
        draft=draft_layer(latent.hidden, layer(True)),
    )


def build_minicpm3(config: Config) -> ModelSpec:
    """Build ``MiniCPM3ForCausalLM``: latent attention with a dense MLP and tied embeddings."""
    config.require(*PLAIN_KEYS, *_MLA_KEYS)
    config = config.with_defaults({"q_lora_rank": 768})
    latent, intermediate = Latent.read(config), config.size("intermediate_size")

    def layer(_: None) -> LayerSpec:
        return LayerSpec(
            attention=latent.spec(),
            weights=(
                norm("input_layernorm", latent.hidden),
                *latent.weights(),
                norm("post_attention_layernorm", latent.hidden),
                *gated_mlp(latent.hidden, intermediate),
            ),
        )

    return decoder(config, pattern=(None,) * config.num_layers, layer=layer, tied=True)
