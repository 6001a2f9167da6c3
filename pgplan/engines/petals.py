"""Petals: one server per stage, each with its range of blocks (2.2)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter
from pgplan.engines.launching import model_remarks, model_word
from pgplan.errors import EngineError

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class Petals(Exporter):
    """Write one ``run_server`` line per stage."""

    name = "petals"
    title = "Petals"
    default_version = "2.2"
    writes = "`run_server` per stage"
    syntax = "--block_indices START:END of each server"
    checked = "2.2.0: its reading of --block_indices, run; its flags"

    def export(self, plan: Plan) -> str:
        """Return the line of each server; block ranges exclude their end."""
        lines = [
            self.header(plan),
            *model_remarks(plan),
            "# One line per stage. The first begins a swarm and prints its address, PEER of the others.",
        ]
        for start, stop in pairwise(accumulate(plan.split, initial=0)):
            words = f"python -m petals.cli.run_server {shlex.quote(model_word(plan))}"
            if plan.tp_size > 1:
                devices = " ".join(f"cuda:{rank}" for rank in range(plan.tp_size))
                words += f" --tensor_parallel_devices {devices}"
            swarm = "--initial_peers $PEER" if start else "--new_swarm"
            lines.append(f"{words} --block_indices {start}:{stop} {swarm}")
        return "\n".join(lines) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the ranges of all servers, which must cover the model once."""
        del pp_size
        ranges = sorted(
            (int(start), int(stop))
            for start, stop in re.findall(r"--block_indices[ =]+[\"']?\s*(\d+)\s*:\s*(\d+)", text)
        )
        if not ranges:
            return None
        ends = [0, *(stop for _, stop in ranges)]
        if [start for start, _ in ranges] != ends[:-1] or ends[-1] != num_layers:
            raise EngineError(
                f"a split covers blocks 0 to {num_layers} once, but the servers hold "
                f"{', '.join(f'{start}:{stop}' for start, stop in ranges)}; close the gap or the overlap"
            )
        return [stop - start for start, stop in ranges]
