"""torchgpipe: the ``balance`` of ``GPipe``, one count of modules per device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgplan.engines.exporter import find_setting, listed, whole_numbers
from pgplan.engines.sequential import SequentialExporter

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class TorchGPipe(SequentialExporter):
    """Write the construction of a ``GPipe``; options as for every list of items."""

    name = "torchgpipe"
    title = "torchgpipe"
    default_version = "0.0.7"
    writes = "Python, a `GPipe`"
    syntax = "balance=[...]"
    checked = "0.0.7: a GPipe on CPUs"
    module, wrapper = "torchgpipe", "GPipe"

    def export(self, plan: Plan) -> str:
        """Return the construction, with as many chunks as fill the pipeline."""
        self.refuse_tp(plan, mend="plan with tp_size 1")
        stages = len(plan.split)
        lines = [
            self.header(plan),
            self.items_remark,
            "# model: an nn.Sequential without shared parameters",
            f"from {self.module} import {self.wrapper}",
            "",
            f"model = {self.wrapper}(",
            "    model,",
            f"    balance={self.balance(plan.split)},",
            f"    devices={list(range(stages))},",
            f"    chunks={stages},  # or more: fewer leave stages idle",
            ")",
        ]
        return "\n".join(lines) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read ``balance`` and take the items that are no layers off."""
        del num_layers, pp_size
        balance = find_setting(text, "balance")
        return None if balance is None else self.layers(whole_numbers(listed(balance), what="balance"))
