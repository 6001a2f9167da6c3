"""Check that a CUDA graph's replay gives what the pass gives without it.

The pass runs from some inputs, is captured with others, and is replayed from the first: what a graph had kept
of its capture instead of reading it again would show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgplan.verification.checking import TOLERANCES, Check, share_within
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
    within = share_within(work.stage.model)
    return pool, replay_error(eager, some_rows(work.out), within=within)


def some_rows(out: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Keep some rows of what a pass gave, beside the GPU, for ``replay_error``."""
    return [tensor[:: max(1, len(tensor) // _ROWS_KEPT)].cpu() for tensor in out]


def replay_error(eager: list[torch.Tensor], replayed: list[torch.Tensor], *, within: float) -> float:
    """Return the largest error that a graph's replay made beside the same pass without the graph.

    Args:
        eager: Rows of what the pass gave.
        replayed: The same rows of what the replay gave.
        within: The share of tokens that must lie within a tolerance; the errors of the others do not count.

    Returns:
        The error, relative as that of a check; infinite where no activation differs and a sampled token does.
    """
    import torch

    error, is_equal = 0.0, True
    for one, other in zip(eager, replayed, strict=True):
        if one.is_floating_point():
            there, here = one.double(), other.double()
            errors = (here - there).norm(dim=-1) / there.norm(dim=-1)
            ordered = errors.nan_to_num(torch.inf).sort().values
            error = max(error, float(ordered[round(within * len(ordered)) - 1]))
            is_equal &= torch.equal(one, other)
    sampled = [torch.equal(a, b) for a, b in zip(eager, replayed, strict=True) if not a.is_floating_point()]
    return float("inf") if is_equal and not all(sampled) else error


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
