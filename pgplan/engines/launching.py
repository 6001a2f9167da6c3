"""Launch lines of serving engines: flags, how many tokens per step fill the pipeline, several nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgplan.engines.base import EngineSettings
from pgplan.errors import EngineError
from pgplan.model.sources import servable
from pgplan.model.spec import ModelSpec
from pgplan.workload import Workload

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Hold the limits of a launch line.

    Args:
        max_num_batched_tokens: Tokens per step.
        max_num_seqs: Running requests.
        microbatch_seqs: Requests in each of ``pp_size`` microbatches.
        remark: What was changed against the plan, and why; empty: nothing.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    microbatch_seqs: int
    remark: str = ""


def filling_limits(plan: Plan, settings: EngineSettings) -> Limits:
    """Return limits under which the plan's requests form as many microbatches as there are stages.

    Requests that are prefilled in one chunk go on decoding together, so a chunk that holds too many short
    prompts leaves stages idle. A limit that the user gave is kept.

    Glossary
        running    requests at once
        per_chunk  the most prompts per chunk that still make ``pp_size`` chunks
    """
    pp_size, prompt = len(plan.split), plan.workload.prompt_tokens
    running = min(plan.workload.concurrency, settings.max_num_seqs)
    microbatch = -(-running // pp_size)
    tokens, seqs = settings.max_num_batched_tokens, settings.max_num_seqs
    as_planned = Limits(max_num_batched_tokens=tokens, max_num_seqs=seqs, microbatch_seqs=microbatch)

    def fills(limit: int) -> bool:
        return -(-running // max(1, limit // prompt)) >= pp_size

    if running < pp_size or plan.workload.max_num_batched_tokens is not None or fills(tokens):
        return as_planned
    per_chunk = min(microbatch, (running - 1) // (pp_size - 1))
    # vLLM refuses to start with more running requests than tokens per step.
    filling = max(per_chunk * prompt, plan.workload.max_num_seqs or running)
    if not fills(filling):
        return as_planned
    return Limits(
        max_num_batched_tokens=filling,
        max_num_seqs=min(seqs, filling),
        microbatch_seqs=microbatch,
        remark=(
            f"# {filling} tokens per step, not the planned {tokens}: {running} prompts of {prompt} tokens "
            f"then form\n# {pp_size} microbatches, one per stage. It frees memory and takes none."
        ),
    )


def kv_dtype_word(
    model: ModelSpec, workload: Workload, *, known: Mapping[str, str], title: str
) -> str | None:
    """Return what a program calls the dtype of the KV cache; ``None``: it needs no word for it.

    Args:
        model: Its dtype is what every program takes by itself.
        workload: Its ``kv_dtype`` is what was asked for.
        known: The program's names, by pgplan's.
        title: The program.

    Raises:
        EngineError: If it keeps no cache of this dtype; names those that it does.

    >>> from pgplan.model import load_model
    >>> kv_dtype_word(load_model("llama-3.1-8b"), Workload(kv_dtype="fp8"), known={"fp8": "q8"}, title="X")
    'q8'
    """
    wanted = workload.kv_dtype
    if wanted not in known and wanted not in ("auto", model.dtype):
        names = ", ".join(dict.fromkeys([model.dtype, *known]))
        raise EngineError(
            f"{title} keeps the KV cache of {model.name} in one of {names}, got kv_dtype {wanted}; give one "
            f"of these or auto"
        )
    return known.get(wanted)


def device_remarks(plan: Plan) -> list[str]:
    """Return a remark on the order of the GPUs where they differ, for no program looks at it."""
    if len(set(plan.cluster.gpus)) == 1:
        return []
    names = ", ".join(gpu.name for gpu in plan.cluster.gpus)
    return [
        f"# Stage by stage the GPUs are {names}: put them in this",
        "# order, e.g. with CUDA_DEVICE_ORDER=PCI_BUS_ID and CUDA_VISIBLE_DEVICES.",
    ]


def model_word(plan: Plan) -> str:
    """Return what a launch line calls the model: its folder or repository, else a word to be replaced."""
    return servable(plan.model.source) or "MODEL"


def model_remarks(plan: Plan) -> list[str]:
    """Say what to put in the placeholder's place, and that no checkpoint has the layers of a what-if."""
    model, remarks = plan.model, []
    if servable(model.source) is None:
        made_from = " ".join(model.source.split())
        remarks.append(
            f"# MODEL stands for the folder or repository of the weights: the plan was made\n"
            f"# from {made_from}, which holds none."
        )
    if model.own_layers not in (None, model.num_layers):
        remarks.append(
            f"# A what-if: the model has {model.own_layers} layers, the plan is for {model.num_layers}.\n"
            f"# It runs with a checkpoint of {model.num_layers} layers only."
        )
    return remarks


def flag_words(flags: Mapping[str, object]) -> list[str]:
    """Return ``--name value`` for each flag; ``True`` stands for a flag without a value."""
    return [f"--{name}" if value is True else f"--{name} {value}" for name, value in flags.items()]


def command(words: Sequence[str]) -> str:
    """Return one shell command, a word per line."""
    return " \\\n    ".join(words)


def check_nodes(plan: Plan, nodes: int, *, title: str) -> None:
    """Refuse nodes over which the ranks of a plan cannot be spread evenly.

    Raises:
        EngineError: If the GPUs do not divide, or a stage would reach over two nodes.
    """
    ranks = len(plan.split) * plan.tp_size
    if nodes < 1:
        raise EngineError(f"nodes is at least 1, got {nodes}; give the number of machines")
    gpus = f"{plan.tp_size} GPU{'s' if plan.tp_size > 1 else ''}"
    if ranks % nodes or ranks // nodes % plan.tp_size:
        fits = [str(n) for n in range(1, ranks + 1) if ranks % n == 0 and ranks // n % plan.tp_size == 0]
        raise EngineError(
            f"{title} wants the same number of whole stages on each node, but {len(plan.split)} stages of "
            f"{gpus} do not spread over {nodes} nodes; give nodes {' or '.join(fits)}"
        )
