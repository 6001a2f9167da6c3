"""``verify``: lay a plan out on the GPUs that are there, run it, and set what was measured beside it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from pgplan.errors import ModelError
from pgplan.launcher import Event, Run, start
from pgplan.launcher.backends import Backend, choose_backend, visible_gpus
from pgplan.launcher.show import Show
from pgplan.planning import Plan
from pgplan.planning import plan as make_plan
from pgplan.verification.findings import Row, checks_of, flow_of, phase_seconds, stages_of
from pgplan.verification.kv_cache import is_fp8
from pgplan.verification.memory import ELEMENT_BYTES
from pgplan.verification.record import Mode, Verification
from pgplan.verification.scaling import narrowed, narrowing_factor, small_workload
from pgplan.verification.shards import check_supported
from pgplan.verification.surroundings import variables

_ENTRY = "pgplan.verification.ranks:verify_rank"


def verify(
    plan: Plan,
    *,
    backend: Backend = "auto",
    timeout: float | None = 600.0,
    on_event: Callable[[Event], None] | None = None,
    on_run: Callable[[Run], None] | None = None,
    show: Show | None = None,
    log_dir: str | Path | None = None,
) -> Verification:
    """Lay a plan out as real tensors on the devices of this machine, run it, and compare.

    With a GPU for every rank the whole pipeline runs. With fewer, but enough for one stage, the stages run
    one after the other. With none, the plan's split runs on CPU processes, every width of the model divided
    by one factor: that checks wiring, split and hand-off, and says nothing about a GPU's times and bytes.

    Quantized weights and caches in fp8 take the bytes that they take in an engine. Where this torch or this
    GPU has no kernel for a product with them it is emulated: the record says so, and no times are promised.

    Args:
        plan: What to verify.
        backend: ``"nccl"``, ``"gloo"``, or ``"auto"`` for NCCL where the GPUs allow it.
        timeout: When to give up, in seconds, for each run of processes.
        on_event: Called with every event of the processes.
        on_run: Called with each run of processes as it starts, e.g. to keep it for ``cancel``.
        show: ``"terminal"`` or ``"notebook"`` to show progress there.
        log_dir: Where each rank's output goes.

    Returns:
        The record; ``passed`` tells whether all is as predicted.

    Raises:
        ModelError: If the plan has layers or a KV cache that are not computed here, or draft layers.
        BackendError: If the backend cannot run here.
        LaunchError: If a worker failed; names the first one, with its cause.

    >>> import pgplan as pg
    >>> model = pg.load_model("qwen3-0.6b").with_layers(2)
    >>> record = verify(pg.plan(model, pg.Cluster.uniform("H200", pp_size=2)), backend="gloo")
    >>> [stage.weight_bytes == planned.weight_bytes
    ...  for stage, planned in zip(record.stages, record.plan.stages)]
    [True, True]
    """
    check_supported(plan.model, draft_tokens=plan.workload.draft_tokens)
    mode, chosen = _choose(plan, backend)
    laid_out, factor = (plan, 1) if chosen == "nccl" else _narrow(plan)
    element_bytes = ELEMENT_BYTES[laid_out.model.dtype]
    cached_bytes = laid_out.settings.kv_element_bytes
    if cached_bytes != (1 if is_fp8(laid_out.workload.kv_dtype) else element_bytes):
        raise ModelError(
            f"verification keeps the KV cache in {laid_out.model.dtype} or fp8, and the plan has "
            f"{cached_bytes} byte(s) per element; plan with kv_dtype auto or fp8"
        )

    def run(ranks: int, alone: int | None) -> Sequence[Row]:
        under_way = start(
            _ENTRY,
            ranks=ranks,
            backend=backend,
            timeout=timeout,
            args={"plan": laid_out.to_json(), "alone": alone},
            env=variables(chosen),
            on_event=on_event,
            show=show,
            log_dir=log_dir,
        )
        if on_run is not None:
            on_run(under_way)
        return under_way.wait().results

    if mode == "pipeline":
        rows = list(run(plan.pp_size * plan.tp_size, None))
    else:
        rows = [row for stage in range(plan.pp_size) for row in run(plan.tp_size, stage)]
    return _record(laid_out, asked=plan.model.name, factor=factor, backend=chosen, mode=mode, rows=rows)


def _choose(plan: Plan, backend: Backend) -> tuple[Mode, Backend]:
    """Decide between pipeline and stage by stage, and between NCCL and gloo."""
    if choose_backend(backend, ranks=plan.tp_size).name == "gloo":
        return "pipeline", "gloo"
    return ("pipeline" if visible_gpus() >= plan.pp_size * plan.tp_size else "stage by stage"), "nccl"


def _narrow(plan: Plan) -> tuple[Plan, int]:
    """Plan the same split of a narrowed model under short requests."""
    factor = narrowing_factor(plan.model, tp_size=plan.tp_size)
    small = make_plan(
        narrowed(plan.model, factor),
        plan.cluster,
        workload=small_workload(
            plan.microbatches, kv_dtype=plan.workload.kv_dtype if is_fp8(plan.workload.kv_dtype) else "auto"
        ),
        engine=plan.engine,
        split=plan.split,
    )
    return small, factor


def _record(
    plan: Plan, *, asked: str, factor: int, backend: str, mode: Mode, rows: Sequence[Row]
) -> Verification:
    problems = tuple(dict.fromkeys(row["problem"] for row in rows if row["problem"]))
    return Verification(
        plan=plan,
        asked=asked,
        narrowed_by=factor,
        backend=backend,
        mode=mode,
        checks=checks_of(rows),
        unchecked=tuple(text for row in rows for text in row["unchecked"]),
        stages=stages_of(plan, rows),
        prefill=flow_of(plan, "prefill", rows),
        decode=flow_of(plan, "decode", rows),
        problems=problems if plan.fits or problems else plan.problems,
        environment=rows[0]["environment"] | {"date": datetime.date.today().isoformat()},
        phase_s=phase_seconds(rows, at_once=len(rows) if mode == "pipeline" else plan.tp_size),
    )
