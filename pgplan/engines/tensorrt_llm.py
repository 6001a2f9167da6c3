"""TensorRT-LLM: ``pp_partition`` of the LLM API (PR #9003), as options file of ``trtllm-serve``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter, find_setting, listed
from pgplan.engines.launching import filling_limits
from pgplan.split import extras_first_stages

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class TensorRTLLM(Exporter):
    """Write the YAML that ``trtllm-serve`` takes as ``--extra_llm_api_options``."""

    name = "tensorrt-llm"
    title = "TensorRT-LLM"
    default_version = "1.2"
    syntax = "pp_partition: [a, b, c]"
    checked = "its default as recorded; its stated rules; PyYAML"

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...]:
        """Give extra layers to the first ranks, one each."""
        return extras_first_stages(num_layers, pp_size)

    def export(self, plan: Plan) -> str:
        """Return the options file, with the line that uses it.

        Its share of memory is of what is free once weights are loaded, not of the device, so it is left at
        its default.
        """
        limits = filling_limits(plan, plan.settings)
        source = shlex.quote(plan.model.source)
        fields: dict[str, object] = {
            "backend": "pytorch",
            "tensor_parallel_size": plan.tp_size,
            "pipeline_parallel_size": len(plan.split),
            "pp_partition": list(plan.split),
            "max_seq_len": plan.settings.max_model_len,
            "max_num_tokens": limits.max_num_batched_tokens,
            "max_batch_size": limits.max_num_seqs,
        }
        lines = [
            self.header(plan),
            f"# trtllm-serve {source} --tp_size {plan.tp_size} --pp_size {len(plan.split)} "
            f"--extra_llm_api_options THIS_FILE",
            *filter(None, [limits.remark]),
            *(f"{name}: {value}" for name, value in fields.items()),
        ]
        return "\n".join(lines) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read ``pp_partition``; without it the default holds."""
        given = find_setting(text, "pp_partition")
        if given is not None and given not in ("None", "null"):
            return listed(given)
        if find_setting(text, "pipeline_parallel_size", "pp_size") != str(pp_size):
            return None
        return self.default_split(num_layers, pp_size)
