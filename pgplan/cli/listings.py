"""The tables of what is known by name: models, GPUs, engines."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from pgplan.codec import to_data
from pgplan.engines import Engine, exporter_names, find_exporter, options_of
from pgplan.hardware import find_gpu, gpu_names
from pgplan.model import catalogue_entry, catalogue_names, load_model
from pgplan.split import format_split

GIB = 1 << 30


def print_models(args: Namespace) -> int:
    """Print the catalogue: layers, parameters, context, and what each model is."""
    models = [(catalogue_entry(name), load_model(name)) for name in catalogue_names()]
    if args.json:
        return _print_json(
            [
                {
                    "name": entry.name,
                    "source": entry.source,
                    "about": entry.about,
                    "architecture": model.architecture,
                    "num_layers": model.num_layers,
                    "parameters": model.parameters,
                    "active_parameters": model.active_parameters,
                    "max_position_embeddings": model.max_position_embeddings,
                    "dtype": model.dtype,
                }
                for entry, model in models
            ]
        )
    rows = [
        (
            entry.name,
            str(model.num_layers),
            f"{model.parameters / 1e9:.1f}B",
            str(model.max_position_embeddings),
            entry.about,
        )
        for entry, model in models
    ]
    _print_table(("model", "layers", "params", "context", "about"), rows, numbers=(1, 2, 3))
    return 0


def print_gpus(args: Namespace) -> int:
    """Print the GPU table: memory, bandwidth, matmul rates and links."""
    gpus = [find_gpu(name) for name in gpu_names()]
    if args.json:
        return _print_json([to_data(gpu) for gpu in gpus])
    rows = [
        (
            gpu.name,
            f"{'' if gpu.memory_is_exact else '~'}{gpu.memory_bytes / GIB:.1f}",
            f"{gpu.bandwidth / 1e12:.2f}",
            f"{(gpu.bf16 or gpu.fp16) / 1e12:.0f}",
            f"{gpu.fp8 / 1e12:.0f}" if gpu.fp8 else "-",
            gpu.link if gpu.pair_bandwidth else "PCIe",
            f"{(gpu.pair_bandwidth or gpu.pcie_bandwidth) / 1e9:.0f}",
        )
        for gpu in gpus
    ]
    titles = ("GPU", "GiB", "TB/s", "16-bit", "fp8", "link", "GB/s")
    _print_table(titles, rows, numbers=(1, 2, 3, 4, 6))
    print("\nGiB as CUDA reports it (~ estimated); TFLOPS dense; link: one way to one neighbour")
    return 0


def print_engines(args: Namespace) -> int:
    """Print what plans are made for and exported to, and what its own rule makes of 62 layers."""
    exporters = [find_exporter(name) for name in exporter_names()]
    if args.json:
        return _print_json(
            [
                {
                    "name": exporter.name,
                    "title": exporter.title,
                    "version": exporter.version,
                    "plans": isinstance(exporter, Engine),
                    "syntax": exporter.syntax,
                    "options": [option.usage for option in options_of(type(exporter)).values()],
                }
                for exporter in exporters
            ]
        )
    rows = [
        (
            exporter.name,
            exporter.version,
            "yes" if isinstance(exporter, Engine) else "-",
            format_split(exporter.default_split(62, 4) or ()) or "-",
            exporter.syntax,
        )
        for exporter in exporters
    ]
    _print_table(("engine", "version", "plans", "62 layers on 4", "reads its split from"), rows)
    print("\nplans: its memory is known, so plans are made for it; all can be exported to")
    print("\noptions of pgplan export:")
    for exporter in exporters:
        options = [option.usage for option in options_of(type(exporter)).values()]
        if options:
            print(f"  --to {exporter.name} [{'] ['.join(options)}]")
    return 0


def _print_json(data: Any) -> int:
    print(json.dumps(data, indent=1))
    return 0


def _print_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> None:
    """Print aligned columns, ``numbers`` to the right; a terminal too narrow for the last one cuts it."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    # What is piped on is for a program, and whole.
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for row in (titles, *rows):
        cells = [
            cell.rjust(width) if index in numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        print(line if len(line) <= limit else f"{line[: limit - 1]}…")
