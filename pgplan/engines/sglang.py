"""SGLang: read in 0.5.23, with the older default split of releases up to 0.5.5."""

from __future__ import annotations

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
    Limits,
    check_nodes,
    command,
    device_remarks,
    filling_limits,
    flag_words,
    kv_dtype_word,
    model_remarks,
    model_word,
)
from pgplan.engines.sglang_cells import cell_bytes, ring_bytes
from pgplan.engines.sglang_kv import SGLangKVRule
from pgplan.engines.sglang_log import SGLANG_LOG
from pgplan.errors import EngineError
from pgplan.hardware import Cluster
from pgplan.model.spec import AttentionSpec, ModelSpec
from pgplan.split import extras_last_stages, format_split, remainder_on_last
from pgplan.workload import Workload

if TYPE_CHECKING:
    from pgplan.planning.record import Plan

MIB = 1 << 20

# What SGLang calls the dtypes of a KV cache (``arg_groups/fields/model.py``); it knows no plain fp8.
_KV_DTYPES = {"bfloat16": "bfloat16", "fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}

# The head is built on every stage (for some only when it is not tied).
_HEAD_EVERY = frozenset(
    """
    ArceeForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM GptOssForCausalLM GraniteMoeHybridForCausalLM
    MellumForCausalLM MixtralForCausalLM PersimmonForCausalLM Phi3SmallForCausalLM Qwen2MoeForCausalLM
    Qwen3MoeForCausalLM SarvamMLAForCausalLM SarvamMoEForCausalLM
    """.split()
)
_HEAD_EVERY_IF_UNTIED = frozenset(
    """
    ApertusForCausalLM BailingMoEForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM
    Exaone4ForCausalLM ExaoneMoEForCausalLM ExaoneMoeForCausalLM LLaDA2MoeModelLM LlamaForCausalLM
    Phi3ForCausalLM InternLM3ForCausalLM IQuestCoderForCausalLM DeciLMForCausalLM OPTForCausalLM
    """.split()
)
_EMBEDDING_EVERY = frozenset("MiniMaxM2ForCausalLM OPTForCausalLM Phi3SmallForCausalLM".split())
# Their layers are not cut by the partition variable, or the model file asserts a single stage.
_NO_PIPELINE = frozenset(
    """
    FalconH1ForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM Qwen3NextForCausalLM PhiForCausalLM
    Starcoder2ForCausalLM InternS2MobiusForConditionalGeneration
    """.split()
)


class SGLang(Engine):
    """SGLang's rules (https://github.com/sgl-project/sglang).

    Args:
        version: Its release.
        nodes: Machines that the launch line spreads the stages over.
    """

    name = "sglang"
    title = "SGLang"
    default_version = "0.5.23"
    oldest_version = "0.5.3"
    writes = "the variable and `sglang.launch_server`"
    syntax = "SGLANG_PP_LAYER_PARTITION=a,b,c"
    checked = "0.5.23: its get_pp_indices, run; its flags and log messages"
    override_variable = "SGLANG_PP_LAYER_PARTITION"
    stage_flags = ("pp-size", "pipeline-parallel-size", "pp")
    log_format = SGLANG_LOG

    def __init__(self, version: str | None = None, *, nodes: int = 1) -> None:
        super().__init__(version)
        self.nodes = nodes

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...]:
        """Give extra layers to the last stages; up to 0.5.5 (before PR #13977) all to the last one."""
        rule = remainder_on_last if self.release <= (0, 5, 5) else extras_last_stages
        return rule(num_layers, pp_size)

    def placement(self, model: ModelSpec, *, pp_size: int) -> Placement:
        """Look the architecture up in the scan of SGLang's model files.

        A tied head is a separate copy on the last stage unless there is only one stage.
        """
        architecture = model.architecture
        every = architecture in _HEAD_EVERY or (architecture in _HEAD_EVERY_IF_UNTIED and not model.tied)
        return Placement(
            embedding="every" if architecture in _EMBEDDING_EVERY else "first",
            head="every" if every else "last",
            tied=model.tied and pp_size == 1,
        )

    def check(self, model: ModelSpec, cluster: Cluster, workload: Workload) -> None:
        """Refuse models that SGLang does not run over a pipeline, and dtypes that its KV cache lacks."""
        kv_dtype_word(model, workload, known=_KV_DTYPES, title=self.title)
        check_cache_dtype(model, workload)
        if cluster.pp_size > 1 and model.architecture in _NO_PIPELINE:
            raise EngineError(
                f"SGLang does not run {model.architecture} over a pipeline, but pp_size is "
                f"{cluster.pp_size}; use pp_size 1"
            )
        if cluster.pp_size > 1 and workload.draft_tokens:
            raise EngineError(
                f"SGLang does not draft tokens over a pipeline that decodes, but pp_size is "
                f"{cluster.pp_size} and draft_tokens {workload.draft_tokens}; give draft_tokens 0"
            )

    def settings(self, model: ModelSpec, cluster: Cluster, workload: Workload) -> EngineSettings:
        """Fill in the defaults of ``server_args.py``, which depend on the device's memory."""
        memory_mib = min(gpu.memory_bytes for gpu in cluster.gpus) / MIB
        chunk, graph_batch = _limits(memory_mib, cluster.tp_size, self.release)
        chunk = workload.max_num_batched_tokens or chunk
        reserved = 512 + max(chunk, 2048) * 1.5 + graph_batch * 2 + cluster.tp_size * cluster.pp_size * 128
        if memory_mib > 60 * 1024:
            reserved = max(reserved, 10 * 1024)
        fraction = round((memory_mib - reserved) / memory_mib, 3)
        return EngineSettings(
            memory_utilization=workload.memory_utilization or fraction,
            max_model_len=context_limit(model, workload),
            max_num_batched_tokens=chunk,
            max_num_seqs=workload.max_num_seqs or (256 if is_compressed(model) else 2048),
            block_size=256 if is_compressed(model) else 64 if _is_sparse_latent(model) else 1,
            kv_element_bytes=1 if is_compressed(model) else workload.kv_element_bytes(model.dtype),
            draft_tokens=workload.draft_tokens,
        )

    def kv_rule(self, model: ModelSpec, settings: EngineSettings, cluster: Cluster) -> KVRule:
        """Count what a token takes in the pool of each layer, and a request in that for recurrent state."""

        def cell(attention: AttentionSpec | None) -> float:
            return cell_bytes(
                attention,
                architecture=model.architecture,
                tp_size=cluster.tp_size,
                element_bytes=settings.kv_element_bytes,
            )

        cells, slots, fixed = [], [], []
        for kind in model.kinds:
            cells.append(cell(kind.attention))
            fixed.append(ring_bytes(kind.attention, requests=settings.max_num_seqs))
            state = kind.state
            # Recurrent matrices are kept in fp32 unless the model asks for something else.
            slots.append(
                state.sequence_bytes(tp_size=cluster.tp_size, dtype=model.dtype, recurrent_dtype="float32")
                if state
                else 0
            )
        each = [cells[index] for index in model.pattern]
        # Draft layers are on the last stage.
        each[-1] += sum(cell(layer.attention) for layer in model.drafts if settings.draft_tokens)
        return SGLangKVRule(
            each,
            fixed=[fixed[index] for index in model.pattern],
            slots=[slots[index] for index in model.pattern],
            smallest_memory_bytes=min(gpu.memory_bytes for gpu in cluster.gpus),
            memory_fraction=settings.memory_utilization,
            page_size=settings.block_size,
            max_model_len=settings.max_model_len,
        )

    def microbatches(self, workload: Workload, settings: EngineSettings, *, pp_size: int) -> tuple[int, int]:
        """Fill up to ``pp_size`` microbatches of at most ``max_running_requests // pp_size``."""
        limit = max(settings.max_num_seqs // pp_size, 1)
        return chunked_microbatches(workload, settings, pp_size=pp_size, limit=limit)

    def notes(self, model: ModelSpec, *, pp_size: int) -> tuple[str, ...]:
        """Say so where this architecture departs from the textbook placement."""
        notes = self.version_notes()
        if pp_size > 1 and self.placement(model, pp_size=pp_size).head == "every":
            return (*notes, f"SGLang builds the output head of {model.architecture} on every stage")
        return notes

    def export(self, plan: Plan) -> str:
        """Return the override variable and the launch line with every flag that the plan implies."""
        check_nodes(plan, self.nodes, title=self.title)
        settings = self.settings_of(plan)
        limits = filling_limits(plan, settings)
        flags: dict[str, object] = {
            "pp-size": len(plan.split),
            "tp-size": plan.tp_size,
            "dtype": plan.model.dtype,
            "mem-fraction-static": settings.memory_utilization,
            "context-length": settings.max_model_len,
            "chunked-prefill-size": limits.max_num_batched_tokens,
            "max-running-requests": limits.max_num_seqs,
        }
        kv_dtype = kv_dtype_word(plan.model, plan.workload, known=_KV_DTYPES, title=self.title)
        if kv_dtype:
            flags["kv-cache-dtype"] = kv_dtype
        remarks = [*model_remarks(plan), *device_remarks(plan), *filter(None, [limits.remark])]
        lines = [self.header(plan), *remarks]
        if len(plan.split) > 1:
            lines.append(f"export {self.override_variable}={format_split(plan.split)}")
            # Without it a microbatch takes up to max-running-requests / pp-size, and the others go empty.
            renamed = "pp-max-micro-batch-size" if self.release >= (0, 5, 4) else "max-micro-batch-size"
            flags[renamed] = limits.microbatch_seqs
            lines += _cap_remarks(renamed, limits, pp_size=len(plan.split))
            # The overlap schedule does not work over a pipeline.
            flags["disable-overlap-schedule"] = True
        if self.nodes > 1:
            lines.insert(1, "# On every node; HEAD is the address of node 0, NODE_RANK counts from 0.")
            flags |= {"nnodes": self.nodes, "node-rank": "$NODE_RANK", "dist-init-addr": "$HEAD:5000"}
        serve = f"python -m sglang.launch_server --model-path {shlex.quote(model_word(plan))}"
        return "\n".join([*lines, command([serve, *flag_words(flags)])]) + "\n"


def _cap_remarks(flag: str, limits: Limits, *, pp_size: int) -> list[str]:
    """Say what the size of a microbatch caps, where it is less than SGLang's own."""
    own = max(limits.max_num_seqs // pp_size, 1)
    if limits.microbatch_seqs >= own:
        return []
    return [
        f"# {flag} {limits.microbatch_seqs} fills {pp_size} stages with the plan's requests, and no more\n"
        f"# than {limits.microbatch_seqs * pp_size} run at once. Where more are to, raise it or leave it out "
        f"(then {own})."
    ]


def _is_sparse_latent(model: ModelSpec) -> bool:
    attentions = [kind.attention for kind in model.kinds if kind.attention]
    return any(attention.kind == "mla" and attention.topk for attention in attentions)


def _limits(memory_mib: float, tp_size: int, release: tuple[int, ...]) -> tuple[int, int]:
    """Return the default prefill chunk and the largest captured batch (``arg_groups/memory_hook.py``)."""
    if memory_mib < 20 * 1024:
        return 2048, 8
    if memory_mib < 35 * 1024 and release >= (0, 5, 20):
        return 4096, 48 if tp_size < 4 else 160
    if memory_mib < 35 * 1024:
        return 2048, 24 if tp_size < 4 else 80
    if memory_mib < 60 * 1024:
        return 4096, 32 if tp_size < 4 else 160
    if memory_mib < 160 * 1024:
        return 8192, 256 if tp_size < 4 else 512
    return 16384, 512
