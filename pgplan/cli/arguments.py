"""The words of the command line: its commands, their options, and how values are read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from pgplan import __version__
from pgplan.engines import engine_names, find_exporter, options_of
from pgplan.errors import EngineError, PlanError

# What the names of an exporter's options begin with, among all that were read.
EXPORTER_OPTION = "exporter option "

_SPLITS = "auto (the best), default (the engine's own), counts such as 19,21,21,19, * where free"
_OBJECTIVES = "what auto looks for: kv, decode (default), prefill, memory or balanced"


class _Parser(argparse.ArgumentParser):
    """Report wrong words in one line, like every other error, instead of after a usage text."""

    def error(self, message: str) -> NoReturn:
        raise PlanError(f"{message}; see '{self.prog} --help'")


class _ExpertParallel(argparse.Action):
    """Refuse expert parallelism by name rather than as an unknown option."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise EngineError(
            "expert parallelism is not planned, got --expert-parallel; give --tp, which cuts every expert"
        )


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the words after the program's name.

    Raises:
        PlanError: If they are not understood.
    """
    words = _join_values(argv)
    args, rest = _make_parser(words).parse_known_args(words)
    if rest and args.command != "lab":
        to = f" --to {args.to}" if args.command == "export" and args.to else ""
        raise PlanError(f"{' '.join(rest)} is not understood; see 'pgplan {args.command}{to} --help'")
    args.rest = rest
    return args


def _join_values(argv: Sequence[str]) -> list[str]:
    """Write ``--split -1,81`` as ``--split=-1,81``, or argparse takes the value for an option."""
    words: list[str] = []
    for word in argv:
        follows_option = bool(words) and words[-1].startswith("--") and "=" not in words[-1]
        if follows_option and re.match(r"-[^-oh]", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _make_parser(words: Sequence[str]) -> _Parser:
    parser = _Parser(
        prog="pgplan",
        allow_abbrev=False,
        description="Plan pipeline-parallel layer splits before a single weight is loaded.",
        epilog="Exit codes: 0 done, 1 the plan does not fit or hold, 2 bad input, 3 worker processes failed, "
        "130 ended by Ctrl-C.",
    )
    parser.add_argument("--version", action="version", version=f"pgplan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_plan(commands)
    export = _add_command(commands, "export", "write a plan as an engine's configuration")
    export.add_argument("plan", metavar="PLAN.json", help="what 'pgplan plan -o' wrote")
    export.add_argument("--to", metavar="ENGINE", help="e.g. sglang, megatron; default: the plan's own")
    if "export" in words:
        _add_exporter_options(export, words)
    check = _add_command(commands, "check", "hold a plan against the start-up log of its engine")
    check.add_argument("plan", metavar="PLAN.json", help="what 'pgplan plan -o' wrote")
    check.add_argument("--log", metavar="FILE", required=True, help="what vLLM or SGLang printed")
    _add_json(check)
    verify = _add_command(commands, "verify", "run a plan on the GPUs of this machine and compare")
    verify.add_argument("plan", metavar="PLAN.json", help="what 'pgplan plan -o' wrote")
    verify.add_argument(
        "--backend",
        choices=("auto", "nccl", "gloo"),
        default="auto",
        help="nccl for GPUs; gloo for CPU processes and a model made narrow (default: what is there)",
    )
    verify.add_argument("-o", dest="output", metavar="FILE", help="write the record as JSON")
    _add_json(verify)
    _add_calibrate(commands)
    for name, summary in (
        ("models", "list the models that are known by name"),
        ("gpus", "list the GPUs that are known by name"),
        ("engines", "list what plans are made for and exported to"),
    ):
        _add_json(_add_command(commands, name, summary))
    lab = _add_command(commands, "lab", "open JupyterLab on a fresh copy of the notebooks")
    lab.epilog = "Other options go to JupyterLab, e.g. pgplan lab --no-browser --port=8899"
    app = _add_command(commands, "app", "serve the planner without code cells to browsers of this machine")
    app.add_argument("--no-browser", action="store_true", help="only print the address")
    return parser


def _add_calibrate(commands: Any) -> None:
    calibrate = _add_command(commands, "calibrate", "measure a model's layers and the links of this machine")
    calibrate.add_argument("model", metavar="MODEL", help="a catalogue name, a config.json or its folder")
    calibrate.add_argument("-o", dest="output", metavar="FILE", help="write it, or add it to what is there")
    calibrate.add_argument("--gpu-count", type=_whole, metavar="N", help="GPUs to use (default: all)")
    calibrate.add_argument("--tp", metavar="A,B,...", help="tensor parallelism to time (default: 1,2,4,...)")
    calibrate.add_argument("--quick", action="store_true", help="measure at fewer sizes")
    _add_json(calibrate)


def _add_command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    return command


def _add_exporter_options(export: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of the exporter that ``--to`` names; without it, of those that plans are made for."""
    ahead = _Parser(prog="pgplan export", add_help=False, allow_abbrev=False)
    ahead.add_argument("--to")
    to = ahead.parse_known_args(words)[0].to
    kinds = [type(find_exporter(name)) for name in ([to] if to else engine_names())]
    known = {option.name: option for kind in kinds for option in options_of(kind).values()}
    group = export.add_argument_group(f"options of {to or 'the engines'}")
    for option in known.values():
        if option.type is bool:
            given: dict[str, Any] = {"action": "store_false" if option.default else "store_true"}
        else:
            given = {"type": _whole if option.type is int else str, "choices": option.choices or None}
            given["metavar"] = option.usage.partition(" ")[2]
        dest = f"{EXPORTER_OPTION}{option.name}"
        group.add_argument(option.flag, dest=dest, default=argparse.SUPPRESS, help=option.about, **given)
    if not to:
        export.epilog = "'pgplan export --to ENGINE --help' shows the options of another."


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def _add_plan(commands: Any) -> None:
    plan = _add_command(commands, "plan", "split a model over GPUs and say what every stage holds and takes")
    what = plan.add_argument_group("model")
    what.add_argument("model", metavar="MODEL", help="a catalogue name, a config.json or its folder")
    what.add_argument("--layers", type=_whole, metavar="N", help="what if it had N layers")
    what.add_argument("--dtype", help="dtype of activations and unquantized weights, e.g. float16")
    what.add_argument("--assume", metavar="FAMILY", help="llama: read an unknown plain decoder as Llama")

    where = plan.add_argument_group("GPUs")
    device = where.add_mutually_exclusive_group(required=True)
    device.add_argument("--gpu", metavar="NAME", help="the GPU of every stage; local: those of this machine")
    device.add_argument("--gpus", metavar="A,B,...", help="the GPU of each stage, where they differ")
    where.add_argument("--pp", type=_whole, metavar="N", help="stages")
    where.add_argument(
        "--tp", type=_whole, metavar="T", default=1, help="GPUs that share a stage (default 1)"
    )

    how = plan.add_argument_group("split")
    how.add_argument("--engine", default="vllm", help="e.g. vllm (default), vllm==0.24, sglang")
    how.add_argument("--split", default="auto", help=_SPLITS)
    how.add_argument("--objective", default="decode", help=_OBJECTIVES)
    how.add_argument("--compare-with", metavar="SPLIT", help="plan this split too and say what changes")
    hidden = ("--expert-parallel", "--enable-expert-parallel")
    how.add_argument(*hidden, action=_ExpertParallel, nargs=0, help=argparse.SUPPRESS)

    how.add_argument("--calibration", metavar="FILE", help="what 'pgplan calibrate' wrote, or a GPU's name")
    load = plan.add_argument_group("workload", "the engine's own limits where nothing is given")
    for name, meaning in (
        ("--prompt-tokens", "tokens of each prompt"),
        ("--output-tokens", "tokens generated for each request"),
        ("--concurrency", "requests served at the same time"),
        ("--max-model-len", "the longest context that the engine admits"),
        ("--max-num-batched-tokens", "the engine's limit of tokens per step"),
        ("--max-num-seqs", "the engine's limit of running requests"),
        ("--draft-tokens", "tokens that the model's own draft layers propose in a step"),
    ):
        load.add_argument(name, type=_whole, metavar="N", help=meaning)
    load.add_argument("--memory-utilization", type=_number, metavar="X", help="share of memory, e.g. 0.9")
    load.add_argument("--kv-dtype", metavar="DTYPE", help="of the KV cache, e.g. fp8")

    out = plan.add_argument_group("output")
    _add_json(out)  # type: ignore[arg-type]  # a group takes arguments as its parser does
    out.add_argument("-o", dest="output", metavar="FILE", help="write the plan as JSON")
    out.add_argument("--svg", metavar="FILE", help="write the picture as SVG")
    out.add_argument("--png", metavar="FILE", help="write the figure as PNG")
    out.add_argument("--report", metavar="FILE", help="write all there is to it as one HTML page")


def _whole(text: str) -> int:
    # Python's int also takes 1_000 and digits of other scripts; no figure here needs more than 12 digits.
    if not re.fullmatch(r"-?[0-9]{1,12}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a whole number such as 4, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number such as 0.9, got {text!r}") from None
