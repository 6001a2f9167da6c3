"""Megatron-Bridge (and NeMo, whose recipes have the same fields): the layout as a model provider takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgplan.engines.megatron import MegatronLM

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class MegatronBridge(MegatronLM):
    """Write assignments to ``cfg.model`` of a recipe; options as for Megatron-LM."""

    name = "megatron-bridge"
    title = "Megatron-Bridge (megatron-core)"
    writes = "Python, fields of `cfg.model`"
    syntax = "pipeline_model_parallel_layout or the first and last counts"

    def export(self, plan: Plan) -> str:
        """Return the assignments that set layers, ranks and layout."""
        fields: dict[str, object] = {
            "num_layers": plan.model.num_layers,
            "tensor_model_parallel_size": plan.tp_size,
            "pipeline_model_parallel_size": len(plan.split),
        }
        if self.mtp_layers:
            fields["mtp_num_layers"] = self.mtp_layers
        if self.counts:
            first, last = self.first_and_last(plan.split)
            fields |= {
                "num_layers_in_first_pipeline_stage": first,
                "num_layers_in_last_pipeline_stage": last,
            }
        else:
            if self.virtual_stages > 1:
                fields["virtual_pipeline_model_parallel_size"] = self.virtual_stages
            fields["pipeline_model_parallel_layout"] = f'"{self.layout(plan.split)}"'
        lines = [f"cfg.model.{name} = {value}" for name, value in fields.items()]
        return "\n".join([self.header(plan), *lines]) + "\n"
