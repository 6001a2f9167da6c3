"""What a user of the planner has chosen, as one frozen value, and what an edit makes of it.

Edits are pure functions from one choice to the next; the widget only shows them. A value that an edit makes
impossible (more stages than layers, a split for another number of stages) moves to the nearest possible
one, and the move is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from pgplan.errors import HardwareError, SplitError
from pgplan.hardware import GPU, Cluster, Link, find_gpu
from pgplan.model import load_model
from pgplan.model.spec import ModelSpec
from pgplan.planning import Objective, Plan, plan
from pgplan.split import format_split, parse_split
from pgplan.workload import Workload

_LARGEST_TP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Hold everything that decides a plan.

    Args:
        base: The model with its own number of layers.
        num_layers: How many it shall have.
        gpus: The device of each stage.
        tp_size: Ranks that share a stage.
        link: What joins the stages; ``None``: what the devices have.
        engine, objective, split, workload: As ``pgplan.plan`` takes them; the split as text.
    """

    base: ModelSpec
    num_layers: int
    gpus: tuple[GPU, ...]
    tp_size: int
    link: Link | None
    engine: str
    objective: Objective
    split: str
    workload: Workload

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
    def tp_sizes(self) -> tuple[int, ...]:
        """Return the tensor-parallel sizes that divide the heads of every layer."""
        heads = [kind.attention for kind in self.base.kinds if kind.attention is not None]
        return tuple(
            size
            for size in range(1, _LARGEST_TP + 1)
            if all(
                head.q_heads % size == 0 and (head.kv_heads % size == 0 or size % head.kv_heads == 0)
                for head in heads
            )
        )

    def plan(self) -> Plan:
        """Make the plan.

        Raises:
            PgplanError: If some value is wrong, or nothing satisfies the pins.
        """
        return plan(
            self.base.with_layers(self.num_layers),
            Cluster(gpus=self.gpus, tp_size=self.tp_size, link=self.link),
            workload=self.workload,
            engine=self.engine,
            split=self.split,
            objective=self.objective,
        )

    @classmethod
    def from_plan(cls, plan: Plan) -> Choice:
        """Return the choice that gives ``plan`` again; its split is then given rather than searched."""
        return cls(
            base=plan.model,
            num_layers=plan.model.num_layers,
            gpus=plan.cluster.gpus,
            tp_size=plan.tp_size,
            link=plan.cluster.link,
            engine=plan.engine,
            objective=plan.objective or "decode",
            split=format_split(plan.split),
            workload=plan.workload,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Hold what the user brought along, which no table knows by name."""

    models: Mapping[str, ModelSpec]
    gpus: Mapping[str, GPU]

    def model(self, name: str) -> ModelSpec:
        """Return a model by its name, or load it."""
        return self.models[name] if name in self.models else load_model(name)

    def gpu(self, name: str) -> GPU:
        """Return a device by its name."""
        return self.gpus[name] if name in self.gpus else find_gpu(name)


def edit(choice: Choice, field: str, value: object, known: Known) -> tuple[Choice, tuple[str, ...]]:
    """Return the choice after one edit, and what else had to move.

    Args:
        choice: What was chosen before.
        field: ``"model"``, ``"layers"``, ``"pp"``, ``"tp"``, ``"gpu"``, ``"engine"``, ``"objective"`` or
            ``"split"``.
        value: Its new value, as the control gives it.
        known: Models and devices that the user brought along.

    Raises:
        PgplanError: If the value is wrong in itself.
    """
    if field == "model":
        model = known.model(str(value))
        edited = replace(choice, base=model, num_layers=model.num_layers)
    elif field == "layers":
        edited = replace(choice, num_layers=cast(int, value))
    elif field == "pp":
        edited = replace(choice, gpus=_resized(choice.gpus, cast(int, value)))
    elif field == "gpu":
        edited = replace(choice, gpus=_devices(str(value), choice.pp_size, known))
    elif field == "tp":
        edited = replace(choice, tp_size=cast(int, value))
    else:
        # engine, objective and split are taken as they are; planning checks them.
        edited = replace(choice, **{field: value})  # type: ignore[arg-type]
    return _settle(edited, keep_split=field == "split")


def _settle(choice: Choice, *, keep_split: bool) -> tuple[Choice, tuple[str, ...]]:
    """Move what has become impossible, and say so."""
    moves = []
    if choice.pp_size > choice.num_layers:
        moves.append(
            f"pp_size {choice.pp_size} → {choice.num_layers}: the model has {choice.num_layers} layers"
        )
        choice = replace(choice, gpus=_resized(choice.gpus, choice.num_layers))
    if choice.tp_size not in choice.tp_sizes:
        size = max(size for size in choice.tp_sizes if size <= choice.tp_size)
        moves.append(f"tp_size {choice.tp_size} → {size}: it must divide the heads of {choice.base.name}")
        choice = replace(choice, tp_size=size)
    if not keep_split and choice.split.strip() not in ("auto", "default"):
        try:
            parse_split(choice.split, num_layers=choice.num_layers, pp_size=choice.pp_size)
        except SplitError:
            moves.append(
                f"split {choice.split} → auto: it is not one of {choice.num_layers} layers over "
                f"{choice.pp_size} stages"
            )
            choice = replace(choice, split="auto")
    return choice, tuple(moves)


def _resized(gpus: tuple[GPU, ...], pp_size: int) -> tuple[GPU, ...]:
    return gpus[:pp_size] + gpus[-1:] * (pp_size - len(gpus))


def _devices(text: str, pp_size: int, known: Known) -> tuple[GPU, ...]:
    """Read one device for all stages, or one per stage; as many names give as many stages."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise HardwareError(f"GPUs are named one per stage, but {text!r} has an empty name; e.g. H200, L40S")
    devices = tuple(known.gpu(name) for name in names)
    return devices * pp_size if len(devices) == 1 else devices
