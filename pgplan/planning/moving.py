"""Say what moving one layer would bring, and what the engine's own split would be worth."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pgplan.errors import PgplanError
from pgplan.hardware import Calibration
from pgplan.planning.costing import Costing
from pgplan.planning.kept import costing_for
from pgplan.planning.outcome import Outcome, weigh
from pgplan.planning.record import Plan, split_ranges

# A gain below this is within the last digits of the sums.
_LEAST_GAIN = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Describe one layer's move from one stage to another.

    Args:
        source, target: The stages; the cuts between them move along.
        split: What it leads to.
        quantity: What gains: ``"decode"``, ``"prefill"``, ``"kv"`` or ``"memory"``.
        gain: By how much, as a fraction; for ``"memory"`` in bytes of the tightest stage.
    """

    source: int
    target: int
    split: tuple[int, ...]
    quantity: str
    gain: float


def best_move(
    plan: Plan, *, pinned: Collection[int] = (), calibration: Calibration | None = None
) -> Move | None:
    """Return the move of one layer off the bottleneck that helps most; ``None``: none helps.

    Only a move that takes a layer from the stage that holds the plan back can help: to a neighbour, or to
    the stage with the most to spare, which moves the cuts between them by one.

    >>> from pgplan import Cluster, plan
    >>> made = plan("llama-3.1-70b", Cluster.uniform("H200", pp_size=4), split="14,26,22,18")
    >>> move = best_move(made)
    >>> move.source, move.quantity, move.gain > 0
    (1, 'decode', True)
    """
    if plan.pp_size == 1 or plan.bottleneck.stage in pinned:
        return None
    costing = costing_for(plan.model, plan.cluster, plan.workload, plan.engine, calibration=calibration)
    quantity = plan.bottleneck.resource
    now = worth(plan, quantity)
    found: Move | None = None
    for target, split in _moves(plan, pinned):
        then = weigh(costing, split).worth(quantity)
        gain = then - now if quantity == "memory" else then / now - 1 if now > 0 else 0.0
        if gain > max(_LEAST_GAIN, found.gain if found else 0.0):
            found = Move(
                source=plan.bottleneck.stage, target=target, split=split, quantity=quantity, gain=gain
            )
    return found


def own_split(plan: Plan, *, calibration: Calibration | None = None) -> Outcome | None:
    """Return what the engine's own split amounts to; ``None``: it has none that can run."""
    costing = costing_for(plan.model, plan.cluster, plan.workload, plan.engine, calibration=calibration)
    # While cuts are dragged, all but the split stays the same.
    return costing.kept("own split", lambda: _own_split(costing))


def _own_split(costing: Costing) -> Outcome | None:
    try:
        split = costing.engine.default_split(costing.model.num_layers, costing.cluster.pp_size)
    except PgplanError:
        return None
    cuts = {stop for _, stop in split_ranges(split)}
    can_run = min(split) >= 1 and not cuts & {cut for cut, _ in costing.model.forbidden_cuts}
    return weigh(costing, split) if can_run else None


def worth(plan: Plan, quantity: str) -> float:
    """Return what a plan has of a bottleneck's resource: tokens, tokens per second, bytes to spare."""
    if quantity == "memory":
        return float(min(stage.kv_budget_bytes for stage in plan.stages))
    if quantity == "kv":
        return float(plan.kv_tokens)
    return plan.prefill_tokens_per_s if quantity == "prefill" else plan.decode_tokens_per_s


def _moves(plan: Plan, pinned: Collection[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    source = plan.bottleneck.stage
    if plan.split[source] == 1:
        return
    free = [stage for stage in plan.stages if stage.stage != source and stage.stage not in pinned]
    if not free:
        return
    spare = min(free, key=lambda stage: (_busy_s(plan, stage.stage), -stage.kv_tokens))
    targets = [source - 1, source + 1, spare.stage]
    forbidden = {cut for cut, _ in plan.model.forbidden_cuts}
    for target in dict.fromkeys(targets):
        if not 0 <= target < plan.pp_size or target in pinned:
            continue
        counts = list(plan.split)
        counts[source] -= 1
        counts[target] += 1
        if not forbidden & {stop for _, stop in split_ranges(tuple(counts))}:
            yield target, tuple(counts)


def _busy_s(plan: Plan, stage: int) -> float:
    found = plan.stages[stage]
    return found.prefill_busy_s if plan.bottleneck.resource == "prefill" else found.decode_busy_s
