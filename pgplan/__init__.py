"""Plan, see, balance, prove and hand over pipeline-parallel layer splits of large language models.

>>> import pgplan as pg
>>> plan = pg.plan("llama-3.1-70b", pg.Cluster.uniform("H200", pp_size=4), objective="decode")
>>> sum(plan.split)
80

Names are loaded when they are first used, so ``import pgplan`` costs next to nothing and planning needs
only the standard library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgplan.engines import engine_names as engine_names
    from pgplan.engines import exporter_names as exporter_names
    from pgplan.engines import find_engine as find_engine
    from pgplan.engines import find_exporter as find_exporter
    from pgplan.errors import EngineError as EngineError
    from pgplan.errors import GroupError as GroupError
    from pgplan.errors import HardwareError as HardwareError
    from pgplan.errors import InfeasibleError as InfeasibleError
    from pgplan.errors import ModelError as ModelError
    from pgplan.errors import PgplanError as PgplanError
    from pgplan.errors import PlanError as PlanError
    from pgplan.errors import SplitError as SplitError
    from pgplan.errors import WorkloadError as WorkloadError
    from pgplan.hardware import GPU as GPU
    from pgplan.hardware import Calibration as Calibration
    from pgplan.hardware import Cluster as Cluster
    from pgplan.hardware import Link as Link
    from pgplan.hardware import find_gpu as find_gpu
    from pgplan.hardware import gpu_names as gpu_names
    from pgplan.hardware import local_cluster as local_cluster
    from pgplan.logs import check_log as check_log
    from pgplan.model import ModelSpec as ModelSpec
    from pgplan.model import catalogue_names as catalogue_names
    from pgplan.model import load_model as load_model
    from pgplan.planning import Plan as Plan
    from pgplan.planning import plan as plan
    from pgplan.verification import Verification as Verification
    from pgplan.verification import calibrate as calibrate
    from pgplan.verification import verify as verify
    from pgplan.widgets import Planner as Planner
    from pgplan.workload import Workload as Workload

__version__ = "0.1.0"

_HOMES = {
    "pgplan.engines": ("engine_names", "exporter_names", "find_engine", "find_exporter"),
    "pgplan.errors": (
        "EngineError",
        "GroupError",
        "HardwareError",
        "InfeasibleError",
        "ModelError",
        "PgplanError",
        "PlanError",
        "SplitError",
        "WorkloadError",
    ),
    "pgplan.hardware": ("GPU", "Calibration", "Cluster", "Link", "find_gpu", "gpu_names", "local_cluster"),
    "pgplan.logs": ("check_log",),
    "pgplan.model": ("ModelSpec", "catalogue_names", "load_model"),
    "pgplan.planning": ("Plan", "plan"),
    "pgplan.verification": ("Verification", "calibrate", "verify"),
    "pgplan.widgets": ("Planner",),
    "pgplan.workload": ("Workload",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "GPU",
    "Calibration",
    "Cluster",
    "EngineError",
    "GroupError",
    "HardwareError",
    "InfeasibleError",
    "Link",
    "ModelError",
    "ModelSpec",
    "PgplanError",
    "Plan",
    "PlanError",
    "Planner",
    "SplitError",
    "Verification",
    "Workload",
    "WorkloadError",
    "calibrate",
    "catalogue_names",
    "check_log",
    "engine_names",
    "exporter_names",
    "find_engine",
    "find_exporter",
    "find_gpu",
    "gpu_names",
    "load_model",
    "local_cluster",
    "plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pgplan' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
