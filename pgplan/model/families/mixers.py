"""Recurrent mixers: what stands in a layer where attention does, with its weights and its state.

Matrices are part ``"mixer"``. A convolution is one short filter per channel and no matrix product; like
the decays and step biases it is written as a vector. Tensor parallelism divides all of it by heads, and
where groups share keys (Mamba-2's B and C) it replicates the groups on more ranks than there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from reprlib import repr as shown
from typing import Literal

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import matrix, norm
from pgplan.model.spec import StateSpec, Weight

_DTYPES: dict[str, Literal["float32", "bfloat16", "float16"]] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """Hold the weights of a recurrent mixer and the state that it keeps."""

    weights: tuple[Weight, ...]
    state: StateSpec


def vector(name: str, size: int, *, units: int, bias: bool = False) -> Weight:
    """Write a vector that tensor parallelism divides by ``units``."""
    return norm(name, size, part="mixer", units=units, bias=bias)


def convolution(name: str, channels: int, kernel: int, *, units: int, bias: bool) -> tuple[Weight, ...]:
    """Write a causal filter of ``kernel`` taps for each channel, and their biases."""
    weights = (vector(name, channels * kernel, units=units),)
    return (*weights, vector(f"{name}.bias", channels, units=units)) if bias else weights


def state_dtype(config: Config, *keys: str) -> Literal["float32", "bfloat16", "float16"] | None:
    """Read the dtype that the configuration asks of recurrent state, ``None`` where it says nothing."""
    value = config.get(*keys)
    if value is None:
        return None
    if not isinstance(value, str) or value not in _DTYPES:
        raise ModelError(
            f"{keys[0]} must be one of {', '.join(_DTYPES)}, got {shown(value)} in {config.where}; "
            f"take it from the model's own config.json"
        )
    return _DTYPES[value]


def mamba1(
    name: str,
    *,
    hidden: int,
    inner: int,
    state_size: int,
    rank: int,
    kernel: int,
    bias: bool,
    conv_bias: bool,
) -> Mixer:
    """Write Jamba's Mamba (arXiv 2312.00752), whose step sizes, B and C are normed.

    Args:
        name: The module's name.
        hidden: Features of the residual stream.
        inner: Channels of the recurrence.
        state_size: Elements of state per channel.
        rank: Rank of the projection that gives the step sizes.
        kernel: Taps of the convolution.
        bias: Whether input and output projection have one.
        conv_bias: Whether the convolution has one.
    """
    weights = (
        *convolution(f"{name}.conv1d", inner, kernel, units=inner, bias=conv_bias),
        matrix(f"{name}.in_proj", "mixer", 2 * inner, hidden, shard="column", units=inner, bias=bias),
        matrix(f"{name}.x_proj", "mixer", rank + 2 * state_size, inner, shard="row"),
        matrix(f"{name}.dt_proj", "mixer", inner, rank, shard="column", bias=True),
        vector(f"{name}.A_log", inner * state_size, units=inner),
        vector(f"{name}.D", inner, units=inner),
        matrix(f"{name}.out_proj", "mixer", hidden, inner, shard="row", bias=bias),
        norm(f"{name}.dt_layernorm", rank, part="mixer"),
        norm(f"{name}.b_layernorm", state_size, part="mixer"),
        norm(f"{name}.c_layernorm", state_size, part="mixer"),
    )
    state = StateSpec(kind="mamba1", heads=inner, head_dim=1, state_size=state_size, taps=kernel - 1)
    return Mixer(weights=weights, state=state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """Hold the sizes of Mamba-2 (arXiv 2405.21060).

    Args:
        name: The module's name.
        hidden: Features of the residual stream.
        heads: Recurrent heads.
        head_dim: Channels of a head.
        state_size: Elements of state per channel.
        groups: Groups of heads that share B and C.
        kernel: Taps of the convolution.
        bias: Whether the input projection has one.
        out_bias: Whether the output projection has one.
        conv_bias: Whether the convolution has one.
        normed: Whether a gated norm stands before the output projection.
        dtype: What the configuration asks of the recurrent state.
    """

    name: str
    hidden: int
    heads: int
    head_dim: int
    state_size: int
    groups: int
    kernel: int
    bias: bool
    out_bias: bool
    conv_bias: bool
    normed: bool = True
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def mixer(self) -> Mixer:
        """Write it: gate and values by heads, B and C by groups, one step size per head."""
        name, heads, groups = self.name, self.heads, self.groups
        inner, shared = heads * self.head_dim, 2 * groups * self.state_size
        conv = f"{name}.conv1d"

        def enter(what: str, rows: int, units: int) -> Weight:
            title = f"{name}.in_proj[{what}]"
            return matrix(title, "mixer", rows, self.hidden, shard="column", units=units, bias=self.bias)

        weights = (
            enter("gate, x", 2 * inner, heads),
            enter("B, C", shared, groups),
            enter("dt", heads, heads),
            *convolution(f"{conv}[x]", inner, self.kernel, units=heads, bias=self.conv_bias),
            *convolution(f"{conv}[B, C]", shared, self.kernel, units=groups, bias=self.conv_bias),
            *(vector(f"{name}.{key}", heads, units=heads) for key in ("dt_bias", "A_log", "D")),
            *((vector(f"{name}.norm", inner, units=heads),) if self.normed else ()),
            matrix(
                f"{name}.out_proj",
                "mixer",
                self.hidden,
                inner,
                shard="row",
                units=heads,
                bias=self.out_bias,
            ),
        )
        state = StateSpec(
            kind="mamba2",
            heads=heads,
            head_dim=self.head_dim,
            state_size=self.state_size,
            groups=groups,
            taps=self.kernel - 1,
            dtype=self.dtype,
        )
        return Mixer(weights=weights, state=state)


def gated_delta(config: Config, *, fused: bool, name: str = "linear_attn") -> Mixer:
    """Write the gated delta rule of Qwen3-Next (``fused`` projections) and of Qwen3.5."""
    hidden, kernel = config.size("hidden_size"), config.size("linear_conv_kernel_dim")
    keys, values = config.size("linear_num_key_heads"), config.size("linear_num_value_heads")
    key_dim, value_dim = config.size("linear_key_head_dim"), config.size("linear_value_head_dim")
    if values % keys:
        raise ModelError(
            f"linear_num_value_heads must be divisible by linear_num_key_heads, got {values} and {keys} in "
            f"{config.where}; correct one"
        )
    queried, valued = 2 * keys * key_dim, values * value_dim
    names = {"qk": "in_proj_qkv", "v": "in_proj_qkv", "z": "in_proj_z", "b": "in_proj_b", "a": "in_proj_a"}
    if fused:
        names = dict.fromkeys(("qk", "v", "z"), "in_proj_qkvz") | dict.fromkeys("ba", "in_proj_ba")
    sizes = {"qk": queried, "v": valued, "z": valued, "b": values, "a": values}

    def enter(what: str) -> Weight:
        shared = list(names.values()).count(names[what]) > 1
        title = f"{name}.{names[what]}[{what}]" if shared else f"{name}.{names[what]}"
        return matrix(title, "mixer", sizes[what], hidden, shard="column", units=keys)

    weights = (
        *convolution(f"{name}.conv1d", queried + valued, kernel, units=keys, bias=False),
        *(enter(what) for what in names),
        vector(f"{name}.dt_bias", values, units=values),
        vector(f"{name}.A_log", values, units=values),
        norm(f"{name}.norm", value_dim, part="mixer"),
        matrix(f"{name}.out_proj", "mixer", hidden, valued, shard="row", units=values),
    )
    state = StateSpec(
        kind="gated delta",
        heads=values,
        head_dim=value_dim,
        state_size=key_dim,
        groups=keys,
        taps=kernel - 1,
        dtype=state_dtype(config, "mamba_ssm_dtype"),
    )
    return Mixer(weights=weights, state=state)


def kimi_delta(config: Config, *, full_rank_gate: bool = False, name: str = "self_attn") -> Mixer:
    """Write Kimi delta attention (arXiv 2510.26692): a decay per channel, gates of low rank.

    Args:
        config: ``linear_attn_config``, with the model's ``hidden_size``.
        full_rank_gate: Whether the output gate is one projection (Kimi K3) rather than two of low rank.
        name: The module's name.
    """
    hidden, heads, dim = config.size("hidden_size"), config.size("num_heads"), config.size("head_dim")
    kernel, inner = config.size("short_conv_kernel_size", default=4), heads * dim

    def up(key: str, rows: int, cols: int) -> Weight:
        return matrix(f"{name}.{key}", "mixer", rows, cols, shard="column", units=heads)

    def down(key: str) -> Weight:
        return matrix(f"{name}.{key}", "mixer", dim, hidden)

    gate = (up("g_proj", inner, hidden),)
    weights = (
        *(up(f"{key}_proj", inner, hidden) for key in "qkv"),
        *(vector(f"{name}.{key}_conv1d", inner * kernel, units=heads) for key in "qkv"),
        vector(f"{name}.A_log", heads, units=heads),
        vector(f"{name}.dt_bias", inner, units=heads),
        down("f_a_proj"),
        up("f_b_proj", inner, dim),
        up("b_proj", heads, hidden),
        *(gate if full_rank_gate else (down("g_a_proj"), up("g_b_proj", inner, dim))),
        norm(f"{name}.o_norm", dim, part="mixer"),
        matrix(f"{name}.o_proj", "mixer", hidden, inner, shard="row", units=heads),
    )
    state = StateSpec(
        kind="kimi delta",
        heads=heads,
        head_dim=dim,
        state_size=dim,
        groups=heads,
        taps=kernel - 1,
        # Engines keep it in fp32 whatever the model's dtype (vLLM ``kda_state_dtype``).
        dtype="float32",
    )
    return Mixer(weights=weights, state=state)


def lightning(*, hidden: int, heads: int, head_dim: int, name: str = "self_attn") -> Mixer:
    """Write MiniMax-01's lightning attention (arXiv 2501.08313): linear attention with a decay per head."""
    inner = heads * head_dim
    weights = (
        matrix(f"{name}.qkv_proj", "mixer", 3 * inner, hidden, shard="column", units=heads),
        norm(f"{name}.norm", inner, part="mixer", units=heads),
        matrix(f"{name}.output_gate", "mixer", inner, hidden, shard="column", units=heads),
        matrix(f"{name}.out_proj", "mixer", hidden, inner, shard="row", units=heads),
    )
    state = StateSpec(kind="lightning", heads=heads, head_dim=head_dim, state_size=head_dim)
    return Mixer(weights=weights, state=state)


def short_conv(*, hidden: int, kernel: int, bias: bool, name: str = "conv") -> Mixer:
    """Write LFM2's short convolution between two gates; it keeps the last inputs and nothing else."""
    weights = (
        *convolution(f"{name}.conv", hidden, kernel, units=hidden, bias=bias),
        matrix(f"{name}.in_proj", "mixer", 3 * hidden, hidden, shard="column", units=hidden, bias=bias),
        matrix(f"{name}.out_proj", "mixer", hidden, hidden, shard="row", bias=bias),
    )
    state = StateSpec(kind="short conv", heads=hidden, head_dim=1, state_size=0, taps=kernel - 1)
    return Mixer(weights=weights, state=state)


def renamed(weights: tuple[Weight, ...], old: str, new: str) -> tuple[Weight, ...]:
    """Return the same weights under another module's name."""
    return tuple(replace(weight, name=weight.name.replace(old, new, 1)) for weight in weights)
