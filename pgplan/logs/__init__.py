"""Hold a plan against the start-up log of the engine that runs it."""

from pgplan.logs.checking import check_log
from pgplan.logs.reading import StartupLog, Worker, read_log
from pgplan.logs.result import LogCheck, LogReading

__all__ = ["LogCheck", "LogReading", "StartupLog", "Worker", "check_log", "read_log"]
