"""The pieces that decoder layers are made of, as lists of weights.

A family says which weights there are and along which axis they are divided; how they lie in memory is
put in afterwards (``quantization.py``), so every weight is written here in plain bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from pgplan.errors import ModelError
from pgplan.model.config import MAX_LAYERS, Config
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, Part, Shard, Storage, Weight

K = TypeVar("K", bound=Hashable)

BFLOAT16 = Storage(name="bfloat16", bits=16)
PLAIN_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def matrix(
    name: str,
    part: Part,
    rows: int,
    cols: int,
    *,
    shard: Shard = "replicated",
    units: int = 0,
    bias: bool = False,
    copies: int = 1,
) -> Weight:
    """Write a linear layer that maps ``cols`` features to ``rows``."""
    return Weight(
        name=name,
        part=part,
        rows=rows,
        cols=cols,
        shard=shard,
        units=units,
        bias=bias,
        copies=copies,
        storage=BFLOAT16,
    )


def norm(name: str, size: int, *, part: Part = "norm", bias: bool = False, units: int = 0) -> Weight:
    """Write a norm's vector; with ``units`` it spans heads, which tensor parallelism divides."""
    return Weight(
        name=name,
        part=part,
        rows=size,
        bias=bias,
        shard="column" if units else "replicated",
        units=units,
        storage=BFLOAT16,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Hold the head counts and sizes of grouped-query attention."""

    hidden: int
    q: int
    kv: int
    dim: int
    # Elements per value head where they are not as many as per key head.
    value_dim: int | None = None

    @classmethod
    def read(cls, config: Config) -> Heads:
        """Read them from a configuration; kv heads default to query heads, head_dim to hidden / heads."""
        hidden, q = config.size("hidden_size"), config.size("num_attention_heads")
        kv, dim = config.size("num_key_value_heads", default=q), config.optional_size("head_dim")
        if dim is None and hidden % q:
            raise ModelError(
                f"hidden_size must be divisible by num_attention_heads, got {hidden} and {q} in "
                f"{config.where}; correct one or give head_dim"
            )
        if q % kv:
            raise ModelError(
                f"num_attention_heads must be divisible by num_key_value_heads, got {q} and {kv} in "
                f"{config.where}; correct one"
            )
        return cls(hidden=hidden, q=q, kv=kv, dim=dim or hidden // q)

    def spec(self, window: int | None = None, *, rope_theta: float = 0.0) -> AttentionSpec:
        """Return what the layer keeps per token; ``window`` in tokens, ``None`` for full attention.

        ``rope_theta`` matters only where layers differ in it: each base has a rotary table of its own.
        """
        return AttentionSpec(
            kind="sliding" if window else "full",
            q_heads=self.q,
            kv_heads=self.kv,
            head_dim=self.dim,
            v_head_dim=self.value_dim or self.dim,
            window=window,
            rope_theta=rope_theta,
        )


def attention(
    heads: Heads,
    *,
    bias: bool = False,
    out_bias: bool = False,
    qk_norm: Literal["head", "all heads"] | None = None,
    fused: str = "",
    out: str = "self_attn.o_proj",
    made: Literal["qkv", "qk", "q"] = "qkv",
) -> tuple[Weight, ...]:
    """Write grouped-query attention.

    Args:
        heads: Sizes.
        bias: Whether q, k and v have one.
        out_bias: Whether the output projection has one.
        qk_norm: Norms of queries and keys: one vector per head size, or one over all heads.
        fused: The checkpoint's name of one tensor that holds q, k and v. They stay three weights,
            since key and value heads are replicated on more ranks than there are of them.
        out: The checkpoint's name of the output projection.
        made: Which of query, key and value the layer projects; it takes the others from somewhere else.
    """
    values = heads.value_dim or heads.dim
    counts = {"q": (heads.q, heads.dim), "k": (heads.kv, heads.dim), "v": (heads.kv, values)}
    names = {key: f"{fused}[{key}]" if fused else f"self_attn.{key}_proj" for key in "qkv"}
    weights = [
        matrix(
            names[key],
            "attention",
            counts[key][0] * counts[key][1],
            heads.hidden,
            shard="column",
            units=counts[key][0],
            bias=bias,
        )
        for key in made
    ]
    weights.append(
        matrix(out, "attention", heads.hidden, heads.q * values, shard="row", units=heads.q, bias=out_bias)
    )
    if qk_norm:
        for key in made.removesuffix("v"):
            units = counts[key][0] if qk_norm == "all heads" else 0
            weights.append(
                norm(f"self_attn.{key}_norm", heads.dim * (units or 1), part="attention", units=units)
            )
    return tuple(weights)


def gated_mlp(
    hidden: int,
    intermediate: int,
    *,
    prefix: str = "mlp",
    part: Part = "mlp",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
    copies: int = 1,
) -> tuple[Weight, ...]:
    """Write gate, up and down projection; experts are ``copies`` of them."""
    gate, up, down = (f"{prefix}.{name}" for name in names)
    return (
        matrix(gate, part, intermediate, hidden, shard="column", bias=bias, copies=copies),
        matrix(up, part, intermediate, hidden, shard="column", bias=bias, copies=copies),
        matrix(down, part, hidden, intermediate, shard="row", bias=bias, copies=copies),
    )


def decoder(
    config: Config,
    *,
    pattern: Sequence[K],
    layer: Callable[[K], LayerSpec],
    tied: bool = False,
    norm_bias: bool = False,
    head_bias: bool = False,
    towers: tuple[Weight, ...] = (),
    draft: LayerSpec | None = None,
    notes: tuple[str, ...] = (),
) -> ModelSpec:
    """Assemble a model; name, source, architecture and dtype are filled in by ``load_model``.

    Args:
        config: The language model's configuration.
        pattern: For each layer, what tells its kind from the others.
        layer: Builds the layer of one kind.
        tied: What ``tie_word_embeddings`` means where the file leaves it out.
        norm_bias: Whether the final norm has a bias.
        head_bias: Whether the head has one.
        towers: What stands before the decoder.
        draft: What each of the ``num_nextn_predict_layers`` that draft tokens is, where it is known.
        notes: What a reader should know.
    """
    kinds = tuple(dict.fromkeys(pattern))
    drafts = config.count("num_nextn_predict_layers")
    if drafts > MAX_LAYERS:
        raise ModelError(
            f"num_nextn_predict_layers must be at most {MAX_LAYERS}, got {drafts} in {config.where}; "
            "take it from the model's own config.json"
        )
    if drafts and draft is None:
        notes = (*notes, f"{drafts} multi-token-prediction layer(s) of the checkpoint are not counted")
    hidden, vocab = config.size("hidden_size"), config.size("vocab_size")
    return ModelSpec(
        name="",
        source="",
        architecture="",
        hidden_size=hidden,
        vocab_size=vocab,
        max_position_embeddings=config.size("max_position_embeddings", "seq_length", default=2048),
        dtype="bfloat16",
        kinds=tuple(layer(kind) for kind in kinds),
        pattern=tuple(kinds.index(kind) for kind in pattern),
        embedding=matrix("model.embed_tokens", "embedding", vocab, hidden, shard="vocab"),
        head=matrix("lm_head", "head", vocab, hidden, shard="vocab", bias=head_bias),
        final_norm=(norm("model.norm", hidden, bias=norm_bias),),
        tied=config.flag("tie_word_embeddings", default=tied),
        towers=towers,
        drafts=(draft,) * drafts if draft else (),
        notes=notes,
    )


def draft_layer(hidden: int, layer: LayerSpec) -> LayerSpec:
    """Return a layer that drafts tokens as DeepSeek-V3's does, around a decoder layer.

    It joins the embedding of the last token with the decoder's output, both normed, and passes the result
    through ``layer``. Embedding and head are the model's own (arXiv 2412.19437, section 2.2).
    """
    return replace(
        layer,
        weights=(
            norm("enorm", hidden),
            norm("hnorm", hidden),
            matrix("eh_proj", "embedding", hidden, 2 * hidden),
            *layer.weights,
            norm("shared_head.norm", hidden),
        ),
    )


def cuts_between(reads: Mapping[int, int], why: str) -> tuple[tuple[int, str], ...]:
    """Return the cuts that part a layer from an earlier one that it reads from.

    Args:
        reads: For each reading layer, the layer that it reads from.
        why: The reason, where ``{source}`` and ``{reader}`` stand for the first pair that a cut parts.

    >>> cuts_between({3: 2, 5: 2}, "layer {reader} reads layer {source}")
    ((3, 'layer 3 reads layer 2'), (4, 'layer 5 reads layer 2'), (5, 'layer 5 reads layer 2'))
    """
    cuts: dict[int, str] = {}
    for reader, source in sorted(reads.items()):
        for cut in range(source + 1, reader + 1):
            cuts.setdefault(cut, why.format(source=source, reader=reader))
    return tuple(sorted(cuts.items()))
