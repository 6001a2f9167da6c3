"""llama.cpp: ``--tensor-split`` with the output layer counted, and ``--override-tensor`` beside it.

With ``--split-mode layer`` and everything offloaded there are ``n_layer + 1`` slots, the last of which is the
output layer. Slot ``i`` goes to the first device whose share of the proportions, summed up, exceeds
``i / (n_layer + 1)``. So the proportions are the layers of each stage and one more on the last: a plain
``40,40`` makes 41 and 39 of 80 layers. The input embedding stays in host memory.
"""

from __future__ import annotations

import math
import re
import shlex
import struct
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from pgplan.engines.exporter import Exporter, find_setting, listed
from pgplan.engines.launching import command, device_remarks, flag_words, kv_dtype_word
from pgplan.errors import EngineError

if TYPE_CHECKING:
    from pgplan.planning.record import Plan

# LLAMA_MAX_SEQ, and one less than llama_max_devices(), which --tensor-split must stay below.
_MOST_SEQUENCES, _MOST_STAGES = 256, 15
# It has no 8-bit floats; q8_0 is next to them, at 34 bytes for 32 elements.
_QUANTIZED = "q8_0"
_KV_TYPES = {
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "fp8": _QUANTIZED,
    "fp8_e4m3": _QUANTIZED,
}


class LlamaCpp(Exporter):
    """Write a ``llama-server`` line.

    Args:
        version: The build number; ``--fit`` came with PR #16653, in December 2025.
        override_tensor: Name the tensors of each stage as well; the KV cache follows the proportions.
        backend: What llama.cpp calls the devices, less their number.
        mtp_layers: Layers of multi-token prediction in the GGUF file; they are slots before the output and
            go to the last device.
    """

    name = "llama.cpp"
    title = "llama.cpp"
    default_version = "10666"
    writes = "`llama-server`"
    syntax = "--tensor-split a,b,c"
    checked = "its stated rule, computed in float32"

    def __init__(
        self,
        version: str | None = None,
        *,
        override_tensor: bool = False,
        backend: str = "CUDA",
        mtp_layers: int = 0,
    ) -> None:
        super().__init__(version)
        self.override_tensor, self.backend, self.mtp_layers = override_tensor, backend, mtp_layers

    def export(self, plan: Plan) -> str:
        """Return the line; its context is what the workload's requests need in all."""
        self.refuse_tp(plan, mend="plan with tp_size 1")
        if len(plan.split) > _MOST_STAGES:
            raise EngineError(
                f"llama.cpp takes at most {_MOST_STAGES} proportions, but the plan has {len(plan.split)} "
                f"stages; plan with pp_size {_MOST_STAGES} or less"
            )
        workload = plan.workload
        kv_dtype = kv_dtype_word(plan.model, workload, known=_KV_TYPES, title=self.title)
        requests = min(workload.concurrency, plan.settings.max_num_seqs, _MOST_SEQUENCES)
        flags: dict[str, object] = {
            "n-gpu-layers": 999,
            "split-mode": "layer",
            "tensor-split": ",".join(map(str, proportions(plan.split, mtp_layers=self.mtp_layers))),
            # Else llama.cpp would fit what is not given to the memory that it finds.
            "fit": "off",
            "ctx-size": requests * workload.tokens_per_request,
            "parallel": requests,
        }
        if kv_dtype:
            flags |= {"cache-type-k": kv_dtype, "cache-type-v": kv_dtype}
        if kv_dtype == _QUANTIZED:
            # Without it llama.cpp refuses to quantize values.
            flags["flash-attn"] = "on"
        if self.override_tensor:
            flags["override-tensor"] = shlex.quote(",".join(self._overrides(plan.split)))
        lines = [
            self.header(plan),
            "# MODEL.gguf: the model in llama.cpp's format; the last device also holds the output layer",
            *device_remarks(plan),
            command(["llama-server -m MODEL.gguf", *flag_words(flags)]),
        ]
        return "\n".join(lines) + "\n"

    def _overrides(self, split: Sequence[int]) -> list[str]:
        bounds = pairwise(accumulate(split, initial=0))
        return [
            rf"blk\.({range_pattern(start, stop)})\.={self.backend}{device}"
            for device, (start, stop) in enumerate(bounds)
        ]

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the proportions as llama.cpp does, and the tensors' devices if they are named."""
        offloaded = find_setting(text, "n-gpu-layers", "ngl", "gpu-layers")
        if offloaded is not None and offloaded.isdecimal() and int(offloaded) <= num_layers:
            raise EngineError(
                f"a split places every layer and the output on a GPU, but n-gpu-layers is {offloaded} of "
                f"{num_layers + 1}; give 999"
            )
        given = find_setting(text, "tensor-split", "ts", "LLAMA_ARG_TENSOR_SPLIT")
        named = find_setting(text, "override-tensor", "ot")
        by_name = None if named is None else _read_overrides(named, num_layers=num_layers, pp_size=pp_size)
        if given is None:
            return by_name
        by_share = assigned_layers(_shares(given), num_layers=num_layers + self.mtp_layers)
        by_share[-1] -= self.mtp_layers
        if by_name is not None and by_name != by_share:
            raise EngineError(
                f"tensor-split puts {by_share} layers on the devices and override-tensor {by_name}, so "
                f"layers and their KV cache would lie apart; make them agree"
            )
        return by_share


def proportions(split: Sequence[int], *, mtp_layers: int = 0) -> list[int]:
    """Return the ``--tensor-split`` that makes a split.

    >>> proportions((40, 40))
    [40, 41]
    """
    return [*split[:-1], split[-1] + mtp_layers + 1]


def assigned_layers(shares: Sequence[float], *, num_layers: int) -> list[int]:
    """Return the layers that each device gets, by llama.cpp's arithmetic in single precision.

    >>> assigned_layers([40, 40], num_layers=80)
    [41, 39]
    """
    sums = list(accumulate((_single(share) for share in shares), lambda left, right: _single(left + right)))
    if min(shares) < 0 or not 0 < sums[-1] < math.inf:
        raise EngineError(f"tensor-split gives positive shares, got {list(shares)}; give a count per device")
    ends = [_single(value / sums[-1]) for value in sums]
    devices = [bisect_right(ends, _single(layer / (num_layers + 1))) for layer in range(num_layers)]
    return [devices.count(device) for device in range(len(shares))]


def range_pattern(start: int, stop: int) -> str:
    """Return a regular expression for the whole numbers of ``[start, stop)``, without commas.

    >>> range_pattern(8, 31)
    '[8-9]|[1-2][0-9]|30'
    """
    parts = []
    while start < stop:
        # The largest aligned block of 1, 10, 100, ... numbers that begins here and ends in time.
        size = 1
        while start and start % (size * 10) == 0 and start + size * 10 <= stop:
            size *= 10
        lead, zeros = start // size, "[0-9]" * (len(str(size)) - 1)
        count = min((stop - start) // size, 10 - lead % 10)
        head, first = str(lead // 10) if lead >= 10 else "", lead % 10
        digit = str(first) if count == 1 else f"[{first}-{first + count - 1}]"
        parts.append(f"{head}{digit}{zeros}")
        start += count * size
    return "|".join(parts)


def _single(value: float) -> float:
    """Round to single precision, in which too much is infinite."""
    try:
        rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return rounded


def _shares(text: str) -> list[float]:
    words = listed(text.replace("/", ","))
    try:
        return [_single(float(word)) for word in words]
    except ValueError:
        raise EngineError(f"tensor-split is a list of numbers, got {text!r}; give e.g. 40,41") from None


def _read_overrides(text: str, *, num_layers: int, pp_size: int) -> list[int]:
    """Return the layers of each device, given ``regex=device`` pairs; each layer must be named."""
    pairs = [(_pattern(pair.rpartition("=")[0]), pair.rpartition("=")[2]) for pair in text.split(",")]
    counts = [0] * pp_size
    devices = []
    for layer in range(num_layers):
        name = f"blk.{layer}.attn_q.weight"
        device = next((device for pattern, device in pairs if pattern.search(name)), "")
        number = re.search(r"(\d+)$", device)
        if number is None or int(number[1]) >= pp_size:
            raise EngineError(
                f"override-tensor names a device of 0 to {pp_size - 1} for each layer, but puts {name} on "
                f"{device or 'none'}; name one"
            )
        devices.append(int(number[1]))
        counts[devices[-1]] += 1
    if devices != sorted(devices):
        raise EngineError(
            "a pipeline has each stage's layers in a row, but override-tensor goes back to an earlier "
            "device; order the layers by device"
        )
    return counts


def _pattern(text: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            # Python warns of brackets that it may read otherwise one day; llama.cpp reads them in C++.
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(text)
    except re.error as error:
        raise EngineError(
            f"override-tensor needs regular expressions, got {text!r}: {error}; mend it"
        ) from None
