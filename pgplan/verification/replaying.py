"""Check that a CUDA graph's replay gives what the pass gives without it.

The pass runs from some inputs, is captured with others, and is replayed from the first: what a graph had kept
of its capture instead of reading it again would show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgplan.verification.checking import TOLERANCES, Check
from pgplan.verification.memory import DeviceMemory
from pgplan.verification.passes import Pass
from pgplan.verification.place import Place

if TYPE_CHECKING:
    import torch

# Rows of a pass that are compared with those of its replay.
_ROWS_KEPT = 64
_COMPARED, _CAPTURED = 1, 2


def capture_checked(work: Pass, memory: DeviceMemory, *, pool: Any = None) -> tuple[Any, float]:
    """Capture a pass in a graph.

    Returns:
        The graph's memory pool, and how far its replay is from the pass without it (``replay_error``).
    """
    work.draw(_COMPARED)
    work.run()
    eager = some_rows(work.out)
    # A chunk's activations must not lie beside the graph's own: no engine has both.
    work.out = ()
    memory.release()
    work.draw(_CAPTURED)
    pool = work.capture(pool)
    work.draw(_COMPARED)
    work.run()
    return pool, replay_error(eager, some_rows(work.out))


def some_rows(out: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Keep some rows of what a pass gave, beside the GPU, for ``replay_error``."""
    return [tensor[:: max(1, len(tensor) // _ROWS_KEPT)].cpu() for tensor in out]


def replay_error(eager: list[torch.Tensor], replayed: list[torch.Tensor]) -> float:
    """Return the largest error of a token that a graph's replay gave, beside the same pass without the graph.

    Where no activation differs by a bit, no sampled token may, either; else it is infinite.
    """
    import torch

    error = 0.0
    for one, other in zip(eager, replayed, strict=True):
        if one.is_floating_point():
            there, here = one.double(), other.double()
            errors = (here - there).norm(dim=-1) / there.norm(dim=-1)
            error = max(error, float(errors.nan_to_num(torch.inf).max()))
    sampled = [torch.equal(a, b) for a, b in zip(eager, replayed, strict=True) if not a.is_floating_point()]
    return error if error or all(sampled) else float("inf")


def check_replays(place: Place, errors: list[float], dtype: str) -> Check | None:
    """Sum the ranks' replays up; all ranks call it, and the first gets the check."""
    error = place.most(max(errors))
    if place.worker.rank > 0:
        return None
    return Check(
        name="graphs replay what is computed without them",
        passed=error <= TOLERANCES[dtype],
        error=error,
        tolerance=TOLERANCES[dtype],
        detail="a chunk and a decode step on every rank, from other inputs than they were captured with",
    )
