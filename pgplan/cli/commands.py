"""What each command does. Each returns its exit code; bad input leaves as an error before any output."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import textwrap
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import pgplan
from pgplan.cli.app import serve
from pgplan.cli.arguments import EXPORTER_OPTION
from pgplan.cli.files import check_place, read_text, write_files
from pgplan.cli.listings import print_engines, print_gpus, print_models
from pgplan.errors import HardwareError, ModelError, PgplanError, PlanError
from pgplan.hardware import Calibration, Cluster, cpu_device, find_calibration, local_cluster
from pgplan.logs import check_log
from pgplan.model import ModelSpec, load_model
from pgplan.model.config import MAX_LAYERS
from pgplan.planning import Objective, Plan, plan
from pgplan.planning.moving import own_split
from pgplan.split import check_stage_count
from pgplan.view import plan_report
from pgplan.view.compare import own_words
from pgplan.workload import Workload


def _plan(args: Namespace) -> int:
    if args.json and args.compare_with:
        raise PlanError("--json prints one plan but --compare-with plans two; leave one of them out")
    model = _model(args)
    calibration = None if args.calibration is None else find_calibration(args.calibration)
    make = partial(
        plan,
        model,
        _cluster(args, num_layers=model.num_layers),
        workload=_workload(args),
        engine=args.engine,
        objective=cast(Objective, args.objective),
        calibration=calibration,
    )
    other = make(split=args.compare_with) if args.compare_with else None
    result = make(split=args.split)
    write_files(_files(args, result))
    if args.json:
        print(result.to_json())
    else:
        _report(result, other, calibration)
    return 0 if result.fits else 1


def _model(args: Namespace) -> ModelSpec:
    model = load_model(args.model, assume=args.assume, dtype=args.dtype)
    if args.layers is None:
        return model
    if args.layers > MAX_LAYERS:
        raise ModelError(f"--layers must be at most {MAX_LAYERS}, got {args.layers}; no decoder is so deep")
    return model.with_layers(args.layers)


def _cluster(args: Namespace, *, num_layers: int) -> Cluster:
    if args.pp is not None:
        check_stage_count(num_layers, args.pp)
    if args.gpus is not None:
        cluster = Cluster.mixed(args.gpus.split(","), tp_size=args.tp)
        if args.pp not in (None, cluster.pp_size):
            raise HardwareError(
                f"--gpus names the GPU of each stage but gives {cluster.pp_size} and --pp is {args.pp}; "
                f"give {args.pp} names or leave --pp out"
            )
        return cluster
    if args.gpu == "local":
        return local_cluster(pp_size=args.pp, tp_size=args.tp)
    if args.pp is None:
        raise HardwareError(f"--gpu {args.gpu} needs the number of stages, got no --pp; give e.g. --pp 4")
    # What was calibrated on this machine's CPU can be planned for, too.
    device = cpu_device() if args.gpu.lower() == "cpu" else args.gpu
    return Cluster.uniform(device, pp_size=args.pp, tp_size=args.tp)


def _workload(args: Namespace) -> Workload:
    given = {field.name: getattr(args, field.name) for field in fields(Workload)}
    return Workload(**{name: value for name, value in given.items() if value is not None})


def _read_plan(path: str) -> Plan:
    text = read_text(path, what="a plan")
    try:
        return Plan.from_json(text)
    except PlanError as error:
        raise PlanError(f"{path} cannot be read: {error}") from None


def _files(args: Namespace, result: Plan) -> list[tuple[str, bytes]]:
    """Return the files that were asked for, all rendered before the first is written."""
    files: list[tuple[str, bytes]] = []
    if args.output is not None:
        files.append((args.output, f"{result.to_json()}\n".encode()))
    if args.svg is not None:
        files.append((args.svg, result.to_svg().encode()))
    if args.png is not None:
        image = io.BytesIO()
        result.plot().savefig(image, format="png", dpi=150)
        files.append((args.png, image.getvalue()))
    if args.report is not None:
        files.append((args.report, plan_report(result).encode()))
    return files


def _report(result: Plan, other: Plan | None, calibration: Calibration | None) -> None:
    if other is not None:
        print(other, result, other.compare(result), sep="\n\n")
    else:
        print(result)
    if other is None and result.fits and result.pp_size > 1:
        # A split that is best for one thing may cost another.
        words = own_words(result, own_split(result, calibration=calibration))
        columns = shutil.get_terminal_size(fallback=(80, 24)).columns
        print("", *textwrap.wrap(words, max(20, columns), break_on_hyphens=False), sep="\n")
    if result.fits:
        print("", result.export(), sep="\n", end="")


def _export(args: Namespace) -> int:
    result = _read_plan(args.plan)
    options = {
        name.removeprefix(EXPORTER_OPTION): value
        for name, value in vars(args).items()
        if name.startswith(EXPORTER_OPTION)
    }
    print(result.export(args.to, **options), end="")
    if result.fits:
        return 0
    sys.stdout.flush()
    print(f"pgplan: the plan does not fit: {result.problems[0]}", file=sys.stderr)
    return 1


def _check(args: Namespace) -> int:
    result = _read_plan(args.plan)
    # A log may hold whatever a program printed.
    check = check_log(result, read_text(args.log, what="a log", errors="replace"))
    print(json.dumps(check.to_dict(), indent=1) if args.json else check)
    return 0 if check.agrees else 1


def _verify(args: Namespace) -> int:
    from pgplan.verification import verify

    given = _read_plan(args.plan)
    check_place(args.output)
    record = verify(given, backend=args.backend, show=None if args.json else "terminal")
    if args.output:
        write_files([(args.output, f"{record.to_json()}\n".encode())])
    print(record.to_json() if args.json else record)
    return 0 if record.passed else 1


def _lab(args: Namespace) -> int:
    if find_spec("jupyterlab") is None:
        raise PgplanError("lab needs JupyterLab, which is not installed; pip install 'pgplan[lab]'")
    notebooks = sorted(_notebooks().glob("*.ipynb"))
    folder = Path(tempfile.mkdtemp(prefix="pgplan-lab-"))
    for notebook in notebooks:
        shutil.copy(notebook, folder)
    print(f"notebooks: {folder}", flush=True)
    # JupyterLab takes this process over, so that its own questions on Ctrl-C are asked and answered.
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={folder}"]
    os.execv(sys.executable, [*command, *args.rest, *(str(folder / first.name) for first in notebooks[:1])])


def _app(args: Namespace) -> int:
    return serve(_notebooks() / "00_planner.ipynb", with_browser=not args.no_browser)


def _notebooks() -> Path:
    """Return the folder of the packaged notebooks; a checkout has them beside the package."""
    package = Path(pgplan.__file__).parent
    for folder in (package / "_notebooks", package.parent / "notebooks"):
        if folder.is_dir():
            return folder
    raise PgplanError(f"this installation has no notebooks beside {package}; install pgplan from its wheel")


def _calibrate(args: Namespace) -> int:
    from pgplan.verification.calibrating import calibrate, summary

    model = load_model(args.model)
    check_place(args.output)
    known = Calibration.load(args.output) if args.output and Path(args.output).exists() else None
    tp_sizes = None
    if args.tp is not None:
        tp_sizes = list(dict.fromkeys(_tp_size(word) for word in args.tp.split(",")))
    found = calibrate(
        model,
        gpu_count=args.gpu_count,
        tp_sizes=tp_sizes,
        quick=args.quick,
        known=known,
        show=None if args.json else "terminal",
    )
    if args.output:
        found.save(args.output)
    print(found.to_json() if args.json else summary(found))
    return 0


def _tp_size(word: str) -> int:
    if not word.strip().isdecimal() or int(word) < 1:
        raise HardwareError(f"--tp takes whole numbers of at least 1, got {word!r}; give e.g. --tp 1,2")
    return int(word)


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "plan": _plan,
    "export": _export,
    "check": _check,
    "verify": _verify,
    "calibrate": _calibrate,
    "models": print_models,
    "gpus": print_gpus,
    "engines": print_engines,
    "lab": _lab,
    "app": _app,
}
