"""What decoder layers are made of: products, norms, rotary positions, and where a microbatch stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgplan.model.spec import Weight
from pgplan.verification import fused, products
from pgplan.verification.layouts import layout_of
from pgplan.verification.quantized import Quantized
from pgplan.verification.quantized_shards import quantized_shard
from pgplan.verification.shards import Shards

if TYPE_CHECKING:
    import torch

    from pgplan.planning import Plan

# Steps whose rows of a rotary table are kept ready: a prefill chunk, a decode step, those of a check.
_STEPS_KEPT = 16
# Tokens of the hop that is compared bit by bit.
CHECKED_TOKENS = 128

Reduce = Callable[["torch.Tensor"], "torch.Tensor"]


def as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as it is: what is summed over one rank, or gathered from one."""
    return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Tell where the tokens of one microbatch stand.

    Args:
        sequences: Sequences in it.
        length: New tokens of each.
        start: Tokens of each that came before.
        first_row: Where its sequences begin in the cache.
    """

    sequences: int
    length: int
    start: int
    first_row: int = 0

    @classmethod
    def of_chunk(cls, *, tokens: int, prompt: int) -> Step:
        """Return a prefill chunk of about ``tokens`` tokens of prompts that are ``prompt`` tokens long.

        A prompt longer than its part of the chunk is met half-way, where a token attends to as many as on
        average over the whole prompt.

        >>> Step.of_chunk(tokens=4096, prompt=2048), Step.of_chunk(tokens=1024, prompt=2048).start
        (Step(sequences=2, length=2048, start=0, first_row=0), 512)
        """
        sequences = max(1, -(-tokens // prompt))
        length = tokens // sequences
        return cls(sequences=sequences, length=length, start=(prompt - length) // 2)

    @property
    def tokens(self) -> int:
        """Count the new tokens."""
        return self.sequences * self.length

    @property
    def is_decode(self) -> bool:
        """Tell whether each sequence has one new token and others before it."""
        return self.length == 1 and self.start > 0

    @property
    def rows(self) -> slice:
        """Its rows of the cache."""
        return slice(self.first_row, self.first_row + self.sequences)


@dataclass(frozen=True, slots=True)
class Linear:
    """Hold a matrix, plain or quantized, and perhaps a bias."""

    weight: torch.Tensor | Quantized
    bias: torch.Tensor | None = None

    @classmethod
    def make(cls, shards: Shards, place: str, *weights: Weight) -> Linear:
        """Make one fused product of several weights."""
        return cls(make_weight(shards, place, *weights), shards.bias(place, *weights))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map the last dimension."""
        import torch.nn.functional as F

        if isinstance(self.weight, Quantized):
            return products.multiply(self.weight, x, self.bias)
        return F.linear(x, self.weight, self.bias)

    def widened(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the matrix as a plain tensor: itself, or a copy of a quantized one."""
        return products.widened(self.weight, dtype) if isinstance(self.weight, Quantized) else self.weight


def make_weight(shards: Shards, place: str, *weights: Weight) -> torch.Tensor | Quantized:
    """Make the rank's shards of weights that are multiplied with at once, as their storage says."""
    layout = layout_of(weights[0].storage)
    if layout is None:
        return shards.matrix(place, *weights)
    return products.prepared(quantized_shard(shards, place, layout, *weights))


class Norm:
    """Normalise by the root of the mean square; with a bias, by mean and variance.

    Args:
        reduce: Sums over the ranks, for a norm whose vector is divided over them.
        parts: Over how many ranks it is.
    """

    def __init__(
        self, shards: Shards, place: str, weight: Weight, *, reduce: Reduce | None = None, parts: int = 1
    ) -> None:
        self.weight, self.bias = shards.vector(place, weight), shards.bias(place, weight)
        self._reduce, self._parts = reduce, parts

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        import torch
        import torch.nn.functional as F

        size = len(self.weight)
        if self.bias is not None:
            return F.layer_norm(x, (size,), self.weight, self.bias)
        if not self._is_shared:
            return F.rms_norm(x, (size,), self.weight, fused.EPSILON)
        assert self._reduce is not None  # else nothing would be shared
        mean_square = self._reduce(x.float().square().mean(-1, keepdim=True)) / self._parts
        return (x * torch.rsqrt(mean_square + fused.EPSILON)).to(x.dtype) * self.weight

    @property
    def is_plain(self) -> bool:
        """Tell whether it divides by the root of the mean square of what this rank has, and no more."""
        return self.bias is None and not self._is_shared

    @property
    def _is_shared(self) -> bool:
        return self._reduce is not None and self._parts > 1

    def after_adding(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Add ``hidden`` to the residual, in place, and return it normalised."""
        if self.is_plain:
            return fused.add_norm(hidden, residual, self.weight)
        return self(residual.add_(hidden))


class Rotary:
    """Hold the cosines and sines of one kind of rotary positions.

    Args:
        max_positions: Rows of the table.
        size: Elements per head that rotate.
        theta: The base.
    """

    def __init__(
        self, *, max_positions: int, size: int, theta: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        import torch

        frequencies = (theta or 10_000.0) ** -(torch.arange(0, size, 2, device=device) / size)
        self.table = torch.empty((max_positions, size), dtype=dtype, device=device)
        self._used: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        # In slices: angles are fp32, and twice or four times the table.
        for first in range(0, max_positions, 1 << 14):
            positions = torch.arange(first, min(first + (1 << 14), max_positions), device=device)
            angles = torch.outer(positions.float(), frequencies)
            self.table[first : first + len(positions)] = torch.cat((angles.cos(), angles.sin()), -1).to(dtype)

    def __call__(self, x: torch.Tensor, step: Step, norms: fused.HeadNorms | None = None) -> torch.Tensor:
        """Rotate the last dimension of ``x``, shape ``(s, t, heads, elements)``; it may be written over."""
        return fused.rotate(x, *self.rows(step), norms)

    def rows(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cosines of a step's positions, and the sines with the sign of the first half turned.

        All layers of a step ask for the same, and a captured graph reads them where they lie.
        """
        import torch

        key = (step.start, step.length)
        if key not in self._used:
            if len(self._used) >= _STEPS_KEPT:
                self._used.clear()
            cos, sin = self.table[step.start : step.start + step.length, None].chunk(2, -1)
            self._used[key] = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return self._used[key]


def steps_of(plan: Plan) -> tuple[Step, Step]:
    """Return a prefill chunk and a decode step of the sizes that the plan's times are for.

    A decoded token is half-way through the output.
    """
    prompt, output = plan.workload.prompt_tokens, plan.workload.output_tokens
    prefill = Step.of_chunk(tokens=plan.prefill_tokens, prompt=prompt)
    decode = Step(sequences=plan.decode_batch, length=1, start=prompt + output // 2 - 1)
    return prefill, decode


def largest_hop(plan: Plan) -> int:
    """Return the most tokens that any hop of a verification carries, those of its check included."""
    prefill, decode = steps_of(plan)
    return max(prefill.tokens, decode.tokens, CHECKED_TOKENS)
