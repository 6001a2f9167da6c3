"""ColossalAI: the layers per stage of its hybrid plugin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter, find_setting, listed

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class ColossalAI(Exporter):
    """Write a ``HybridParallelPlugin``."""

    name = "colossalai"
    title = "ColossalAI"
    default_version = "0.5"
    writes = "Python, a `HybridParallelPlugin`"
    syntax = "num_layers_per_stage=[...]"
    checked = "0.5.0: its distribute_layers, run; its parameters"

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...]:
        """Give the extra layers to the stages in the middle."""
        base, extras = divmod(num_layers, pp_size)
        first = pp_size // 2 - extras // 2
        return tuple(base + (first <= stage < first + extras) for stage in range(pp_size))

    def export(self, plan: Plan) -> str:
        """Return the construction of the plugin."""
        lines = [
            self.header(plan),
            "from colossalai.booster.plugin import HybridParallelPlugin",
            "",
            "plugin = HybridParallelPlugin(",
            f"    tp_size={plan.tp_size},",
            f"    pp_size={len(plan.split)},",
            f"    num_layers_per_stage={list(plan.split)},",
            "    microbatch_size=1,",
            ")",
        ]
        return "\n".join(lines) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the list; without it the plugin takes its default."""
        given = find_setting(text, "num_layers_per_stage")
        if given is not None and given != "None":
            return listed(given)
        if find_setting(text, "pp_size") != str(pp_size):
            return None
        return self.default_split(num_layers, pp_size)
