"""Run the ranks of a group in threads or processes, for the tests of pgplan.distributed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pgplan.distributed import StatelessProcessGroup, socket_mesh


def in_threads(work: Callable[[int], Any], ranks: int) -> list[Any]:
    """Return what ``work(rank)`` returned or raised in each of ``ranks`` threads."""
    outcomes: list[Any] = [None] * ranks

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(rank)
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def socket_groups(ranks: int, **options: Any) -> list[StatelessProcessGroup]:
    """Return one group per rank over socket pairs."""
    return [
        StatelessProcessGroup.from_sockets(sockets, rank=rank, world_size=ranks, **options)
        for rank, sockets in enumerate(socket_mesh(ranks))
    ]
