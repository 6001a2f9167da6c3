"""How fast a GPU reads its memory: it tells one GPU of a kind from the next, and sets the pace of decode."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from pgplan.verification.passes import times_s

if TYPE_CHECKING:
    import torch

_COLUMNS, _MOST_BYTES = 8192, 2 << 30
# A GPU keeps some tens of MB beside its memory; what is read has to be many times that.
_LEAST_BYTES = 1 << 30
# By then the clock is back up that the power limit held down.
_REST_S = 0.3
_REPEATS = 20


def read_rate(memory: torch.Tensor) -> float | None:
    """Return at how many bytes per second a product of one row reads its weights, as decode reads them.

    H200s differ in it by some 3 %.

    Args:
        memory: What is read, up to 2 GiB of it, whatever it holds; it lies on the device in question.

    Returns:
        ``None`` on a CPU, and where there is too little to read.
    """
    import torch

    rows = min(memory.nbytes, _MOST_BYTES) // (2 * _COLUMNS)
    size_bytes = 2 * rows * _COLUMNS
    if memory.device.type != "cuda" or size_bytes < _LEAST_BYTES:
        return None
    raw = memory.view(-1).view(torch.uint8)[:size_bytes]
    weights = raw.view(torch.bfloat16).view(rows, _COLUMNS)
    x = torch.ones((1, _COLUMNS), dtype=torch.bfloat16, device=memory.device)
    torch.cuda.synchronize(memory.device)
    time.sleep(_REST_S)

    def read() -> None:
        torch.nn.functional.linear(x, weights)

    times_s(read, memory.device, repeats=3)
    return size_bytes / statistics.median(times_s(read, memory.device, repeats=_REPEATS))
