"""Multi-head latent attention (arXiv 2405.04434): the cache keeps one compressed vector per token.

prefill   keys and values of every head are projected up from the latent vectors
decode    the up-projections are drawn into query and output, so every head attends to the latent
          vectors themselves and the cache is read as it is
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgplan.model.spec import LayerSpec
from pgplan.verification import compressed
from pgplan.verification.causal import causal_attention
from pgplan.verification.kv_cache import few_at_a_time
from pgplan.verification.pieces import Linear, Norm, Reduce, Rotary, Step
from pgplan.verification.shards import Shards

if TYPE_CHECKING:
    import torch


class LatentAttention:
    """Attend through a latent vector; the arguments are those of ``GroupedAttention``."""

    def __init__(self, layer: LayerSpec, shards: Shards, place: str, rotary: Rotary, reduce: Reduce) -> None:
        spec = layer.attention
        assert spec is not None  # checked before anything is built
        del reduce  # the latent norms are whole on every rank
        named = {w.name.rpartition(".")[2]: w for w in layer.weights if w.part == "attention"}
        self.spec, self._rotary = spec, rotary
        self.heads = spec.q_heads // shards.tp_size
        self.nope = spec.head_dim - spec.rope_dim
        self.query_down: tuple[Linear, Norm] | None = None
        if "q_a_proj" in named:
            self.query_down = (
                Linear.make(shards, place, named["q_a_proj"]),
                Norm(shards, place, named["q_a_layernorm"]),
            )
        self.query = Linear.make(shards, place, named["q_b_proj" if self.query_down else "q_proj"])
        self.down = Linear.make(shards, place, named["kv_a_proj_with_mqa"])
        self.norm = Norm(shards, place, named["kv_a_layernorm"])
        self.up = Linear.make(shards, place, named["kv_b_proj"])
        self.out = Linear.make(shards, place, named["o_proj"])
        self._wide: torch.Tensor | None = None

    def widen(self, dtype: torch.dtype) -> None:
        """Keep a plain copy of a quantized up-projection for decode, as vLLM does."""
        self._wide = self.up.widened(dtype)

    def cache_shapes(self, tokens: int) -> list[tuple[int, ...]]:
        """Return the shape per sequence of what the cache keeps of ``tokens`` tokens."""
        return [(tokens, self.spec.kv_lora_rank + self.spec.rope_dim)]

    def __call__(self, x: torch.Tensor, cache: list[torch.Tensor], step: Step) -> torch.Tensor:
        """Attend; ``x`` is ``(tokens, hidden)``, and so is the result, a partial sum of this rank's heads."""
        import torch

        query = self._queries(x, step)
        kept, end = cache[0][step.rows], step.start + step.length
        fresh = kept[:, step.start : end]
        attend = self._decode if step.is_decode else self._prefill
        if kept.dtype == x.dtype:
            self._keep(x, step, fresh)
            mixed = attend(query, kept[:, :end])
        else:
            latent = x.new_empty(fresh.shape)
            self._keep(x, step, latent)
            fresh.copy_(latent)
            before, parts = kept[:, : step.start], []
            for few in few_at_a_time(kept):
                wide = torch.cat((before[few].to(x.dtype), latent[few]), 1)
                parts.append(attend(query[few], wide))
            mixed = torch.cat(parts)
        return self.out(mixed.reshape(step.tokens, -1))

    def _queries(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        """Return the queries, rotated, ``(s, t, heads, nope + rope)``."""
        down = x
        if self.query_down is not None:
            project, norm = self.query_down
            down = norm(project(x))
        query = self.query(down).view(step.sequences, step.length, self.heads, self.spec.head_dim)
        turning = query[..., self.nope :]
        turned = self._rotary(turning, step)
        if turned is not turning:  # a kernel rotates in place
            turning.copy_(turned)
        return query

    def _keep(self, x: torch.Tensor, step: Step, into: torch.Tensor) -> None:
        """Write what is kept of the new tokens into ``(s, t, rank + rope)``."""
        compressed.keep(self.down(x), self.norm.weight, *self._rotary.rows(step), into)

    def _prefill(self, query: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        spec = self.spec
        latent, key = torch.split(present, [spec.kv_lora_rank, spec.rope_dim], -1)
        up = self.up(latent).view(*present.shape[:2], self.heads, -1)
        shared = key[:, :, None].expand(-1, -1, self.heads, -1)
        keys = torch.cat((up[..., : self.nope], shared), -1)
        # Fused kernels want values as wide as keys.
        values = F.pad(up[..., self.nope :], (0, spec.head_dim - spec.v_head_dim))
        del up  # copied; with 128 heads it is a quarter of what a chunk needs
        out = causal_attention(*(part.transpose(1, 2) for part in (query, keys, values)))
        return out[..., : spec.v_head_dim].transpose(1, 2)

    def _decode(self, query: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        import torch

        spec = self.spec
        up_key, up_value = self._up_per_head(query.dtype)
        nope, turned = torch.split(query[:, 0], [self.nope, spec.rope_dim], -1)
        # (heads, s, nope) x (heads, nope, rank) -> (s, heads, rank)
        absorbed = torch.bmm(nope.transpose(0, 1), up_key).transpose(0, 1)
        mixed = compressed.attend(absorbed, turned, present, scale=spec.head_dim**-0.5)
        # (heads, s, rank) x (heads, rank, v), written as (s, heads, v)
        out = query.new_empty((len(query), self.heads, spec.v_head_dim))
        torch.bmm(mixed.transpose(0, 1), up_value.transpose(1, 2), out=out.transpose(0, 1))
        return out

    def _up_per_head(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(heads, nope, rank)`` and ``(heads, v, rank)``, views of one matrix."""
        import torch

        spec = self.spec
        wide = self.up.widened(dtype) if self._wide is None else self._wide
        per_head = wide.view(self.heads, self.nope + spec.v_head_dim, spec.kv_lora_rank)
        up_key, up_value = torch.split(per_head, [self.nope, spec.v_head_dim], 1)
        return up_key, up_value
