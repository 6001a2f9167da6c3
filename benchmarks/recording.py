"""Say what a benchmark's figures were measured on, sum them up, and keep them."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("pgplan", "torch", "ipykernel", "ipywidgets")


def machine(*packages: str) -> dict[str, Any]:
    """Return where, when and with what is measured.

    Args:
        packages: Those whose versions matter beside the usual ones.
    """
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "gpus": _gpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*PACKAGES, *packages)},
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.check_output(command, text=True).splitlines()
    except OSError:
        return []


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def summary(values: list[float]) -> dict[str, float]:
    """Return best, median and 95th percentile in ms; the best is what the machine does undisturbed."""
    ranked = sorted(values)
    return {
        "best_ms": round(ranked[0], 2),
        "median_ms": round(statistics.median(ranked), 2),
        "p95_ms": round(ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))], 2),
    }


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval, from the order statistics."""
    ordered, n = sorted(values), len(values)
    half = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return statistics.median(ordered), ordered[low], ordered[high]


def in_a_cell(times: dict[str, float]) -> str:
    """Write a summary as a table shows it: best / median / 95th percentile."""
    return f"{times['best_ms']:.1f} / {times['median_ms']:.1f} / {times['p95_ms']:.1f}"


def met(value: float, goal: float) -> str:
    """Say whether a figure is within its goal."""
    return "met" if value <= goal else "MISSED"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a result as a whole: who reads the file finds this one or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)
