"""One file per engine: default split, placement, memory budget, KV rule, refusals, export."""

from pgplan.engines.base import Engine, EngineSettings, KVCapacity, KVRule, Placement, StageMemory
from pgplan.engines.registry import engine_names, find_engine

__all__ = [
    "Engine",
    "EngineSettings",
    "KVCapacity",
    "KVRule",
    "Placement",
    "StageMemory",
    "engine_names",
    "find_engine",
]
