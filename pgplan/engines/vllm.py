"""vLLM: read in 0.33.0, with the older default split of releases before 0.8."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from pgplan.engines.base import (
    Engine,
    EngineSettings,
    KVRule,
    Placement,
    chunked_microbatches,
    context_limit,
)
from pgplan.engines.cache_formats import check_cache_dtype, is_compressed
from pgplan.engines.launching import (
    check_nodes,
    command,
    device_remarks,
    filling_limits,
    flag_words,
    kv_dtype_word,
    model_remarks,
    model_word,
)
from pgplan.engines.vllm_caches import attention_caches, block_size_for
from pgplan.engines.vllm_kv import VLLMKVRule
from pgplan.engines.vllm_log import VLLM_LOG
from pgplan.engines.vllm_placement import NO_PIPELINE, vllm_placement
from pgplan.engines.vllm_state import block_beside_state, states_per_request, with_state
from pgplan.engines.vllm_weights import bytes_beside_weights
from pgplan.errors import EngineError
from pgplan.hardware import GPU, Cluster
from pgplan.model.spec import LayerSpec, ModelSpec
from pgplan.split import extras_before_last, format_split, remainder_on_last
from pgplan.workload import Workload

if TYPE_CHECKING:
    from pgplan.planning.record import Plan

GIB = 1 << 30

# What vLLM calls the dtypes of a KV cache (``config/cache.py::CacheDType``).
_KV_DTYPES = {name: name for name in ("float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2")}

# Between these releases vLLM takes a model runner by the architecture, by this list in 0.24.0
# (``config/vllm.py``); 0.33.0 takes the newer one for all.
_BY_ARCHITECTURE, _NEWER_FOR_ALL = (0, 24), (0, 33)
_ON_NEWER_RUNNER = frozenset(
    f"{family}ForCausalLM" for family in ("DeepseekV2", "GraniteMoe", "Llama", "Mistral", "Qwen2Moe", "Qwen3")
)

# Ray hands the variable on to its workers.
_ON_RAY = """\
# On the head node first:  ray start --head --port 6379
# on each other node then: ray start --address $HEAD:6379
# and this on the head node:"""
_ON_EVERY_NODE = "# On every node; HEAD is the address of node 0."


class VLLM(Engine):
    """vLLM's rules (https://github.com/vllm-project/vllm, v1 engine).

    Args:
        version: Its release.
        nodes: Machines that the launch line spreads the stages over.
        ray: Have Ray join the machines; off: start vLLM on each machine, without Ray.
    """

    name = "vllm"
    title = "vLLM"
    default_version = "0.33"
    oldest_version = "0.6.6"
    writes = "the variable and `vllm serve`"
    syntax = "VLLM_PP_LAYER_PARTITION=a,b,c"
    checked = "0.33.0: its get_pp_indices, run; its flags and log messages; 0.24.0: what it printed on H200s"
    override_variable = "VLLM_PP_LAYER_PARTITION"
    stage_flags = ("pipeline-parallel-size", "pp")
    log_format = VLLM_LOG
    # Three decode runs of Qwen3-8B over four stages, five of three other models: benchmarks/golden_vllm.py.
    host_step_s = 3.74e-3
    host_basis = "fitted on Qwen3-8B in 0.24 on H200s, other models within 9.4 %"

    def __init__(self, version: str | None = None, *, nodes: int = 1, ray: bool = True) -> None:
        super().__init__(version)
        self.nodes, self.ray = nodes, ray

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...]:
        """Spread extra layers just before the last stage; before 0.8 (PR #13839) all on the last."""
        rule = remainder_on_last if self.release < (0, 8) else extras_before_last
        return rule(num_layers, pp_size)

    def placement(self, model: ModelSpec, *, pp_size: int) -> Placement:
        """Look the architecture up in the scan of vLLM's model files."""
        del pp_size
        return vllm_placement(model)

    def check(self, model: ModelSpec, cluster: Cluster, workload: Workload) -> None:
        """Refuse models without a pipeline, and dtypes that the devices or the KV cache lack."""
        kv_dtype_word(model, workload, known=_KV_DTYPES, title=self.title)
        check_cache_dtype(model, workload)
        if cluster.pp_size > 1 and model.architecture in NO_PIPELINE:
            raise EngineError(
                f"vLLM does not run {model.architecture} over a pipeline, but pp_size is {cluster.pp_size}; "
                f"use pp_size 1"
            )
        batched_tokens, sequences = workload.max_num_batched_tokens, workload.max_num_seqs
        if batched_tokens and sequences and batched_tokens < sequences:
            raise EngineError(
                f"vLLM wants max_num_batched_tokens to be at least max_num_seqs, and they are "
                f"{batched_tokens:,} and {sequences:,}; give fewer sequences or more tokens"
            )
        for gpu in set(cluster.gpus):
            if model.dtype == "bfloat16" and not gpu.bf16:
                raise EngineError(
                    f"dtype bfloat16 needs compute capability 8.0, which {gpu.name} lacks; give dtype float16"
                )

    def settings(self, model: ModelSpec, cluster: Cluster, workload: Workload) -> EngineSettings:
        """Fill in the defaults of the API server, which depend on the device's memory."""
        batched_tokens, sequences = _limits(cluster.gpus[0], self.release)
        batched_tokens = max(workload.max_num_batched_tokens or batched_tokens, workload.max_num_seqs or 0)
        utilization = 0.92 if self.release >= (0, 20) else 0.9
        max_model_len = context_limit(model, workload)
        element_bytes = workload.kv_element_bytes(model.dtype)
        return EngineSettings(
            memory_utilization=workload.memory_utilization or utilization,
            max_model_len=max_model_len,
            max_num_batched_tokens=batched_tokens,
            # It refuses to start with more of these than tokens in a step.
            max_num_seqs=workload.max_num_seqs or min(sequences, batched_tokens),
            block_size=block_beside_state(
                model,
                alignment=block_size_for(model),
                tp_size=cluster.tp_size,
                element_bytes=element_bytes,
            ),
            kv_element_bytes=1 if is_compressed(model) else element_bytes,
            draft_tokens=workload.draft_tokens,
        )

    def kv_rule(self, model: ModelSpec, settings: EngineSettings, cluster: Cluster) -> KVRule:
        """Apply the grouping and the minimum over stages; see ``vllm_kv``."""
        attending = [
            attention_caches(
                kind.attention,
                block_size=settings.block_size,
                tp_size=cluster.tp_size,
                element_bytes=settings.kv_element_bytes,
            )
            if kind.attention
            else ()
            for kind in model.kinds
        ]
        kinds = [
            with_state(
                attention,
                kind,
                page_bytes=max((cache.page_bytes for caches in attending for cache in caches), default=0),
                tp_size=cluster.tp_size,
                dtype=model.dtype,
                states=states_per_request(self.release),
            )
            for attention, kind in zip(attending, model.kinds, strict=True)
        ]
        return VLLMKVRule(
            [kinds[index] for index in model.pattern],
            block_size=settings.block_size,
            max_model_len=settings.max_model_len,
            # Asynchronous scheduling keeps one batch more than there are stages.
            in_flight_tokens=(cluster.pp_size + 1) * settings.max_num_batched_tokens,
            memory_utilization=settings.memory_utilization,
            packed=is_compressed(model),
            drafts=[
                cache
                for layer in model.drafts
                if layer.attention and settings.draft_tokens
                for cache in attention_caches(
                    layer.attention,
                    block_size=settings.block_size,
                    tp_size=cluster.tp_size,
                    element_bytes=settings.kv_element_bytes,
                )
            ],
        )

    def steps_at_once(self, model: ModelSpec, *, pp_size: int) -> int:
        """Fill the pipeline, but for the older model runner, which most architectures have from 0.24 to 0.32.

        0.24.0 and 0.33.0 were read; what lies between is taken for 0.24. On the older runner every stage
        receives what the last one sampled before it begins its next step
        (``gpu_model_runner.py::sample_tokens``), and the scheduler keeps no microbatches apart.
        """
        chosen = _BY_ARCHITECTURE <= self.release < _NEWER_FOR_ALL
        return 1 if chosen and model.architecture not in _ON_NEWER_RUNNER else pp_size

    def microbatches(self, workload: Workload, settings: EngineSettings, *, pp_size: int) -> tuple[int, int]:
        """Keep up to ``pp_size`` microbatches in flight; ``max_num_seqs`` bounds their sum."""
        return chunked_microbatches(workload, settings, pp_size=pp_size, limit=settings.max_num_seqs)

    def derived_bytes(self, layer: LayerSpec, *, tp_size: int, element_bytes: int) -> int:
        """Return what vLLM keeps beside the weights of a layer; see ``vllm_weights``."""
        return bytes_beside_weights(layer, tp_size=tp_size, element_bytes=element_bytes)

    def notes(self, model: ModelSpec, *, pp_size: int) -> tuple[str, ...]:
        """Say so where this architecture departs from the textbook placement, and what its state takes."""
        placement, notes = vllm_placement(model), [*self.version_notes()]
        if states_per_request(self.release) > 1 and any(kind.state for kind in model.kinds):
            notes.append(
                "with prefix caching, which is on by default, vLLM keeps two recurrent states per request; "
                "--no-enable-prefix-caching leaves one"
            )
        if self.steps_at_once(model, pp_size=pp_size) < pp_size:
            notes.append(
                f"vLLM {self.version} runs {model.architecture} on its older model runner, whose stages wait "
                f"for each other: one step is in the pipeline at a time"
            )
        if pp_size > 1 and placement.embedding == "every":
            both = placement.head == "every" and not model.tied
            what = "embedding and output head" if both else "embedding"
            notes.append(
                f"vLLM builds the {what} of {model.architecture} on every stage, not only at the ends"
            )
        return tuple(notes)

    def export(self, plan: Plan) -> str:
        """Return the override variable and the launch line with every flag that the plan implies."""
        check_nodes(plan, self.nodes, title=self.title)
        if self.nodes > 1 and not self.ray and self.release < (0, 11, 1):
            raise EngineError(
                f"vLLM starts over several machines without Ray from 0.11.1 on, but the version is "
                f"{self.version}; leave Ray on"
            )
        settings = self.settings_of(plan)
        limits = filling_limits(plan, settings)
        flags: dict[str, object] = {
            "pipeline-parallel-size": len(plan.split),
            "tensor-parallel-size": plan.tp_size,
            "dtype": plan.model.dtype,
            "gpu-memory-utilization": settings.memory_utilization,
            "max-model-len": settings.max_model_len,
            "max-num-batched-tokens": limits.max_num_batched_tokens,
            "max-num-seqs": limits.max_num_seqs,
        }
        kv_dtype = kv_dtype_word(plan.model, plan.workload, known=_KV_DTYPES, title=self.title)
        if kv_dtype:
            flags["kv-cache-dtype"] = kv_dtype
        if is_compressed(plan.model):
            flags["kv-cache-dtype"] = "fp8"
        if settings.draft_tokens:
            speculation = {"method": "mtp", "num_speculative_tokens": settings.draft_tokens}
            flags["speculative-config"] = shlex.quote(json.dumps(speculation))
        remarks = [*model_remarks(plan), *device_remarks(plan), *filter(None, [limits.remark])]
        lines = [self.header(plan), *remarks]
        if self.nodes > 1:
            lines.append(_ON_RAY if self.ray else _ON_EVERY_NODE)
        if len(plan.split) > 1:
            # With one stage vLLM still parses the variable, and there is nothing to say.
            lines.append(f"export {self.override_variable}={format_split(plan.split)}")
        return "\n".join([*lines, *self._commands(plan, flags)]) + "\n"

    def _commands(self, plan: Plan, flags: dict[str, object]) -> list[str]:
        """Return the command of one machine, or without Ray of node 0 and of the others."""
        serve = f"vllm serve {shlex.quote(model_word(plan))}"
        if self.nodes == 1:
            return [command([serve, *flag_words(flags)])]
        if self.ray:
            return [command([serve, *flag_words(flags | {"distributed-executor-backend": "ray"})])]
        flags = flags | {"nnodes": self.nodes, "master-addr": "$HEAD"}
        return [
            "# Node 0, which serves the API:",
            command([serve, *flag_words(flags | {"node-rank": 0})]),
            "# Each other node, with its number from 1 as NODE_RANK:",
            command([serve, *flag_words(flags | {"node-rank": "$NODE_RANK", "headless": True})]),
        ]


def _limits(gpu: GPU, release: tuple[int, ...]) -> tuple[int, int]:
    """Return the default tokens per step and running requests of the API server (``arg_utils.py``)."""
    if gpu.memory_bytes >= 160 * GIB and release >= (0, 28):
        return 16384, 1024
    if gpu.memory_bytes >= 70 * GIB and "A100" not in gpu.name:
        return 8192, 1024
    return 2048, 256
