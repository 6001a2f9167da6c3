"""Galvatron: the JSON file of a hybrid strategy, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter, find_setting, listed
from pgplan.split import format_split, remainder_on_last

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class Galvatron(Exporter):
    """Write a ``galvatron_config`` file; JSON leaves no room for a remark, so it names no version."""

    name = "galvatron"
    title = "Galvatron"
    default_version = "2.4"
    writes = "a JSON strategy"
    syntax = '"pp_division": "a,b,c"'
    checked = "2.4.0: its reader of strategies, run"

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...]:
        """Leave the remainder to the last stage."""
        return remainder_on_last(num_layers, pp_size)

    def export(self, plan: Plan) -> str:
        """Return the file: one strategy for every layer, as many microbatches as stages."""
        stages = len(plan.split)

        def each(value: int) -> str:
            return ",".join([str(value)] * plan.model.num_layers)

        config = {
            "pp_deg": stages,
            "pp_division": format_split(plan.split),
            "pipeline_type": "pipedream_flush",
            "chunks": stages,
            "global_bsz": stages,
            "tp_sizes_enc": each(plan.tp_size),
            "tp_consecutive_flags": each(1),
            "dp_types_enc": each(0),
            "default_dp_type": "zero2",
            "use_sp": each(0),
            "checkpoint": each(0),
            "vtp": plan.tp_size,
            "vsp": 0,
        }
        return json.dumps(config, indent=4) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read ``pp_division``; without it the default holds."""
        given = find_setting(text, "pp_division")
        if given is not None:
            return listed(given)
        if find_setting(text, "pp_deg") != str(pp_size):
            return None
        return self.default_split(num_layers, pp_size)
