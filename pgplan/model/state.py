"""What a layer keeps per sequence, however long it grows: recurrent and convolution state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pgplan.errors import ModelError

StateKind = Literal["mamba1", "mamba2", "gated delta", "kimi delta", "lightning", "short conv"]

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """Describe the state of a recurrent layer.

    All kinds keep ``heads`` matrices of ``head_dim`` x ``state_size``, and the last inputs of a short
    causal convolution over what enters the recurrence: the values (``heads * head_dim`` channels) and
    twice ``groups * state_size`` more (Mamba-2's B and C, the keys and queries of the delta rules).

        mamba1       every channel is a head of size 1; B and C are not convolved: groups = 0
        mamba2       groups of heads share B and C
        gated delta  heads are value heads, groups key heads, state_size a key head (arXiv 2412.06464)
        kimi delta   as many key heads as value heads, all of one size (arXiv 2510.26692)
        lightning    linear attention without convolution: taps = 0 (arXiv 2501.08313)
        short conv   nothing but the convolution: state_size = 0

    Args:
        kind: Which recurrence it is.
        heads: Recurrent heads, which tensor parallelism divides.
        head_dim: Elements of a head's output.
        state_size: Elements of state per element of output.
        groups: What shares its keys; on more ranks than there are of them they are replicated.
        taps: Past inputs that the convolution needs, i.e. its kernel size less 1.
        dtype: Dtype of the recurrent matrices that architecture or configuration ask for; ``None``:
            the engine chooses. The convolution's inputs have the model's own dtype.

    >>> state = StateSpec(kind="mamba2", heads=128, head_dim=64, state_size=128, groups=8, taps=3)
    >>> state.conv_elements, state.recurrent_elements, state.on_rank(tp_size=2).recurrent_elements
    (30720, 1048576, 524288)
    """

    kind: StateKind
    heads: int
    head_dim: int
    state_size: int
    groups: int = 0
    taps: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def __post_init__(self) -> None:
        if min(self.heads, self.head_dim) < 1 or min(self.state_size, self.groups, self.taps) < 0:
            raise ModelError(
                f"a {self.kind} state needs heads and head_dim of at least 1 and nothing below 0, got "
                f"{self.heads} x {self.head_dim} x {self.state_size}, {self.groups} groups and "
                f"{self.taps} taps; check the sizes in the configuration"
            )

    def on_rank(self, *, tp_size: int) -> StateSpec:
        """Return what one of ``tp_size`` ranks keeps."""
        groups = max(1, self.groups // tp_size) if self.groups else 0
        return replace(self, heads=self.heads // tp_size, groups=groups)

    @property
    def inner(self) -> int:
        """Count the elements of the output."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Count the channels that are convolved."""
        return self.inner + 2 * self.groups * self.state_size

    @property
    def conv_elements(self) -> int:
        """Count the past inputs that are kept per sequence."""
        return self.taps * self.channels

    @property
    def recurrent_elements(self) -> int:
        """Count the elements of the recurrent matrices that are kept per sequence."""
        return self.inner * self.state_size

    def sequence_bytes(self, *, tp_size: int = 1, dtype: str, recurrent_dtype: str | None = None) -> int:
        """Return the bytes that one rank keeps per sequence.

        Args:
            tp_size: Ranks that share the layer.
            dtype: The model's own dtype.
            recurrent_dtype: What the engine takes where the model asks for nothing; ``None``: ``dtype``.

        >>> state = StateSpec(kind="mamba2", heads=128, head_dim=64, state_size=128, groups=8, taps=3)
        >>> state.sequence_bytes(dtype="bfloat16"), state.sequence_bytes(
        ...     dtype="bfloat16", recurrent_dtype="float32"
        ... )
        (2158592, 4255744)
        """
        rank = self.on_rank(tp_size=tp_size)
        recurrent = _DTYPE_BYTES[self.dtype or recurrent_dtype or dtype]
        return rank.conv_elements * _DTYPE_BYTES[dtype] + rank.recurrent_elements * recurrent
