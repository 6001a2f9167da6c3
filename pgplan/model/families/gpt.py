"""The generation of GPT: norms with biases, an MLP without a gate, modules named by each author.

GPT-2, GPT-BigCode (StarCoder 1), GPT-J, GPT-NeoX (Pythia), OPT, BLOOM, MPT, Falcon. Most fuse q, k and v
into one tensor; the earlier ones learn positions or bias the scores instead of rotating.
"""

from __future__ import annotations

from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import Heads, attention, matrix, norm
from pgplan.model.families.rotary import partly_rotating, without_rotation
from pgplan.model.families.ungated import two_matrices, uniform
from pgplan.model.spec import LayerSpec, ModelSpec, Weight

_BLOCK_MLP = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def _usual(config: Config, *, inner: str, **keys: str) -> Config:
    """Return the configuration with its own keys under the usual ones; the MLP is 4 times as wide or as said.

    Args:
        config: The configuration.
        inner: The key of the MLP's width.
        keys: The architecture's own key by the usual one.
    """
    own = {usual: config.get(key, usual) for usual, key in keys.items()}
    usual = Config({**config.data, **own}, config.where, config.defaults)
    usual.require("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    return usual.with_defaults({"intermediate_size": usual.get(inner) or 4 * usual.size("hidden_size")})


def build_gpt2(config: Config) -> ModelSpec:
    """Build ``GPT2LMHeadModel``: learned positions beside the embedding."""
    return _gpt2(_usual(config, inner="n_inner", **_GPT2_KEYS))


def build_gpt_bigcode(config: Config) -> ModelSpec:
    """Build ``GPTBigCodeForCausalLM`` (StarCoder 1): GPT-2 with one key and value head."""
    usual = _usual(config, inner="n_inner", **_GPT2_KEYS)
    if config.flag("multi_query", default=True):
        usual = replace(usual, data={**usual.data, "num_key_value_heads": 1})
    return _gpt2(usual)


_GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}
_WTE = ("transformer.wte", "transformer.ln_f", "lm_head")


def _gpt2(config: Config) -> ModelSpec:
    heads = Heads.read(config)
    inner = config.size("intermediate_size")
    layer = LayerSpec(
        attention=without_rotation(heads),
        weights=(
            norm("ln_1", heads.hidden, bias=True),
            *attention(heads, bias=True, out_bias=True, fused="attn.c_attn", out="attn.c_proj"),
            norm("ln_2", heads.hidden, bias=True),
            *two_matrices(heads.hidden, inner, names=("mlp.c_fc", "mlp.c_proj"), bias=True),
        ),
    )
    model = uniform(config, layer, names=_WTE, tied=True, norm_bias=True)
    positions = matrix("transformer.wpe", "embedding", model.max_position_embeddings, heads.hidden)
    return replace(model, beside_embedding=(positions,))


def build_gptj(config: Config) -> ModelSpec:
    """Build ``GPTJForCausalLM``: one norm per layer, biases in the MLP and the head only."""
    config = _usual(config, inner="n_inner", **_GPT2_KEYS)
    heads, inner = Heads.read(config), config.size("intermediate_size")
    layer = LayerSpec(
        attention=replace(heads.spec(), rope_dim=config.size("rotary_dim", default=64)),
        weights=(
            norm("ln_1", heads.hidden, bias=True),
            *_under("attn", attention(heads, out="self_attn.out_proj")),
            *two_matrices(heads.hidden, inner, names=("mlp.fc_in", "mlp.fc_out"), bias=True),
        ),
    )
    return uniform(config, layer, names=_WTE, norm_bias=True, head_bias=True)


def _under(module: str, weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """Return attention weights under the name that an older model gives the module."""
    return tuple(replace(weight, name=weight.name.replace("self_attn", module, 1)) for weight in weights)


def build_gpt_neox(config: Config) -> ModelSpec:
    """Build ``GPTNeoXForCausalLM`` (GPT-NeoX, Pythia): a quarter of each head rotates."""
    config = _usual(config, inner="intermediate_size")
    heads, bias = Heads.read(config), config.flag("attention_bias", default=True)
    layer = LayerSpec(
        attention=partly_rotating(config, heads, share=config.number("rotary_pct", default=0.25)),
        weights=(
            norm("input_layernorm", heads.hidden, bias=True),
            norm("post_attention_layernorm", heads.hidden, bias=True),
            *attention(
                heads, bias=bias, out_bias=bias, fused="attention.query_key_value", out="attention.dense"
            ),
            *two_matrices(heads.hidden, config.size("intermediate_size"), names=_BLOCK_MLP, bias=True),
        ),
    )
    names = ("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out")
    return uniform(config, layer, names=names, norm_bias=True)


def build_opt(config: Config) -> ModelSpec:
    """Build ``OPTForCausalLM``: learned positions, of which the first two stand for padding."""
    config = _usual(config, inner="ffn_dim")
    heads, bias = Heads.read(config), config.flag("enable_bias", default=True)
    projected = config.size("word_embed_proj_dim", default=heads.hidden)
    if projected != heads.hidden or not config.flag("layer_norm_elementwise_affine", default=True):
        raise ModelError(
            f"OPTForCausalLM is known with word_embed_proj_dim of hidden_size and learned norms, got "
            f"{projected} for {heads.hidden} in {config.where}; plan another model"
        )
    layer = LayerSpec(
        attention=without_rotation(heads),
        weights=(
            *attention(heads, bias=bias, out_bias=bias, out="self_attn.out_proj"),
            norm("self_attn_layer_norm", heads.hidden, bias=True),
            *two_matrices(heads.hidden, config.size("intermediate_size"), names=("fc1", "fc2"), bias=bias),
            norm("final_layer_norm", heads.hidden, bias=True),
        ),
    )
    names = ("model.decoder.embed_tokens", "model.decoder.final_layer_norm", "lm_head")
    model = uniform(config, layer, names=names, tied=True, norm_bias=True)
    rows = model.max_position_embeddings + 2
    positions = matrix("model.decoder.embed_positions", "embedding", rows, heads.hidden)
    ends_in_norm = config.flag("do_layer_norm_before", default=True) and not config.flag(
        "_remove_final_layer_norm"
    )
    return replace(model, beside_embedding=(positions,), final_norm=model.final_norm if ends_in_norm else ())


def build_bloom(config: Config) -> ModelSpec:
    """Build ``BloomForCausalLM``: the embedding is normed, biases of the scores tell positions."""
    keys = {"hidden_size": "n_embed", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
    config = _usual(config, inner="n_inner", **keys)
    heads, block = Heads.read(config), "self_attention"
    layer = LayerSpec(
        attention=without_rotation(heads),
        weights=(
            norm("input_layernorm", heads.hidden, bias=True),
            *attention(
                heads, bias=True, out_bias=True, fused=f"{block}.query_key_value", out=f"{block}.dense"
            ),
            norm("post_attention_layernorm", heads.hidden, bias=True),
            *two_matrices(heads.hidden, config.size("intermediate_size"), names=_BLOCK_MLP, bias=True),
        ),
    )
    names = ("transformer.word_embeddings", "transformer.ln_f", "lm_head")
    model = uniform(config, layer, names=names, tied=True, norm_bias=True)
    embedding_norm = norm("transformer.word_embeddings_layernorm", heads.hidden, bias=True)
    return replace(model, beside_embedding=(embedding_norm,))


def build_mpt(config: Config) -> ModelSpec:
    """Build ``MPTForCausalLM``: no biases at all, biases of the scores tell positions."""
    keys = {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
    config = _usual(config, inner="d_inner", max_position_embeddings="max_seq_len", **keys)
    settings = config.section("attn_config") or Config({}, config.where)
    if settings.flag("qk_ln") or config.size("expansion_ratio", default=4) != 4:
        raise ModelError(
            f"MPTForCausalLM is known without qk_ln and with expansion_ratio 4, {config.where} says "
            f"otherwise; plan another model"
        )
    kv = settings.get("kv_n_heads") or config.get("num_attention_heads")
    heads = Heads.read(config.with_defaults({"num_key_value_heads": kv}))
    inner = config.size("intermediate_size")
    layer = LayerSpec(
        attention=without_rotation(heads),
        weights=(
            norm("norm_1", heads.hidden),
            *attention(heads, fused="attn.Wqkv", out="attn.out_proj"),
            norm("norm_2", heads.hidden),
            *two_matrices(heads.hidden, inner, names=("ffn.up_proj", "ffn.down_proj"), bias=False),
        ),
    )
    return uniform(config, layer, names=("transformer.wte", "transformer.norm_f", "lm_head"), tied=True)


def build_falcon(config: Config) -> ModelSpec:
    """Build ``FalconForCausalLM``: 7B has one key and value head, 40B and 180B groups of them.

    Attention and MLP read the same input and have a norm each (``new_decoder_architecture``), share one,
    or follow each other as in GPT (``parallel_attn`` false).
    """
    keys = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
    config = _usual(config, inner="ffn_hidden_size", **keys)
    grouped, bias = config.flag("new_decoder_architecture"), config.flag("bias")
    one_head = config.flag("multi_query", default=True) and not grouped
    kv = 1 if one_head else config.get("num_kv_heads", "n_head_kv", "num_attention_heads")
    heads = Heads.read(replace(config, data={**config.data, "num_key_value_heads": kv}))
    block = "self_attention"
    layer = LayerSpec(
        attention=without_rotation(heads) if config.flag("alibi") else heads.spec(),
        weights=(
            *(norm(name, heads.hidden, bias=True) for name in _falcon_norms(config)),
            *attention(
                heads, bias=bias, out_bias=bias, fused=f"{block}.query_key_value", out=f"{block}.dense"
            ),
            *two_matrices(heads.hidden, config.size("intermediate_size"), names=_BLOCK_MLP, bias=bias),
        ),
    )
    names = ("transformer.word_embeddings", "transformer.ln_f", "lm_head")
    return uniform(config, layer, names=names, tied=True, norm_bias=True)


def _falcon_norms(config: Config) -> tuple[str, ...]:
    if not config.flag("parallel_attn", default=True):
        return ("input_layernorm", "post_attention_layernorm")
    count = 2 if config.flag("new_decoder_architecture") else 1
    if config.size("num_ln_in_parallel_attn", default=count) == 2:
        return ("ln_attn", "ln_mlp")
    return ("input_layernorm",)
