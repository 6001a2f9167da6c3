"""What a verification measured, laid over what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pgplan.verification import Verification
from pgplan.view.numbers import significant
from pgplan.view.parts import STEADY, Marks
from pgplan.view.shapes import along, bars, lines, text

_WIDTH, _LABEL, _PITCH, _BAR = 640.0, 150.0, 20.0, 11.0
_QUANTITIES = (("weight_bytes", "weights"), ("prefill_s", "prefill"), ("decode_s", "decode"))
_MIB, _GIB = 2.0**20, 2.0**30


def measured_marks(record: Verification) -> Marks:
    """Return the marks of what was measured on GPUs, for the picture of the plan."""
    stages = record.stages
    # A hop is measured where it arrives and counts where it leaves.
    decode_hops = [*(stage.handoff_decode for stage in stages[1:]), None]
    prefill_hops = [*(stage.handoff_prefill for stage in stages[1:]), None]
    return Marks(
        label="measured",
        memory_bytes=tuple(
            stage.weight_bytes + stage.kv_bytes + stage.prefill_peak_bytes for stage in stages
        ),
        decode_s=tuple(
            stage.decode.mean_s + (hop.median_s if hop else 0.0)
            for stage, hop in zip(stages, decode_hops, strict=True)
        ),
        prefill_s=tuple(
            stage.prefill.mean_s + (hop.median_s if hop else 0.0)
            for stage, hop in zip(stages, prefill_hops, strict=True)
        ),
    )


def unit_of(quantity: str, value: float) -> tuple[float, str]:
    """Return the unit that suits a value, and its name; the quantity's name tells what it counts.

    >>> unit_of("weight_bytes", 28e9)[1], unit_of("weight_bytes", 28e6)[1], unit_of("decode_s", 0.015)[1]
    ('GiB', 'MiB', 'ms')
    """
    if quantity.endswith("_bytes"):
        return (_GIB, "GiB") if abs(value) >= _GIB else (_MIB, "MiB")
    return (1e-3, "ms") if quantity.endswith("_s") else (1.0, "")


def measured_svg(record: Verification) -> str:
    """Draw every stage's figures as bars, predicted, with the measured ones laid over them."""
    pieces: list[str] = []
    y = 8.0
    for quantity, name in _QUANTITIES:
        items = [
            item for item in record.comparisons if item.quantity == quantity and item.what.startswith("stage")
        ]
        if items:
            # One unit for the panel, or its figures could not be compared.
            unit, unit_name = unit_of(quantity, max(item.predicted for item in items))
            rows = [(item.what, item.predicted / unit, item.measured / unit) for item in items]
            pieces += _panel(f"{name}, {unit_name}", rows, y)
            y += (len(rows) + 1.5) * _PITCH
    if not pieces:
        return ""
    label = escape("measured figures over predicted ones, stage by stage; the table has the numbers")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {y:g}" width="{_WIDTH:g}" '
        f'role="img" aria-label="{label}" style="max-width:100%;height:auto" fill="currentColor">'
        f"{''.join(pieces)}</svg>"
    )


def _panel(title: str, rows: Sequence[tuple[str, float, float]], top: float) -> list[str]:
    scale = (_WIDTH - _LABEL - 150) / max(max(predicted, measured) for _, predicted, measured in rows)
    pieces = [text(0, top + 12, title, font=12, bold=True)]
    pieces.append(text(_LABEL, top + 12, "bar: predicted, line: measured", font=11, faint=True))
    boxes, path = [], ""
    for index, (what, predicted, measured) in enumerate(rows, start=1):
        y = top + index * _PITCH
        boxes.append((_LABEL, y, predicted * scale, _BAR))
        path += f"M{_LABEL:g} {y + _BAR + 1.5:.1f}h{measured * scale:.1f}v-{_BAR + 1.5:g}"
        pieces.append(text(_LABEL - 8, y + 10, what, font=11, anchor="end"))
        end = _LABEL + max(predicted, measured) * scale + 6
        pieces.append(text(end, y + 10, f"{significant(predicted)} → {significant(measured)}", font=11))
    return [*pieces, bars(along(boxes), _BAR, STEADY), lines(path, "currentColor", width=2)]
