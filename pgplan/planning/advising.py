"""Say what would make a plan fit that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from pgplan.errors import PgplanError
from pgplan.hardware import Cluster
from pgplan.planning.choosing import Choice, roomiest_split
from pgplan.planning.costing import Costing
from pgplan.split import format_split
from pgplan.workload import Workload

# How far the search for more stages goes, as a multiple of those given.
_MOST_STAGES = 8


def advise(costing: Costing, *, split: tuple[int, ...]) -> str | None:
    """Return one sentence with changes that fit, each found by planning it; ``None``: nothing tried does."""
    mends = list(_mends(costing, split))
    return f"it would fit with {', or with '.join(mends[:3])}" if mends else None


def _mends(costing: Costing, split: tuple[int, ...]) -> Iterator[str]:
    choice = _choose(costing)
    if choice is not None and choice.split != split:
        yield f"the split {format_split(choice.split)}"
    workload = costing.workload
    usual = replace(workload, memory_utilization=None)
    share = costing.engine.settings(costing.model, costing.cluster, usual).memory_utilization
    if costing.settings.memory_utilization < share and _fits(costing, workload=usual):
        yield f"memory_utilization {share:g}"
    # One context after another that people set; the longest that fits is the one to name.
    for length in (131072, 65536, 32768, 16384, 8192, 4096, 2048):
        if workload.tokens_per_request <= length < costing.settings.max_model_len and _fits(
            costing, workload=replace(workload, max_model_len=length)
        ):
            yield f"max_model_len {length}"
            break
    if costing.settings.kv_element_bytes > 1 and _fits(costing, workload=replace(workload, kv_dtype="fp8")):
        yield "kv_dtype fp8"
    cluster = costing.cluster
    if cluster.is_uniform:
        most = min(costing.model.num_layers, cluster.pp_size * _MOST_STAGES)
        stages = _fewest(
            lambda count: _fits(costing, cluster=replace(cluster, gpus=(cluster.gpus[0],) * count)),
            above=cluster.pp_size,
            most=most,
        )
        if stages is not None:
            yield f"{stages} stages of {cluster.gpus[0].name}"
    if cluster.tp_size < 8 and _fits(costing, cluster=replace(cluster, tp_size=cluster.tp_size * 2)):
        yield f"tp_size {cluster.tp_size * 2}"


def _fewest(fits: Callable[[int], bool], *, above: int, most: int) -> int | None:
    """Return the least number beyond ``above`` that fits, as more fit where fewer do; ``None``: none does.

    >>> _fewest(lambda count: count >= 11, above=4, most=32)
    11
    """
    too_few, step = above, 1
    while not fits(enough := min(too_few + step, most)):
        if enough == most:
            return None
        too_few, step = enough, 2 * step
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if fits(middle) else (middle, enough)
    return enough


def _fits(costing: Costing, *, workload: Workload | None = None, cluster: Cluster | None = None) -> bool:
    try:
        changed = Costing(
            costing.model,
            cluster or costing.cluster,
            workload or costing.workload,
            costing.engine,
            calibration=costing.calibration,
        )
    except PgplanError:
        return False
    return _choose(changed) is not None


def _choose(costing: Costing) -> Choice | None:
    try:
        return roomiest_split(costing)
    except PgplanError:
        return None
