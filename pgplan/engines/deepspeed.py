"""DeepSpeed: the two ways to give ``PipelineModule`` a split, which has no option for one (0.19).

- ``form="parts"``: a subclass whose ``_partition_layers`` sets the boundaries.
- ``form="types"``: the stock method ``type:REGEX``, which balances the count of matching classes: with the
  class of each stage's first item renamed, its ties fall where the plan cuts (``runtime/pipe/module.py``,
  ``runtime/utils.py::partition_balanced``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pgplan.engines.exporter import find_setting, listed, whole_numbers
from pgplan.engines.sequential import SequentialExporter

if TYPE_CHECKING:
    from pgplan.planning.record import Plan

_PARTS = '''\
from deepspeed.pipe import PipelineModule

PARTS = {parts}


class PlannedPipeline(PipelineModule):
    """A PipelineModule that is cut where the plan says; give it num_stages={stages}."""

    def _partition_layers(self, method="uniform"):
        if len(self._layer_specs) != PARTS[-1] or self.num_stages != len(PARTS) - 1:
            raise ValueError(f"planned for {{PARTS[-1]}} items over {{len(PARTS) - 1}} stages")
        self.parts = list(PARTS)
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])
'''
_TYPES = '''\
from deepspeed.pipe import PipelineModule

STAGE_STARTS = {starts}


def mark_stages(specs):
    """Rename the class of the first LayerSpec of each stage, for 'type:' to find."""
    for start in STAGE_STARTS:
        kind = specs[start].typename
        specs[start].typename = type("PPStageStart" + kind.__name__, (kind,), {{}})
    return specs


# specs: the LayerSpecs of the model, {items} of them
model = PipelineModule(mark_stages(specs), num_stages={stages}, partition_method="type:PPStageStart")
'''


class DeepSpeed(SequentialExporter):
    """Write Python for a pipeline of LayerSpecs.

    Args:
        version: Of DeepSpeed.
        form: ``parts``: a subclass with the boundaries; ``types``: the stock method ``type:``.
        items_before: LayerSpecs ahead of the first layer.
        items_after: LayerSpecs after the last layer.
    """

    name = "deepspeed"
    title = "DeepSpeed"
    default_version = "0.19"
    writes = "Python, a `PipelineModule`"
    syntax = "a list PARTS of boundaries or STAGE_STARTS"
    checked = "0.19.8: its partitioning of a PipelineModule, run"

    def __init__(
        self,
        version: str | None = None,
        *,
        form: Literal["parts", "types"] = "parts",
        items_before: int = 1,
        items_after: int = 2,
    ) -> None:
        super().__init__(version, items_before=items_before, items_after=items_after)
        self.form = form

    def export(self, plan: Plan) -> str:
        """Return a module that cuts the pipeline where the plan does."""
        bounds, stages = self.bounds(plan.split), len(plan.split)
        if self.form == "parts":
            code = _PARTS.format(parts=bounds, stages=stages)
        else:
            code = _TYPES.format(starts=bounds[:-1], items=bounds[-1], stages=stages)
        return f"{self.header(plan)}\n{self.items_remark}\n{code}"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the boundaries, or the first item of each stage."""
        parts = find_setting(text, "PARTS")
        starts = find_setting(text, "STAGE_STARTS")
        if parts is None and starts is None:
            return None
        bounds = whole_numbers(listed(parts or starts or ""), what="a list of boundaries")
        if parts is None:
            bounds.append(self.items_before + num_layers + self.items_after)
        return self.layers([stop - start for start, stop in pairwise(bounds)])
