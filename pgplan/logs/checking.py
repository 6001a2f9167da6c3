"""``check_log``: set what a plan predicts beside what the engine printed when it started."""

from __future__ import annotations

from collections.abc import Callable

from pgplan.engines import Engine, find_engine
from pgplan.engines.log_format import LogFormat
from pgplan.errors import PlanError
from pgplan.logs.reading import StartupLog, Worker, read_log
from pgplan.logs.result import LogCheck, LogReading
from pgplan.planning.record import Plan
from pgplan.planning.stage_plan import StagePlan
from pgplan.split import format_split

GIB = 1 << 30

# Half a unit of what is printed, and what allocators round up.
_WEIGHTS_GIB, _WEIGHTS_SHARE = 0.05, 0.01
# The peak of activations is modelled, not measured.
_KV_GIB, _KV_SHARE = 0.15, 0.01


def check_log(plan: Plan, text: str) -> LogCheck:
    """Read the start-up log of the plan's engine and compare.

    Args:
        plan: What was planned; its engine says which log to expect.
        text: The log of all processes, as printed: colours, prefixes and mixed lines do no harm.

    Returns:
        Predicted and logged weights, KV memory and CUDA graphs per process, KV tokens, what differs and
        what is missing. Weights may be off by 1 % or 0.05 GiB, KV memory by 1 % or 0.15 GiB, KV tokens by
        1 % or what 0.15 GiB hold; CUDA graphs are estimated and never count as off.

    Raises:
        PlanError: If the text is not a start-up log of this engine.

    >>> from pgplan.hardware import Cluster
    >>> from pgplan.planning import plan
    >>> made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=1))
    >>> check_log(made, "INFO Model loading took 14.98 GiB memory and 2.1 seconds").agrees
    True
    """
    engine = find_engine(plan.engine)
    form = engine.log_format
    log = read_log(text, form, pp_size=plan.pp_size, tp_size=plan.tp_size)
    if not (log.weights_gib or log.kv_memory_gib or log.kv_tokens or log.failures or log.nameless):
        raise PlanError(
            f"a start-up log of {engine.title} says how much its weights take, which the text does not; give "
            f"the log of all its processes, from the start"
        )
    readings = (
        *_readings(plan, "weights", log.weights_gib, _weights, share=_WEIGHTS_SHARE, least=_WEIGHTS_GIB),
        *_readings(plan, "KV memory", log.kv_memory_gib, _kv(form), share=_KV_SHARE, least=_KV_GIB),
        *_readings(plan, "CUDA graphs", log.graphs_gib, _graphs, share=0.0, least=float("inf")),
    )
    largest = max(stage.kv_bytes_per_token for stage in plan.stages) or 1
    return LogCheck(
        plan=plan,
        readings=readings,
        kv_tokens=log.kv_tokens,
        kv_tokens_tolerance=max(_KV_SHARE * plan.kv_tokens, _KV_GIB * GIB / largest),
        differences=_differences(plan, log),
        failures=log.failures,
        missing=_missing(plan, log),
        notes=_notes(engine, log),
    )


def _weights(stage: StagePlan) -> int:
    return stage.weight_bytes


def _graphs(stage: StagePlan) -> int:
    return stage.graph_bytes


def _kv(form: LogFormat) -> Callable[[StagePlan], int]:
    if form.kv_memory_is == "budget":
        return lambda stage: stage.kv_budget_bytes
    return lambda stage: stage.kv_used_bytes


def _readings(
    plan: Plan,
    what: str,
    logged_gib: dict[Worker, float],
    predicted: Callable[[StagePlan], int],
    *,
    share: float,
    least: float,
) -> list[LogReading]:
    return [
        LogReading(
            worker=worker,
            what=what,
            predicted_gib=predicted(plan.stages[worker.stage]) / GIB,
            logged_gib=logged_gib.get(worker),
            tolerance_gib=max(least, share * predicted(plan.stages[worker.stage]) / GIB),
        )
        for worker in _workers(plan)
    ]


def _workers(plan: Plan) -> list[Worker]:
    return [Worker(stage, rank) for stage in range(plan.pp_size) for rank in range(plan.tp_size)]


def _differences(plan: Plan, log: StartupLog) -> tuple[str, ...]:
    """Say where the engine runs something else than the plan."""
    planned = {
        "pp_size": plan.pp_size,
        "tp_size": plan.tp_size,
        "max_model_len": plan.settings.max_model_len,
        "max_num_batched_tokens": plan.settings.max_num_batched_tokens,
    }
    found = [
        f"{field} is {value} in the log and {planned[field]} in the plan"
        for field, value in log.settings.items()
        if value != planned[field]
    ]
    if log.split is not None and log.split != plan.split:
        found.insert(
            0, f"the split is {format_split(log.split)} in the log and {format_split(plan.split)} in the plan"
        )
    strangers = sorted({*log.weights_gib, *log.kv_memory_gib} - set(_workers(plan)))
    if strangers:
        names = ", ".join(worker.name(tp_size=2) for worker in strangers)
        found.append(f"the log has workers that the plan has not: {names}")
    return tuple(found)


def _notes(engine: Engine, log: StartupLog) -> tuple[str, ...]:
    """Say so if the log is another release's than the plan is for; as exactly as the plan names it."""
    if not log.version or log.version.split(".")[: len(engine.release)] == [*map(str, engine.release)]:
        return ()
    return (
        f"the log is of {engine.title} {log.version}, the plan for {engine.version}; defaults, placement and "
        f"graphs may differ between them",
    )


def _missing(plan: Plan, log: StartupLog) -> tuple[str, ...]:
    """Say what the log leaves out, and whose figures it does not name."""
    lines = []
    for what, logged in (("weights", log.weights_gib), ("KV memory", log.kv_memory_gib)):
        absent = [worker.name(tp_size=plan.tp_size) for worker in _workers(plan) if worker not in logged]
        if absent:
            whom = "every worker" if len(absent) == plan.pp_size * plan.tp_size else ", ".join(absent)
            lines.append(f"{what} of {whom}")
    if log.kv_tokens is None:
        lines.append("the tokens of the KV cache")
    if log.nameless:
        lines.append(f"the worker of {log.nameless} figures, which no name stands before")
    return tuple(lines)
