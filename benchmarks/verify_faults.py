"""What ``verify.py`` runs beside its cases: two faults, and the command from its start to its report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from recording import save

import pgplan as pg
from pgplan.errors import LaunchError
from pgplan.launcher import Event
from pgplan.launcher.run import Run
from pgplan.verification import Verification, verify


def faults(plan: pg.Plan, out: Path) -> None:
    """Show that a stage too big by 1 % is named, that a killed worker is, and that nothing is left behind."""
    during: list[list[int]] = []
    before = used_mib()
    too_big = overfull(plan, stage=plan.pp_size - 1)
    record = verify(too_big, backend="nccl", timeout=120)
    found: dict[str, Any] = {
        "too big by 1 %": record.problems,
        "used MiB before and after": [before, used_mib()],
    }
    runs: list[Run] = []
    killed_s = [0.0]

    def kill(event: Event) -> None:
        if event.kind == "phase" and event.text == "decode" and event.rank == 1:
            during.append(used_mib())
            os.kill(runs[0].pids[1], signal.SIGKILL)
            killed_s[0] = time.perf_counter()

    try:
        verify(plan, backend="nccl", timeout=120, on_event=kill, on_run=runs.append)
        found["killed"] = ("NO ERROR",)
    except LaunchError as error:
        found["killed"] = (str(error),)
    found["killed: seconds to the error"] = [time.perf_counter() - killed_s[0]]
    found["killed: used MiB before the kill and after"] = [*during, used_mib()]
    print(json.dumps(found, indent=1))
    save(out / "faults.json", found)


def overfull(plan: pg.Plan, *, stage: int) -> pg.Plan:
    """Let one stage hold 1 % of the engine's budget more than there is room for."""
    planned = plan.stages[stage]
    more = replace(planned, kv_used_bytes=planned.kv_budget_bytes + planned.budget_bytes // 100)
    return replace(plan, stages=(*plan.stages[:stage], more, *plan.stages[stage + 1 :]))


def used_mib() -> list[int]:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()]


def command(plan: pg.Plan, out: Path) -> None:
    """Time ``pgplan verify`` from the command to the report, and say what the time goes into."""
    with tempfile.TemporaryDirectory() as folder:
        given, record = Path(folder, "plan.json"), Path(folder, "record.json")
        given.write_text(plan.to_json())
        began_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pgplan", "verify", str(given), "--json", "-o", str(record)],
            capture_output=True,
            text=True,
        )
        wall_s = time.perf_counter() - began_s
        print(f"{wall_s:.1f} s from the command to the report, exit code {done.returncode}")
        print(done.stderr[-2000:])
        if record.exists():
            phases = Verification.from_json(record.read_text()).phase_s
            print(json.dumps(phases, indent=1))
            save(
                out / "command.json",
                {"wall_s": wall_s, "phase_s": phases, "gpus": plan.pp_size * plan.tp_size},
            )
