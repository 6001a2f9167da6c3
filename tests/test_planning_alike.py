"""Ranges that planning takes for equal cost the same wherever they stand, in models as they are published."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pgplan as pg
from pgplan.engines import find_engine
from pgplan.errors import PgplanError
from pgplan.model import catalogue_names
from pgplan.planning.costing import Costing

LENGTHS = (1, 2, 5)


def costings(engine: str) -> Iterator[Costing]:
    """Yield every model of the catalogue that the engine plans on three GPUs."""
    cluster = pg.Cluster.uniform("H200", pp_size=3)
    for name in catalogue_names():
        try:
            yield Costing(pg.load_model(name), cluster, pg.Workload(), find_engine(engine))
        except PgplanError:
            continue


def figures(costing: Costing, span: tuple[int, int]) -> list[float]:
    """Return all that choosing and evaluating ask of a range on the stage in the middle."""
    rule, pool = costing.kv_rule, costing.kv_budget_bytes(1, *span)
    times = (costing.prefill_times(), costing.decode_times(16))
    return [
        pool,
        rule.bytes_per_unit(*span),
        rule.units(*span, pool),
        rule.admits(*span, pool),
        rule.state_bytes(*span, pool, requests=3),
        rule.sequence_bytes(*span),
        *rule.capacity([span], [costing.stage_memory(1, *span)]).stage_tokens,
        costing.range_layer_bytes(*span),
        costing.range_parameters(*span),
        *(costing.stage_s(phase, 1, *span) for phase in times),
    ]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_ranges_that_are_taken_for_alike_are(engine: str) -> None:
    moved = 0
    for costing in costings(engine):
        last = costing.model.num_layers
        for length in LENGTHS:
            for start in {1, last // 2, last - length}:
                span = (start, start + length)
                alike = costing.alike(*span)
                moved += alike != span
                assert figures(costing, span) == figures(costing, alike), (costing.model.name, span)
    # Otherwise this would show nothing.
    assert moved > 100


def test_an_equal_stage_elsewhere_keeps_its_own_place() -> None:
    cluster = pg.Cluster.uniform("H200", pp_size=4)
    for split in ((19, 21, 20, 20), (20, 21, 20, 19), (21, 21, 19, 19), (19, 21, 21, 19)):
        stages = pg.plan("llama-3.1-70b", cluster, split=split).stages
        assert [(stage.stage, stage.start, stage.stop) for stage in stages] == [
            (index, sum(split[:index]), sum(split[: index + 1])) for index in range(4)
        ]
