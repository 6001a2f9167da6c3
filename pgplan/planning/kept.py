"""The costings of the last problems, kept while only the split changes: to prepare one takes milliseconds."""

from __future__ import annotations

from functools import lru_cache

from pgplan.engines import Engine, find_engine
from pgplan.hardware import Calibration, Cluster
from pgplan.model.spec import ModelSpec
from pgplan.planning.costing import Costing
from pgplan.workload import Workload


def costing_for(
    model: ModelSpec,
    cluster: Cluster,
    workload: Workload,
    engine: str | Engine,
    *,
    calibration: Calibration | None = None,
) -> Costing:
    """Return a ``Costing``, an earlier one where nothing but the split has changed since."""
    if isinstance(engine, str):
        # A plan names its engine with the version; who asks for it may not.
        label = find_engine(engine).label
        return _costing_for(model, cluster, workload, label, _Same(calibration))
    return Costing(model, cluster, workload, engine, calibration=calibration)


class _Same:
    """Let a calibration be looked up: equal is only the very same one, as comparing its tables takes long."""

    def __init__(self, calibration: Calibration | None) -> None:
        self.calibration = calibration

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.calibration is other.calibration

    def __hash__(self) -> int:
        return id(self.calibration)


@lru_cache(maxsize=4)
def _costing_for(model: ModelSpec, cluster: Cluster, workload: Workload, engine: str, same: _Same) -> Costing:
    return Costing(model, cluster, workload, find_engine(engine), calibration=same.calibration)
