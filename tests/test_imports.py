"""Planning needs the standard library only, and says so by what it loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("IPython", "ipywidgets", "matplotlib", "msgpack", "numpy", "pandas", "torch")

PLAN = """
import pgplan as pg
plan = pg.plan("mixtral-8x7b", pg.Cluster.mixed(["H200", "L40S"]), objective="balanced")
str(plan), plan.to_svg(), plan._repr_html_(), str(plan.compare(plan))
plan.export("vllm"), pg.Plan.from_json(plan.to_json())
"""


def heavy_after(code):
    """Return which of the heavy packages a fresh interpreter has loaded after ``code``."""
    report = f"\nimport sys\nprint('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "code",
    [
        "import pgplan",
        "import pgplan as pg; pg.plan; pg.Plan; pg.load_model; pg.Cluster; dir(pg)",
        PLAN,
        "from pgplan.cli import main; main(['plan', 'llama-3.1-8b', '--gpu', 'L40S', '--pp', '2'])",
        "from pgplan.cli import main; main(['models']); main(['gpus']); main(['engines'])",
        "import pgplan.distributed",
        "import pgplan.launcher",
    ],
    ids=["import", "names", "plan", "command line", "listings", "distributed", "launcher"],
)
def test_nothing_heavy_is_loaded(code):
    assert heavy_after(code) == []


def test_import_alone_loads_no_room():
    code = "import sys, pgplan; print(*(n for n in sys.modules if n.startswith('pgplan.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", ["matplotlib", "numpy", "pandas"])
def test_the_check_can_fail(name):
    assert name in heavy_after(f"import {name}")


def test_what_needs_more_loads_it_when_called():
    assert "matplotlib" in heavy_after(f"{PLAN}\nplan.plot()")
    assert "pandas" in heavy_after(f"{PLAN}\nplan.to_frame()")
