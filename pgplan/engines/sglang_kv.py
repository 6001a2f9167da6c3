"""How SGLang sizes its pools (0.5.23: ``model_executor/model_runner.py``, ``server_args.py``).

Glossary
    cell    bytes that one token takes in all layers of a stage
    slot    bytes of recurrent state (Mamba, linear attention) of one request in all layers of a stage

A model with recurrent layers has two pools out of one budget, the one for state ``STATE_TO_KV`` times as
large as the one for keys and values. With the prefix cache on, which is the default, a running request
counts for three slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from pgplan.engines.base import KVCapacity, KVRule, StageMemory, lack_of_memory

# Defaults of ``mamba_full_memory_ratio`` and of the slots that a running request takes.
STATE_TO_KV = 0.9
SLOTS_PER_REQUEST = 3


class SGLangKVRule(KVRule):
    """Apply SGLang's rule: the fewest free bytes of all ranks first, then the fewest tokens.

    Every rank takes the smallest free memory of the whole group as its own, so on unequal GPUs a large one
    is clamped to the smallest, and the pool has the same number of bytes everywhere.

    Args:
        cells: Bytes per token of each layer.
        slots: Bytes of recurrent state per request of each layer; ``None``: no layer has any.
        fixed: Bytes of each layer that are set aside whatever the pool holds; ``None``: none.
        smallest_memory_bytes: What the smallest device has.
        memory_fraction: The static share of it.
        page_size: Tokens per page.
        max_model_len: The longest context.
    """

    coupled = True

    def __init__(
        self,
        cells: Sequence[float],
        *,
        slots: Sequence[int] | None = None,
        fixed: Sequence[int] | None = None,
        smallest_memory_bytes: int,
        memory_fraction: float,
        page_size: int,
        max_model_len: int,
    ) -> None:
        self._sums = list(accumulate(cells, initial=0.0))
        self._slot_sums = list(accumulate(slots or [0] * len(cells), initial=0))
        self._fixed_sums = list(accumulate(fixed or [0] * len(cells), initial=0))
        self._smallest_memory_bytes = smallest_memory_bytes
        self._memory_fraction = memory_fraction
        self._page_size = page_size
        self._max_model_len = max_model_len

    def bytes_per_unit(self, start: int, stop: int) -> float:
        """Return the pool bytes per token ("cell size") of the layers ``[start, stop)``.

        Beside recurrent state a token costs its share of that pool as well. Whole slots make the true
        count larger by what one or two slots would hold, which ``units`` knows.
        """
        cell = self._sums[stop] - self._sums[start]
        return cell * (1 + STATE_TO_KV) if self.sequence_bytes(start, stop) else cell

    def fixed_bytes(self, start: int, stop: int) -> int:
        """Return the bytes of rings that compressors keep for every request that may run."""
        return self._fixed_sums[stop] - self._fixed_sums[start]

    def sequence_bytes(self, start: int, stop: int) -> int:
        """Return the bytes of one slot of recurrent state."""
        return self._slot_sums[stop] - self._slot_sums[start]

    def slots(self, start: int, stop: int, budget_bytes: int) -> int:
        """Return the slots of the pool for recurrent state; one more is kept for padding."""
        slot, share = self.sequence_bytes(start, stop), STATE_TO_KV / (1 + STATE_TO_KV)
        return max(0, math.floor((budget_bytes * share - slot) / slot)) if slot else 0

    def state_bytes(self, start: int, stop: int, budget_bytes: int, *, requests: int) -> int:
        """Return the bytes of that pool, which is there however many requests run."""
        del requests
        return self.slots(start, stop, budget_bytes) * self.sequence_bytes(start, stop)

    def budget_bytes(self, memory: StageMemory) -> int:
        """Return what a stage alone would have.

        The share that is not static is taken of what the smallest device had before loading
        (``model_runner.py::profile_max_num_token``).
        """
        before = self._smallest_memory_bytes - memory.process_bytes
        free = memory.memory_bytes - memory.process_bytes - memory.weight_bytes - memory.cublas_bytes
        return math.floor(free - memory.fixed_bytes - before * (1.0 - self._memory_fraction))

    def units(self, start: int, stop: int, budget_bytes: int) -> int:
        """Return the tokens that fit, in whole pages."""
        cell = self._sums[stop] - self._sums[start]
        if cell == 0:
            return 1 << 62
        left = budget_bytes - self.state_bytes(start, stop, budget_bytes, requests=0)
        return max(0, int(left // cell)) // self._page_size * self._page_size

    def units_needed(self, *, requests: int, tokens_each: int) -> int:
        """Return the tokens for ``requests`` requests of ``tokens_each`` tokens, in whole pages."""
        return requests * -(-tokens_each // self._page_size) * self._page_size

    def admits(self, start: int, stop: int, budget_bytes: int) -> bool:
        """Tell whether one request of the longest context fits."""
        return self.units(start, stop, budget_bytes) >= self._max_model_len

    def capacity(self, ranges: Sequence[tuple[int, int]], memory: Sequence[StageMemory]) -> KVCapacity:
        """Return SGLang's ``max_total_num_tokens``."""
        alone = [self.budget_bytes(stage) for stage in memory]
        pool = min(alone)
        tokens = [self.units(start, stop, pool) for start, stop in ranges]
        fewest = min(tokens)
        held = [self.slots(*span, pool) for span in ranges if self.sequence_bytes(*span)]
        requests = min(held) // SLOTS_PER_REQUEST if held else None
        problem = lack_of_memory(alone, why="its weights exceed its static share")
        return KVCapacity(
            tokens=fewest,
            requests=fewest / self._max_model_len,
            budget_bytes=tuple(alone),
            used_bytes=tuple(
                int(fewest * (self._sums[stop] - self._sums[start]))
                + self.fixed_bytes(start, stop)
                + self.state_bytes(start, stop, pool, requests=0)
                for start, stop in ranges
            ),
            stage_tokens=tuple(tokens),
            bytes_per_token=tuple(round(self._sums[stop] - self._sums[start]) for start, stop in ranges),
            tightest=tokens.index(fewest),
            problem=problem or self._shortage(fewest, held),
            state_requests=requests,
        )

    def _shortage(self, tokens: int, slots: Sequence[int]) -> str | None:
        """Say for what the pools are too small: tokens of one request, or slots for its recurrent state."""
        if tokens < self._max_model_len:
            return (
                f"the KV cache holds {tokens:,} tokens, fewer than one request of max_model_len "
                f"{self._max_model_len:,}; SGLang would start and refuse longer requests"
            )
        if slots and min(slots) < SLOTS_PER_REQUEST:
            return (
                f"the pool for recurrent state holds {min(slots)} slots, fewer than the {SLOTS_PER_REQUEST} "
                f"of one request; give the stages more memory"
            )
        return None
