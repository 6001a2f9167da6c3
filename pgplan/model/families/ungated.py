"""Decoders whose MLP is two matrices with an activation between them, and no gate.

StarCoder 2, Nemotron (dense), Arcee (AFM), Apertus, Jais 2, Persimmon. The generation before them is in
``gpt.py``.
"""

from __future__ import annotations

from dataclasses import replace

from pgplan.model.config import Config
from pgplan.model.families.blocks import PLAIN_KEYS, Heads, attention, decoder, matrix, norm
from pgplan.model.families.rotary import partly_rotating
from pgplan.model.spec import LayerSpec, ModelSpec, Weight


def two_matrices(hidden: int, inner: int, *, names: tuple[str, str], bias: bool) -> tuple[Weight, ...]:
    """Write up and down projection."""
    up, down = names
    return (
        matrix(up, "mlp", inner, hidden, shard="column", bias=bias),
        matrix(down, "mlp", hidden, inner, shard="row", bias=bias),
    )


def uniform(
    config: Config,
    layer: LayerSpec,
    *,
    names: tuple[str, str, str] = ("model.embed_tokens", "model.norm", "lm_head"),
    tied: bool = False,
    norm_bias: bool = False,
    head_bias: bool = False,
) -> ModelSpec:
    """Assemble a model of equal layers whose embedding, last norm and head have ``names``."""
    model = decoder(
        config,
        pattern=(None,) * config.num_layers,
        layer=lambda _: layer,
        tied=tied,
        norm_bias=norm_bias,
        head_bias=head_bias,
    )
    embedding, last, head = names
    return replace(
        model,
        embedding=replace(model.embedding, name=embedding),
        final_norm=tuple(replace(weight, name=last) for weight in model.final_norm),
        head=replace(model.head, name=head),
    )


def build_starcoder2(config: Config) -> ModelSpec:
    """Build ``Starcoder2ForCausalLM``: biases everywhere, every layer has the window, if there is one."""
    config.require(*PLAIN_KEYS)
    config = config.with_defaults({"num_key_value_heads": 2})
    heads, bias = Heads.read(config), config.flag("use_bias", default=True)
    layer = LayerSpec(
        attention=heads.spec(config.optional_size("sliding_window")),
        weights=(
            norm("input_layernorm", heads.hidden, bias=True),
            *attention(heads, bias=bias, out_bias=bias),
            norm("post_attention_layernorm", heads.hidden, bias=True),
            *two_matrices(
                heads.hidden, config.size("intermediate_size"), names=("mlp.c_fc", "mlp.c_proj"), bias=bias
            ),
        ),
    )
    return uniform(config, layer, tied=True, norm_bias=True)


def build_nemotron(config: Config) -> ModelSpec:
    """Build ``NemotronForCausalLM`` (Nemotron 4, Minitron): norms with biases, half of each head rotates."""
    return _with_two_norms(config, share=0.5, norm_bias=True, bias=False)


def build_arcee(config: Config) -> ModelSpec:
    """Build ``ArceeForCausalLM`` (AFM): Llama without the gate."""
    return _with_two_norms(config, share=1.0, norm_bias=False, bias=False)


def build_jais2(config: Config) -> ModelSpec:
    """Build ``Jais2ForCausalLM``: biases everywhere."""
    return _with_two_norms(config, share=1.0, norm_bias=True, bias=True)


def _with_two_norms(config: Config, *, share: float, norm_bias: bool, bias: bool) -> ModelSpec:
    """Build a model with Llama's names; ``bias`` holds where the file does not say."""
    config.require(*PLAIN_KEYS)
    heads, on_attention = Heads.read(config), config.flag("attention_bias", default=bias)
    layer = LayerSpec(
        attention=partly_rotating(config, heads, share=share),
        weights=(
            norm("input_layernorm", heads.hidden, bias=norm_bias),
            *attention(heads, bias=on_attention, out_bias=on_attention),
            norm("post_attention_layernorm", heads.hidden, bias=norm_bias),
            *two_matrices(
                heads.hidden,
                config.size("intermediate_size"),
                names=("mlp.up_proj", "mlp.down_proj"),
                bias=config.flag("mlp_bias", default=bias),
            ),
        ),
    )
    return uniform(config, layer, norm_bias=norm_bias)


def build_apertus(config: Config) -> ModelSpec:
    """Build ``ApertusForCausalLM``: queries and keys are normed per head, the activation is learned."""
    config.require(*PLAIN_KEYS)
    heads, bias = Heads.read(config), config.flag("attention_bias")
    names = ("mlp.up_proj", "mlp.down_proj")
    layer = LayerSpec(
        attention=heads.spec(),
        weights=(
            norm("attention_layernorm", heads.hidden),
            *attention(heads, bias=bias, out_bias=bias, qk_norm="head"),
            norm("feedforward_layernorm", heads.hidden),
            *two_matrices(heads.hidden, config.size("intermediate_size"), names=names, bias=False),
            # xIELU has two learned slopes (arXiv 2411.13010).
            norm("mlp.act_fn.alpha_p", 1, part="mlp"),
            norm("mlp.act_fn.alpha_n", 1, part="mlp"),
        ),
    )
    return uniform(config, layer)


def build_persimmon(config: Config) -> ModelSpec:
    """Build ``PersimmonForCausalLM``: multi-head attention with one tensor for q, k and v."""
    config.require(*PLAIN_KEYS)
    heads = Heads.read(config)
    qk_norms = ("q_layernorm", "k_layernorm") if config.flag("qk_layernorm", default=True) else ()
    names = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    layer = LayerSpec(
        attention=partly_rotating(config, heads, share=0.5),
        weights=(
            norm("input_layernorm", heads.hidden, bias=True),
            *attention(
                heads, bias=True, out_bias=True, fused="self_attn.query_key_value", out="self_attn.dense"
            ),
            *(norm(f"self_attn.{name}", heads.dim, part="attention", bias=True) for name in qk_norms),
            norm("post_attention_layernorm", heads.hidden, bias=True),
            *two_matrices(heads.hidden, config.size("intermediate_size"), names=names, bias=True),
        ),
    )
    names_outside = ("model.embed_tokens", "model.final_layernorm", "lm_head")
    return uniform(config, layer, names=names_outside, norm_bias=True)
