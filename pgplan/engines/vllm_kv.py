"""How vLLM sizes its KV cache (0.33: ``v1/core/kv_cache_planning.py``, ``v1/core/kv_cache_utils.py``).

Glossary
    block    ``block_size`` tokens of one layer; its bytes are the layer's *page*
    group    caches that share one block table (``vllm_groups``), made over the whole model and then projected
             to each stage
    nb       blocks: each block index costs a stage the largest sum of pages over its groups

    capacity = min over stages of nb(stage), and tokens = nb / blocks per request * longest context
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TypeVar

from pgplan.engines.base import KVCapacity, KVRule, StageMemory, lack_of_memory
from pgplan.engines.vllm_groups import KVLayer, group_layers, is_one_kind, pack_layers, unify_pages

GIB = 1 << 30

_Number = TypeVar("_Number", int, float)

__all__ = ["KVLayer", "VLLMKVRule", "group_layers"]


class VLLMKVRule(KVRule):
    """Apply vLLM's rule to one model under one set of limits.

    Args:
        layers: The caches of each decoder layer.
        block_size: Tokens per block.
        max_model_len: The longest context.
        in_flight_tokens: Tokens that may be scheduled and not settled yet.
        memory_utilization: The share of the device's memory that vLLM may take.
        hybrid: Whether windows are made use of (not ``--disable-hybrid-kv-cache-manager``).
        packed: Whether pages of several sizes may lie side by side in a block.
        drafts: The caches of the layers that draft tokens, which are on the last stage.
    """

    def __init__(
        self,
        layers: Sequence[KVLayer | Sequence[KVLayer] | None],
        *,
        block_size: int,
        max_model_len: int,
        in_flight_tokens: int,
        memory_utilization: float = 1.0,
        hybrid: bool = True,
        packed: bool = False,
        drafts: Sequence[KVLayer] = (),
    ) -> None:
        kept = [(layer,) if isinstance(layer, KVLayer) else tuple(layer or ()) for layer in layers]
        # Whatever range ends with the last layer is the last stage.
        kept[-1] = (*kept[-1], *drafts)
        # A decoder layer may keep several things (Falcon-H1: keys, values and state).
        entries = [entry for group in kept for entry in group]
        owners = [index for index, group in enumerate(kept) for _ in group]
        if not hybrid:
            entries = [_without_window(entry) for entry in entries]
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._in_flight_tokens = in_flight_tokens
        self._memory_utilization = memory_utilization
        if hybrid and not packed and not is_one_kind(entries):
            entries = unify_pages(entries, block_size=block_size)
        groups = pack_layers(entries) if packed else group_layers(entries, hybrid=hybrid)
        self.group_sizes = tuple(len(group) for group in groups)
        self._leaders = [entries[group[0]] for group in groups if group]
        # Bytes of the pages of each group in the layers before an index, so a range costs two look-ups.
        self._page_sums = [
            _prefix(len(kept), [(owners[index], entries[index].page_bytes) for index in group])
            for group in groups
        ]
        pages = [(owner, entry) for owner, entry in zip(owners, entries, strict=True)]
        self._token_sums = _prefix(
            len(kept),
            [
                (owner, entry.page_bytes / (entry.block_size or block_size))
                for owner, entry in pages
                if entry.kind not in ("state", "partial")
            ],
        )
        self._state_sums = _prefix(
            len(kept), [(owner, entry.states * entry.page_bytes) for owner, entry in pages]
        )
        self.blocks_per_request = self._blocks(max_model_len)

    def budget_bytes(self, memory: StageMemory) -> int:
        """Return vLLM's "Available KV cache memory".

        The share is taken of the whole device; context and NCCL come before vLLM's first snapshot and so
        live in the rest (``v1/worker/gpu_worker.py``, ``v1/worker/utils.py::request_memory``).
        """
        requested = math.ceil(memory.memory_bytes * self._memory_utilization)
        return requested - memory.weight_bytes - memory.transient_bytes - memory.cublas_bytes

    def bytes_per_unit(self, start: int, stop: int) -> int:
        """Return the bytes of one block index for the layers ``[start, stop)``."""
        # Asked for by the search for every range; a list takes half as long as a generator.
        return max([sums[stop] - sums[start] for sums in self._page_sums])

    def units(self, start: int, stop: int, budget_bytes: int) -> int:
        """Return the blocks that fit."""
        per_block = self.bytes_per_unit(start, stop)
        return max(0, budget_bytes // per_block) if per_block else 1 << 62

    def units_needed(self, *, requests: int, tokens_each: int) -> int:
        """Return the blocks for ``requests`` requests of ``tokens_each`` tokens, and the null block."""
        return requests * self._blocks(tokens_each) + 1

    def admits(self, start: int, stop: int, budget_bytes: int) -> bool:
        """Tell whether one request of the longest context fits beside the null block."""
        per_block = self.bytes_per_unit(start, stop)
        # A stage that keeps nothing leaves vLLM's planner dividing by zero.
        return (
            0 < per_block <= budget_bytes and budget_bytes - per_block >= per_block * self.blocks_per_request
        )

    def capacity(self, ranges: Sequence[tuple[int, int]], memory: Sequence[StageMemory]) -> KVCapacity:
        """Return what vLLM prints as "GPU KV cache size" and "Maximum concurrency"."""
        return self.capacity_of(ranges, [self.budget_bytes(stage) for stage in memory])

    def capacity_of(self, ranges: Sequence[tuple[int, int]], budgets: Sequence[int]) -> KVCapacity:
        """Return the capacity for known budgets in bytes, such as those of a log."""
        blocks = [
            self.units(start, stop, budget) for (start, stop), budget in zip(ranges, budgets, strict=True)
        ]
        fewest = min(blocks)
        per_block = [self.bytes_per_unit(start, stop) for start, stop in ranges]
        return KVCapacity(
            tokens=self._tokens(fewest),
            requests=fewest / self.blocks_per_request,
            budget_bytes=tuple(budgets),
            used_bytes=tuple(fewest * size for size in per_block),
            stage_tokens=tuple(self._tokens(count) for count in blocks),
            bytes_per_token=tuple(
                round(self._token_sums[stop] - self._token_sums[start]) for start, stop in ranges
            ),
            tightest=blocks.index(fewest),
            problem=self._problem(ranges, budgets),
        )

    def sequence_bytes(self, start: int, stop: int) -> int:
        """Return the bytes of the pages that one request takes for recurrent state."""
        return self._state_sums[stop] - self._state_sums[start]

    def _tokens(self, blocks: int) -> int:
        return int(blocks / self.blocks_per_request * self._max_model_len)

    def _blocks(self, tokens: int) -> int:
        return sum(
            leader.blocks_per_request(
                tokens=tokens, in_flight_tokens=self._in_flight_tokens, block_size=self._block_size
            )
            for leader in self._leaders
        )

    def _problem(self, ranges: Sequence[tuple[int, int]], budgets: Sequence[int]) -> str | None:
        """Say what vLLM would stop at, of several stages at the one that lacks most."""
        if lack := lack_of_memory(budgets, why="weights and activations exceed its budget"):
            return lack
        by_room = sorted(range(len(budgets)), key=lambda stage: self.units(*ranges[stage], budgets[stage]))
        for stage in by_room:
            (start, stop), budget = ranges[stage], budgets[stage]
            if not self.bytes_per_unit(start, stop):
                return (
                    f"stage {stage} has no layer with a KV cache, by whose size vLLM's planner divides; give "
                    f"it at least one"
                )
            if not self.admits(start, stop, budget):
                needed = self.bytes_per_unit(start, stop) * self.blocks_per_request
                return (
                    f"stage {stage} needs {needed / GIB:.2f} GiB of KV cache for one request of "
                    f"{self._max_model_len} tokens but has {budget / GIB:.2f} GiB; max_model_len can be at "
                    f"most {self.longest_context(ranges, budgets)}"
                )
        return None

    def longest_context(self, ranges: Sequence[tuple[int, int]], budgets: Sequence[int]) -> int:
        """Return the longest context of which every stage holds one request."""
        low, high = 0, self._max_model_len
        while low < high:
            middle = (low + high + 1) // 2
            needed = self._blocks(middle) + 1
            fits = all(
                self.units(start, stop, budget) >= needed
                for (start, stop), budget in zip(ranges, budgets, strict=True)
            )
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def _without_window(layer: KVLayer) -> KVLayer:
    """Return what is left of a layer without the hybrid manager, which state layers do without."""
    return layer if layer.kind == "state" else KVLayer(kind="full", page_bytes=layer.page_bytes)


def _prefix(num_layers: int, pages: Iterable[tuple[int, _Number]]) -> list[_Number]:
    """Return the bytes in the layers before each index, from ``(layer, bytes)`` of every page."""
    each: list[_Number] = [0] * num_layers
    for layer, page_bytes in pages:
        each[layer] += page_bytes
    return list(accumulate(each, initial=0))
