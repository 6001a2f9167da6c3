"""The MLP of a layer: one for all tokens, or a few of many that a router picks for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgplan.model.spec import LayerSpec, Weight
from pgplan.verification import fused, products, routed
from pgplan.verification.pieces import Linear, make_weight
from pgplan.verification.quantized import Quantized
from pgplan.verification.shards import Shards

if TYPE_CHECKING:
    import torch


class Mlp:
    """Compute a gated MLP that every token passes through; with two matrices, one without a gate."""

    def __init__(self, weights: Sequence[Weight], shards: Shards, place: str) -> None:
        self.up = Linear.make(shards, place, *(w for w in weights if w.shard == "column"))
        self.down = Linear.make(shards, place, next(w for w in weights if w.shard == "row"))
        self._gated = sum(w.shard == "column" for w in weights) == 2

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, hidden)`` to a partial sum of the same shape."""
        return self.down(_activate(self.up(x), gated=self._gated))


class Experts:
    """Send each token to the experts that a router picks, and sum what they give.

    Tokens are sorted by expert, so that each of the two products is one call over all experts, however
    uneven their shares; nothing is said to the host, so decode can be captured in a graph. On a GPU
    ``routed`` does that in kernels of its own.
    """

    def __init__(self, layer: LayerSpec, shards: Shards, place: str) -> None:
        by_part: dict[str, list[Weight]] = {}
        for weight in layer.weights:
            by_part.setdefault(weight.part, []).append(weight)
        self._count, self._visited = layer.num_experts, layer.experts_per_token
        self.router = Linear.make(shards, place, by_part["router"][0])
        weights = by_part["experts"]
        self.up = make_weight(shards, place, *(w for w in weights if w.shard == "column"))
        self.down = make_weight(shards, place, next(w for w in weights if w.shard == "row"))
        shared = by_part.get("shared_experts", [])
        gates = [weight for weight in shared if weight.shard == "replicated"]
        self.shared = Mlp([w for w in shared if w not in gates], shards, place) if shared else None
        self.shared_gate = Linear.make(shards, place, gates[0]) if gates else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(tokens, hidden)`` to a partial sum of the same shape."""
        import torch

        out = self._routed(x)
        if self.shared is None:
            return out
        beside = self.shared(x)
        if self.shared_gate is not None:
            beside = torch.sigmoid(self.shared_gate(x)) * beside
        return out + beside

    def _routed(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        scores, up, down = self.router(x), self.up, self.down
        if routed.serves(x) and isinstance(up, torch.Tensor) and isinstance(down, torch.Tensor):
            return routed.route(scores, x, up, down, visited=self._visited)
        shares, picked = torch.softmax(scores, -1, dtype=torch.float32).topk(self._visited, -1)
        shares = shares / shares.sum(-1, keepdim=True)
        expert, order = picked.view(-1).sort()
        ends = torch.searchsorted(
            expert, torch.arange(self._count, device=x.device, dtype=expert.dtype), right=True
        ).to(torch.int32)
        inner = _activate(grouped_product(x[order // self._visited], up, ends), gated=True)
        # Back in the order of the tokens; a scatter-add would sum in an order that changes.
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        each = grouped_product(inner, down, ends)[back].view(len(x), self._visited, -1)
        return torch.bmm(shares[:, None].to(x.dtype), each)[:, 0]


def grouped_product(x: torch.Tensor, weight: torch.Tensor | Quantized, ends: torch.Tensor) -> torch.Tensor:
    """Multiply consecutive rows of ``x`` with the matrix of their group.

    Args:
        x: Shape ``(rows, cols)``, sorted by group.
        weight: Shape ``(groups, out, cols)``.
        ends: The row after each group's last, int32.
    """
    import torch

    if isinstance(weight, Quantized):
        return products.multiply_groups(weight, x, ends, grouped_product)
    grouped = getattr(torch, "_grouped_mm", None)
    # Its rows must begin at multiples of 16 bytes, which those of narrowed models may not.
    aligned = all(size * x.element_size() % 16 == 0 for size in weight.shape[1:])
    if grouped is not None and aligned:
        return grouped(x, weight.transpose(1, 2), offs=ends)  # type: ignore[no-any-return]
    out, start = x.new_empty(len(x), weight.shape[1]), 0
    for group, end in enumerate(ends.tolist()):
        torch.mm(x[start:end], weight[group].t(), out=out[start:end])
        start = end
    return out


def _activate(x: torch.Tensor, *, gated: bool) -> torch.Tensor:
    import torch.nn.functional as F

    return fused.gate(x) if gated else F.silu(x)
