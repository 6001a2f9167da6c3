"""What a user of the planner has chosen, as one frozen value, and the plan that follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pgplan.errors import CalibrationError, ModelError
from pgplan.hardware import GPU, Calibration, Cluster, Link, find_gpu
from pgplan.model import load_model
from pgplan.model.spec import ModelSpec
from pgplan.planning import Objective, Plan, plan
from pgplan.split import format_split
from pgplan.widgets.basis import DATA_SHEET, Basis, offered
from pgplan.workload import Workload

_LARGEST_TP = 64
_DEFAULT_GPU = "H200 SXM 141GB"
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
DTYPES: tuple[Dtype, ...] = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Say where a model comes from, so that it can be loaded again and named in code.

    Args:
        model: The model in its own dtype.
        argument: What ``load_model`` takes for it: a name, a path or a configuration; ``None``: it was
            brought along as an object.
    """

    model: ModelSpec
    argument: str | Mapping[str, object] | None

    @classmethod
    def load(cls, argument: str | Mapping[str, object]) -> Source:
        """Load a model by its name, its path (kept so that it holds from any folder) or its configuration."""
        if isinstance(argument, str) and "\n" not in argument and Path(argument).expanduser().exists():
            argument = str(Path(argument).expanduser().resolve())
        return cls(model=load_model(argument), argument=argument)

    @classmethod
    def of(cls, model: ModelSpec) -> Source:
        """Find out how a model that is already there could be loaded; the catalogue is asked by its name.

        >>> Source.of(load_model("llama-3.1-8b")).argument
        'llama-3.1-8b'
        """
        for argument in (model.name, model.source):
            try:
                found = load_model(argument)
            except ModelError:
                continue
            if found == model:
                return cls(model=model, argument=argument)
        return cls(model=model, argument=None)

    def in_dtype(self, dtype: Dtype) -> ModelSpec:
        """Return the model in a dtype; ``"auto"``: its own.

        Raises:
            ModelError: If the model was brought along as an object, whose dtype is settled.
        """
        if dtype == "auto":
            return self.model
        if self.argument is None:
            raise ModelError(
                f"the dtype of {self.model.name} is settled, as it was given as an object, but {dtype} is "
                f"asked for; load it with load_model(..., dtype={dtype!r})"
            )
        return load_model(self.argument, dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Hold everything that decides a plan.

    Args:
        source: Where the model comes from.
        dtype: What it is loaded in.
        base: The model in this dtype with its own number of layers.
        num_layers: How many it shall have.
        gpus: The device of each stage.
        tp_size: Ranks that share a stage.
        link: What joins the stages; ``None``: what the devices have.
        engine, objective, split, workload: As ``pgplan.plan`` takes them; the split as text.
        pinned: Stages whose layers stay when the others are balanced.
        basis: What times rest on.
    """

    source: Source
    dtype: Dtype = "auto"
    base: ModelSpec
    num_layers: int
    gpus: tuple[GPU, ...]
    tp_size: int
    link: Link | None
    engine: str
    objective: Objective
    split: str
    pinned: tuple[int, ...] = ()
    workload: Workload
    basis: Basis = DATA_SHEET

    @property
    def pp_size(self) -> int:
        """Count the stages."""
        return len(self.gpus)

    @property
    def gpu_text(self) -> str:
        """Name the devices: one name if they are equal, else one per stage."""
        names = [gpu.name for gpu in self.gpus]
        return names[0] if len(set(names)) == 1 else ", ".join(names)

    @property
    def model(self) -> ModelSpec:
        """Return the model with as many layers as chosen."""
        return self.base.with_layers(self.num_layers)

    @property
    def cluster(self) -> Cluster:
        """Return the devices as a cluster."""
        return Cluster(gpus=self.gpus, tp_size=self.tp_size, link=self.link)

    @property
    def calibration(self) -> Calibration | None:
        """Return what was measured on such devices, if times rest on it."""
        return self.basis.calibration

    @property
    def tp_sizes(self) -> tuple[int, ...]:
        """Return the tensor-parallel sizes that divide the heads of every layer."""
        return _tp_sizes(self.base)

    @property
    def is_searched(self) -> bool:
        """Tell whether the split has stages whose layers are to be found."""
        return self.split.strip() == "auto" or "*" in self.split

    def plan(self, *, with_advice: bool = True) -> Plan:
        """Make the plan.

        Args:
            with_advice: Whether a plan that does not fit shall say what would; that can take minutes.

        Raises:
            PgplanError: If some value is wrong, or nothing satisfies the pins.
        """
        return plan(
            self.model,
            self.cluster,
            workload=self.workload,
            engine=self.engine,
            split=self.split,
            objective=self.objective,
            calibration=self.calibration,
            with_advice=with_advice,
        )

    @classmethod
    def from_plan(cls, plan: Plan, *, basis: Basis = DATA_SHEET) -> Choice:
        """Return a choice that gives ``plan`` again, if its times rest on ``basis``."""
        base = _whole(plan.model)
        return cls(
            source=base,
            base=base.model,
            num_layers=plan.model.num_layers,
            gpus=plan.cluster.gpus,
            tp_size=plan.tp_size,
            link=plan.cluster.link,
            engine=plan.engine,
            objective=plan.objective or "decode",
            split=_split_text(plan),
            workload=plan.workload,
            basis=basis,
        )


def first_choice(
    model: ModelSpec | str | Path | Mapping[str, object],
    cluster: Cluster | None,
    workload: Workload,
    engine: str,
    split: str,
    objective: Objective,
    calibration: Calibration | str | Path | None,
) -> Choice:
    """Return what a planner opens with; without a cluster four H200s, or as many as there are layers."""
    if isinstance(model, ModelSpec):
        source = Source.of(model)
    else:
        source = Source.load(str(model) if isinstance(model, Path) else model)
    spec = source.model
    given = cluster or Cluster.uniform(_DEFAULT_GPU, pp_size=min(4, spec.num_layers))
    return Choice(
        source=source,
        base=spec,
        num_layers=spec.num_layers,
        gpus=given.gpus,
        tp_size=given.tp_size,
        link=given.link,
        engine=engine,
        objective=objective,
        split=split,
        workload=workload,
        basis=Basis.of(calibration),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Hold what the user brought along, which no table knows by name."""

    models: Mapping[str, Source] = field(default_factory=dict)
    gpus: Mapping[str, GPU] = field(default_factory=dict)
    bases: Mapping[str, Basis] = field(default_factory=dict)

    def plus(self, choice: Choice) -> Known:
        """Return what is known once ``choice`` was made."""
        return Known(
            models={choice.base.name: choice.source, **self.models},
            gpus={**self.gpus, **{gpu.name: gpu for gpu in choice.gpus}},
            bases={**self.bases, choice.basis.label: choice.basis},
        )

    def source(self, name: str) -> Source:
        """Return a model by its name, or load it; a configuration is told by its brace."""
        if name in self.models:
            return self.models[name]
        return Source.load(_configuration(name) if name.lstrip().startswith("{") else name)

    def gpu(self, name: str) -> GPU:
        """Return a device by its name."""
        return self.gpus[name] if name in self.gpus else find_gpu(name)

    def basis(self, label: str, gpus: tuple[GPU, ...]) -> Basis:
        """Return what times on these devices shall rest on.

        Raises:
            CalibrationError: If that is none of what can be chosen for them.
        """
        found = {basis.label: basis for basis in offered(gpus, self.bases.values())}
        if label not in found:
            raise CalibrationError(
                f"times here rest on {' or on '.join(found)}, but {label!r} is asked for; choose one of them"
            )
        return found[label]


# Every edit asks for them, few change the model.
@lru_cache(maxsize=4)
def _tp_sizes(model: ModelSpec) -> tuple[int, ...]:
    heads = [kind.attention for kind in model.kinds if kind.attention is not None]
    return tuple(
        size
        for size in range(1, _LARGEST_TP + 1)
        if all(
            head.q_heads % size == 0 and (head.kv_heads % size == 0 or size % head.kv_heads == 0)
            for head in heads
        )
    )


def _configuration(text: str) -> Mapping[str, object]:
    try:
        data: Mapping[str, object] = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(
            f"a configuration must be JSON, but line {error.lineno} column {error.colno} is not: "
            f"{error.msg}; paste the whole config.json"
        ) from None
    return data


def _whole(model: ModelSpec) -> Source:
    """Return where a model comes from; one with other layers than its own comes from the whole one."""
    name, _, layers = model.name.partition(" with ")
    if layers == f"{model.num_layers} layers":
        try:
            whole = Source.load(name)
        except ModelError:
            pass
        else:
            if whole.model.with_layers(model.num_layers) == model:
                return whole
    return Source.of(model)


def _split_text(plan: Plan) -> str:
    """Write a split so that planning it again gives the same plan, the remark on its choice included."""
    if plan.objective is None:
        return format_split(plan.split)
    # One free stage leaves no choice, but says that the split was chosen.
    return format_split((*plan.split[:-1], None))
