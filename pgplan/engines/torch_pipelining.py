"""torch.distributed.pipelining: the ``split_spec`` of its tracer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter
from pgplan.errors import EngineError

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class TorchPipelining(Exporter):
    """Write the ``split_spec`` for ``torch.distributed.pipelining.pipeline``.

    Args:
        version: Of torch.
        layers: What the model calls its list of layers.
    """

    name = "torch"
    title = "torch.distributed.pipelining"
    default_version = "2.13"
    writes = "Python, a `split_spec`"
    syntax = "a split_spec with SplitPoint.BEGINNING or END per cut"
    checked = "2.13.0: a model traced and cut by it"

    def __init__(self, version: str | None = None, *, layers: str = "model.layers") -> None:
        super().__init__(version)
        self.layers = layers

    def export(self, plan: Plan) -> str:
        """Return Python that traces ``model`` and cuts it."""
        cuts = list(accumulate(plan.split))[:-1]
        spec = [f'    "{self.layers}.{cut}": SplitPoint.BEGINNING,' for cut in cuts]
        lines = [
            self.header(plan),
            "from torch.distributed.pipelining import SplitPoint, pipeline",
            "",
            *(["split_spec = {", *spec, "}"] if spec else ["split_spec = {}"]),
            "# microbatch: the example arguments of one microbatch, as a tuple",
            "pipe = pipeline(model, mb_args=microbatch, split_spec=split_spec)",
        ]
        return "\n".join(lines) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the cuts: BEGINNING is before a layer, END after it."""
        del pp_size
        cuts = sorted(
            int(layer) + (where == "END")
            for layer, where in re.findall(r"\.(\d+)[\"']\s*:\s*(?:\w+\.)*SplitPoint\.(BEGINNING|END)", text)
        )
        if not cuts and "split_spec" not in text:
            return None
        if cuts and not 0 < cuts[0] <= cuts[-1] < num_layers:
            raise EngineError(
                f"a split_spec cuts between layers 0 and {num_layers - 1}, but the text cuts before layers "
                f"{', '.join(map(str, cuts))}; take the outer cuts out"
            )
        return [stop - start for start, stop in pairwise([0, *cuts, num_layers])]
