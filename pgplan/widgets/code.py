"""The lines that make a plan again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pprint import pformat

from pgplan.errors import HardwareError
from pgplan.hardware import GPU, find_gpu
from pgplan.widgets.choice import Choice
from pgplan.workload import Workload

# Where a model is read from that nothing but the plan itself holds.
PLAN_FILE = "plan.json"
# The same for a calibration that is only an object.
CALIBRATION_FILE = "calibration.json"


def plan_code(choice: Choice) -> str:
    """Return Python that makes the plan of ``choice`` again.

    A model that was brought along as an object is read back from the saved plan, and a calibration from where
    the code says that it must be saved.

    >>> from pgplan import Cluster, plan
    >>> made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=2), split="17,15")
    >>> print(plan_code(Choice.from_plan(made)))
    import pgplan as pg
    <BLANKLINE>
    model = pg.load_model('llama-3.1-8b')
    cluster = pg.Cluster.uniform('H200 SXM 141GB', pp_size=2)
    plan = pg.plan(model, cluster, engine='vllm==0.33', split='17,15')
    """
    options = {"engine": choice.engine, "split": choice.split}
    if choice.is_searched:
        options["objective"] = choice.objective
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    workload = _workload(choice.workload)
    if workload:
        given = f", workload=workload{given}"
    remark, calibration = _calibration(choice)
    call = f"plan = pg.plan(model, cluster{given}{calibration})"
    lines = [*_model(choice), _cluster(choice), *workload, *remark, call]
    needs_path = any(line.startswith("model = pg.Plan") for line in lines)
    head = ["from pathlib import Path", ""] if needs_path else []
    return "\n".join([*head, "import pgplan as pg", "", *lines])


def _model(choice: Choice) -> list[str]:
    argument = choice.source.argument
    layers = f".with_layers({choice.num_layers})" if choice.num_layers != choice.base.num_layers else ""
    if argument is None:
        # The document holds the model with the layers that it was planned with.
        return [
            f'# The planner\'s "save" writes {PLAN_FILE}, which holds the model.',
            f"model = pg.Plan.from_json(Path({PLAN_FILE!r}).read_text()).model",
        ]
    dtype = "" if choice.dtype == "auto" else f", dtype={choice.dtype!r}"
    if isinstance(argument, Mapping):
        return [
            f"config = {pformat(dict(argument), width=100, sort_dicts=False)}",
            f"model = pg.load_model(config{dtype}){layers}",
        ]
    return [f"model = pg.load_model({argument!r}{dtype}){layers}"]


def _cluster(choice: Choice) -> str:
    tp = f", tp_size={choice.tp_size}" if choice.tp_size > 1 else ""
    # The representation of a frozen dataclass is the call that makes it.
    link = f", link=pg.{choice.link!r}" if choice.link is not None else ""
    if choice.cluster.is_uniform:
        gpu = _gpu(choice.gpus[0])
        return f"cluster = pg.Cluster.uniform({gpu}, pp_size={choice.pp_size}{tp}{link})"
    return f"cluster = pg.Cluster.mixed([{', '.join(map(_gpu, choice.gpus))}]{tp}{link})"


def _calibration(choice: Choice) -> tuple[list[str], str]:
    """Return a remark on the calibration, where it needs one, and how the plan is told of it."""
    calibration, argument = choice.calibration, choice.basis.argument
    if calibration is None:
        return [], ""
    if argument is not None:
        return [], f", calibration={argument!r}"
    remark = f"# Its calibration, of {calibration.source}, is written by its own save({CALIBRATION_FILE!r})."
    return [remark], f", calibration={CALIBRATION_FILE!r}"


def _gpu(gpu: GPU) -> str:
    try:
        known = find_gpu(gpu.name)
    except HardwareError:
        known = None
    return repr(gpu.name) if known == gpu else f"pg.{gpu!r}"


def _workload(workload: Workload) -> list[str]:
    default = Workload()
    given = ", ".join(
        f"{field.name}={getattr(workload, field.name)!r}"
        for field in fields(workload)
        if getattr(workload, field.name) != getattr(default, field.name)
    )
    return [f"workload = pg.Workload({given})"] if given else []
