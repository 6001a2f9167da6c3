"""mlx-lm: ``pipeline(group, split=...)``, counted by rank, where rank 0 owns the last layers (0.32.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter, find_setting, listed
from pgplan.split import extras_last_stages

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class MLX(Exporter):
    """Write the call that cuts an mlx-lm model; the plan's stages are reversed for it."""

    name = "mlx"
    title = "mlx-lm"
    default_version = "0.32.2"
    writes = "Python for `mlx.launch`"
    syntax = "model.pipeline(group, split=[...])"
    checked = "0.32.2: its PipelineMixin, run"

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...]:
        """Give extra layers to the low ranks, which are the last stages."""
        return extras_last_stages(num_layers, pp_size)

    def export(self, plan: Plan) -> str:
        """Return the call, for code that loads a model as ``mlx_lm.utils.sharded_load`` does."""
        self.refuse_tp(plan, mend="mlx-lm shards over a group of its own: plan with tp_size 1")
        lines = [
            self.header(plan),
            f"# One process per stage: mlx.launch --hostfile HOSTS.json -n {len(plan.split)} THIS_FILE",
            "# By rank: rank 0 owns the last layers, so this is the plan's split from the back.",
            "import mlx.core as mx",
            "",
            "group = mx.distributed.init()",
            f"model.model.pipeline(group, split={list(reversed(plan.split))})",
        ]
        return "\n".join(lines) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the counts by rank and turn them around."""
        given = find_setting(text, "split")
        if given is not None:
            return listed(given)[::-1]
        return self.default_split(num_layers, pp_size) if ".pipeline(group)" in text else None
