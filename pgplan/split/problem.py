"""What the optimiser is asked and what it answers: costs as numbers, no models."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from pgplan.errors import InfeasibleError, SplitError
from pgplan.split.override import check_stage_count, format_split

StageCost = Callable[[int, int, int], float]
"""``(stage, start, stop) -> cost`` of that stage holding the layers ``[start, stop)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitProblem:
    """Describe one search for a contiguous split.

    Attributes:
        num_layers: Layers to place, in order.
        num_stages: Stages to fill, in order; each takes at least one layer.
        stage_cost: Cost of a stage for a range of layers; smaller is better, ``math.inf`` says that the
            range does not fit on that stage. Need not be a sum over layers.
        pins: Layer count per stage, ``None`` where it is free; ``None`` alone: all are free.
        forbidden_cuts: Layers that must not be the first of a stage.
        monotone: Promise that a cost does not fall when the range grows on either side (``inf`` included).
            It allows bisection; a cost that is seen to fall is reported as an error.
        stage_classes: Per stage any key; stages with equal keys have equal costs for equal ranges, so each
            range is asked for once per key. ``None``: every stage is on its own.
    """

    num_layers: int
    num_stages: int
    stage_cost: StageCost
    pins: tuple[int | None, ...] | None = None
    forbidden_cuts: frozenset[int] = frozenset()
    monotone: bool = True
    stage_classes: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        check_stage_count(self.num_layers, self.num_stages)
        for name, values in (("pins", self.pins), ("stage_classes", self.stage_classes)):
            if values is not None and len(values) != self.num_stages:
                raise SplitError(
                    f"{name} has {len(values)} entries but there are {self.num_stages} stages; "
                    f"give one per stage"
                )
        for stage, pin in enumerate(self.pins or ()):
            if pin is not None and pin < 1:
                raise SplitError(
                    f"every stage needs at least one layer but stage {stage} is pinned to {pin}; "
                    "pin 1 or more, or leave it free with None"
                )
        for cut in self.forbidden_cuts:
            if not 0 < cut < self.num_layers:
                raise SplitError(
                    f"a cut of {self.num_layers} layers is one of 1 to {self.num_layers - 1} "
                    f"but {cut} is forbidden; leave it out"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSolution:
    """Hold the best split and what each stage costs in it.

    Attributes:
        split: Layer counts per stage.
        stage_costs: Cost per stage, as ``stage_cost`` gave it.
        lexicographic: True if, beyond the slowest stage, the second slowest and all that follow are proven
            minimal too; False if only the slowest is.
    """

    split: tuple[int, ...]
    stage_costs: tuple[float, ...]
    lexicographic: bool

    @property
    def max_cost(self) -> float:
        """Return the cost of the most expensive stage."""
        return max(self.stage_costs)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitShortfall:
    """Say how far the layers reach when every stage takes as much as its limit allows.

    Attributes:
        stage: First stage that nothing can be placed on; ``num_stages`` if every stage holds something
            and layers are left over.
        placed_layers: Most layers that the stages before it hold together.
        num_layers: Layers to place.
    """

    stage: int
    placed_layers: int
    num_layers: int


class SplitInfeasibleError(InfeasibleError):
    """Report that every split exceeds some stage's limit; ``shortfall`` says how far the layers reach."""

    def __init__(self, shortfall: SplitShortfall, *, num_stages: int) -> None:
        placed, total = shortfall.placed_layers, shortfall.num_layers
        if shortfall.stage == num_stages:
            what = f"the {num_stages} stages hold at most {placed} of {total} layers"
        else:
            what = (
                f"no range of layers fits on stage {shortfall.stage} "
                f"after at most {placed} of {total} layers on the stages before it"
            )
        super().__init__(f"every stage must fit its limit but {what}; add stages, or raise the limits")
        self.shortfall = shortfall


def describe_constraints(problem: SplitProblem) -> str:
    """Return the pins and forbidden cuts of a problem in words, for a message."""
    parts = []
    if problem.pins is not None:
        parts.append(f"the pins {format_split(problem.pins)}")
    if problem.forbidden_cuts:
        parts.append(f"the forbidden cuts {','.join(map(str, sorted(problem.forbidden_cuts)))}")
    return " and ".join(parts)
