"""Entries to try the launcher with; the documentation uses them."""

from __future__ import annotations

from pgplan.launcher.entry import Worker


def greet(worker: Worker, *, name: str) -> str:
    """Return a greeting."""
    return f"hello {name} from rank {worker.rank} of {worker.world_size}"


def add_ranks(worker: Worker) -> int:
    """Return the sum of all ranks, gathered over the metadata plane."""
    return sum(worker.group.all_gather_obj(worker.rank))
