"""One file per program that takes a split: what it reads, and, for engines, what its memory holds."""

from pgplan.engines.base import Engine, EngineSettings, KVCapacity, KVRule, Placement, StageMemory
from pgplan.engines.exporter import Exporter
from pgplan.engines.options import Option, options_of
from pgplan.engines.registry import engine_names, exporter_names, find_engine, find_exporter
from pgplan.engines.table import engine_table, option_table

__all__ = [
    "Engine",
    "EngineSettings",
    "Exporter",
    "KVCapacity",
    "KVRule",
    "Option",
    "Placement",
    "StageMemory",
    "engine_names",
    "engine_table",
    "exporter_names",
    "find_engine",
    "find_exporter",
    "option_table",
    "options_of",
]
