"""What a GPU can hold and do: the table of known devices and the lookup by name.

Rates are dense (no sparsity) and per second. Memory is the total that CUDA reports, because engines take
their fraction of that; it is exact for devices where it was read, and otherwise estimated, and says so.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Literal

from pgplan.errors import HardwareError

GIB = 1 << 30

# The H200 shows 143771 MiB in nvidia-smi and 150109880320 bytes to CUDA: 616 MiB stay with the driver.
_DRIVER_RESERVE_BYTES = 616 << 20
# Where only the nominal size is known, the truth lies between decimal gigabytes less inline ECC
# (an L40S of "48 GB" shows 48.3e9 bytes less the reserve) and binary ones (an H200 of "141 GB" shows
# 150.1e9). The plan takes the lower end: a promise that fails on the GPU is the worse mistake.
_NOMINAL_LOW = 0.985
_NOMINAL_SPAN = 0.08

# Devices without a published figure: what the measured ones of their class reach at the lower end.
_MATMUL_REACH = 0.75
_STREAM_REACH = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    """Describe one device.

    Args:
        name: Its name in the table.
        memory_bytes: Total memory as CUDA reports it.
        memory_error: How far the true memory may lie above ``memory_bytes``, as a fraction; 0: it was
            read from a device.
        bandwidth: Memory bandwidth of the data sheet, bytes per second.
        bf16, fp16, fp8, int8, fp4: Dense matmul rates of the data sheet, operations per second; 0: none.
        link: What joins it to its neighbours, e.g. ``"NVLink4"``, ``"none"``: then PCIe.
        link_bandwidth: Bytes per second one way, to all neighbours together.
        pair_bandwidth: The same to a single neighbour, which is what a pipeline hop uses.
        pcie_bandwidth: Bytes per second one way over PCIe.
        matmul_reach: The share of the matmul rate that a large product reaches (published or measured).
        stream_reach: The share of the bandwidth that a copy reaches.
        confidence: ``"high"``, ``"medium"`` or ``"low"``: how well the sources agree.
        source: Where the figures come from.
        note: What a reader should know.

    >>> mine = GPU(name="mine", memory_bytes=24 << 30, bandwidth=1.0e12, bf16=160e12)
    >>> mine.matmul_rate("fp8") == mine.bf16
    True
    """

    name: str
    vendor: str = ""
    architecture: str = ""
    memory_bytes: int
    memory_error: float = 0.0
    bandwidth: float
    bf16: float
    fp16: float = 0.0
    fp8: float = 0.0
    int8: float = 0.0
    fp4: float = 0.0
    link: str = "none"
    link_bandwidth: float = 0.0
    pair_bandwidth: float = 0.0
    pcie_bandwidth: float = 0.0
    matmul_reach: float = _MATMUL_REACH
    stream_reach: float = _STREAM_REACH
    confidence: Literal["high", "medium", "low"] = "medium"
    source: str = ""
    note: str = ""

    def __hash__(self) -> int:
        # Equal devices have equal names; the search looks devices up thousands of times.
        return hash(self.name)

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0 or self.bandwidth <= 0 or max(self.bf16, self.fp16) <= 0:
            raise HardwareError(
                f"a GPU needs memory, bandwidth and a matmul rate above 0, got memory_bytes="
                f"{self.memory_bytes}, bandwidth={self.bandwidth:g}, bf16={self.bf16:g} for {self.name}"
            )

    @property
    def memory_is_exact(self) -> bool:
        """Tell whether the memory was read from such a device rather than estimated."""
        return self.memory_error == 0.0

    def matmul_rate(self, compute: str) -> float:
        """Return the data-sheet rate for operands of ``compute``, in operations per second.

        A format that the device has no units for is computed in 16 bits, as engines do (an A100 runs
        fp8 weights through bf16 units), so the rate falls back to those.
        """
        sixteen = self.bf16 if compute != "fp16" else self.fp16
        return {"fp8": self.fp8, "int8": self.int8, "fp4": self.fp4 or self.fp8}.get(compute, 0.0) or (
            sixteen or self.bf16 or self.fp16
        )


def gpu_names() -> tuple[str, ...]:
    """Return the names in the table, in its order.

    >>> "H200 SXM 141GB" in gpu_names()
    True
    """
    return tuple(_table())


def find_gpu(name: str) -> GPU:
    """Return the device that ``name`` means; spelling is forgiven, ambiguity is not.

    Raises:
        HardwareError: If nothing or more than one device matches; names what is near.

    >>> find_gpu("h200").name
    'H200 SXM 141GB'
    >>> find_gpu("nvidia-l40s").memory_is_exact
    False
    """
    wanted = _tokens(name)
    if not wanted:
        raise HardwareError(f"a GPU needs a name, got {name!r}; see 'pgplan gpus'")
    table = _table()
    exact = [gpu for gpu in table.values() if _tokens(gpu.name) == wanted]
    matches = exact or [gpu for gpu in table.values() if wanted <= _tokens(gpu.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise HardwareError(
            f"GPU {name!r} may mean {', '.join(repr(gpu.name) for gpu in matches)}; name one of them"
        )
    near = get_close_matches(" ".join(sorted(wanted)), _spellings(), n=3, cutoff=0.45)
    hint = f"; near are {', '.join(dict.fromkeys(repr(_spellings()[word]) for word in near))}" if near else ""
    raise HardwareError(f"GPU {name!r} is not in the table{hint}; see 'pgplan gpus'")


# Makers' names say nothing that the model number does not; an "H100 80GB HBM3" is the SXM5 board.
_MEANINGLESS = frozenset({"nvidia", "amd", "intel", "gpu", "geforce", "tesla", "instinct", "the"})
_ALIASES = {"hbm3": "sxm", "sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm"}


def _tokens(name: str) -> frozenset[str]:
    text = re.sub(r"(\d+)\s*gi?b\b", r"\1gb", name.lower().replace("rtx", " "))
    words = re.findall(r"[a-z]+\d+[a-z0-9]*|\d+[a-z]*|[a-z]+", text)
    return frozenset(_ALIASES.get(word, word) for word in words if word not in _MEANINGLESS)


@cache
def _spellings() -> dict[str, str]:
    spellings: dict[str, str] = {}
    for name in gpu_names():
        spellings[" ".join(sorted(_tokens(name)))] = name
        for token in _tokens(name):
            spellings.setdefault(token, name)
    return spellings


@cache
def _table() -> dict[str, GPU]:
    text = files("pgplan.hardware").joinpath("gpus.csv").read_text(encoding="utf-8")
    return {row["name"]: _read_row(row) for row in csv.DictReader(text.splitlines())}


def _read_row(row: dict[str, str]) -> GPU:
    def rate(column: str) -> float:
        return float(row[column] or 0) * 1e12

    memory_bytes, memory_error = _memory(row)
    return GPU(
        name=row["name"],
        vendor=row["vendor"],
        architecture=row["architecture"],
        memory_bytes=memory_bytes,
        memory_error=memory_error,
        bandwidth=float(row["bandwidth_gb_s"]) * 1e9,
        bf16=rate("bf16"),
        fp16=rate("fp16"),
        fp8=rate("fp8"),
        int8=rate("int8"),
        fp4=rate("fp4"),
        link=row["link"],
        link_bandwidth=float(row["link_gb_s"]) * 1e9,
        pair_bandwidth=float(row["pair_gb_s"]) * 1e9,
        pcie_bandwidth=float(row["pcie_gb_s"]) * 1e9,
        matmul_reach=float(row["matmul_reach"] or _MATMUL_REACH),
        stream_reach=float(row["stream_reach"] or _STREAM_REACH),
        confidence=row["confidence"],  # type: ignore[arg-type]  # checked by a test over the whole table
        source=row["source"],
        note=row["note"],
    )


def _memory(row: dict[str, str]) -> tuple[int, float]:
    """Return the bytes that CUDA reports and how far they may be off."""
    if row["cuda_bytes"]:
        return int(row["cuda_bytes"]), 0.0
    if row["smi_gib"]:
        # nvidia-smi's total less what the driver keeps; the reserve varies by a few hundred MiB.
        return round(float(row["smi_gib"]) * GIB) - _DRIVER_RESERVE_BYTES, 0.01
    return round(float(row["nominal_gb"]) * 1e9 * _NOMINAL_LOW), _NOMINAL_SPAN
