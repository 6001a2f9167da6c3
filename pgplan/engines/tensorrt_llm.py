"""TensorRT-LLM: ``pp_partition`` of the LLM API (PR #9003), as options file of ``trtllm-serve``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter, find_setting, listed
from pgplan.engines.launching import (
    check_nodes,
    device_remarks,
    filling_limits,
    kv_dtype_word,
    model_remarks,
    model_word,
)
from pgplan.split import extras_first_stages

if TYPE_CHECKING:
    from pgplan.planning.record import Plan

# ``KvCacheConfig.dtype``; what is not said follows the checkpoint.
_KV_DTYPES = {"fp8": "fp8", "fp8_e4m3": "fp8"}


class TensorRTLLM(Exporter):
    """Write the YAML that ``trtllm-serve`` takes as ``--extra_llm_api_options``.

    Args:
        version: Its release.
        nodes: Machines that the launch line spreads the stages over, under Slurm.
    """

    name = "tensorrt-llm"
    title = "TensorRT-LLM"
    default_version = "1.2"
    writes = "YAML for `trtllm-serve`"
    syntax = "pp_partition: [a, b, c]"
    checked = "its default as recorded; its stated rules; PyYAML"

    def __init__(self, version: str | None = None, *, nodes: int = 1) -> None:
        super().__init__(version)
        self.nodes = nodes

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...]:
        """Give extra layers to the first ranks, one each."""
        return extras_first_stages(num_layers, pp_size)

    def export(self, plan: Plan) -> str:
        """Return the options file, with the line that uses it.

        Its share of memory is of what is free once weights are loaded, not of the device, so it is left at
        its default.
        """
        check_nodes(plan, self.nodes, title=self.title)
        limits = filling_limits(plan, plan.settings)
        kv_dtype = kv_dtype_word(plan.model, plan.workload, known=_KV_DTYPES, title=self.title)
        fields: dict[str, object] = {
            "backend": "pytorch",
            "tensor_parallel_size": plan.tp_size,
            "pipeline_parallel_size": len(plan.split),
            "pp_partition": list(plan.split),
            "max_seq_len": plan.settings.max_model_len,
            "max_num_tokens": limits.max_num_batched_tokens,
            "max_batch_size": limits.max_num_seqs,
        }
        if kv_dtype:
            fields["kv_cache_config"] = f"{{dtype: {kv_dtype}}}"
        lines = [
            self.header(plan),
            f"# {self._launch(plan)}",
            *model_remarks(plan),
            *device_remarks(plan),
            *filter(None, [limits.remark]),
            *(f"{name}: {value}" for name, value in fields.items()),
        ]
        return "\n".join(lines) + "\n"

    def _launch(self, plan: Plan) -> str:
        serve = (
            f"trtllm-serve {shlex.quote(model_word(plan))} --tp_size {plan.tp_size} "
            f"--pp_size {len(plan.split)} --extra_llm_api_options THIS_FILE"
        )
        if self.nodes == 1:
            return serve
        # One task per rank, all in one MPI world; the launcher keeps the API to the first of them.
        tasks = len(plan.split) * plan.tp_size
        return (
            f"srun --nodes={self.nodes} --ntasks={tasks} --ntasks-per-node={tasks // self.nodes} --mpi=pmix "
            f"trtllm-llmapi-launch {serve}"
        )

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read ``pp_partition``; without it the default holds."""
        given = find_setting(text, "pp_partition")
        if given is not None and given not in ("None", "null"):
            return listed(given)
        if find_setting(text, "pipeline_parallel_size", "pp_size") != str(pp_size):
            return None
        return self.default_split(num_layers, pp_size)
