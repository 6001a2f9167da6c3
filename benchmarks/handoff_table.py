"""Sum up what the ranks of ``handoff.py`` measured, print it, and hold it against the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from handoff_methods import KIB, MIB
from recording import interval

SMALL_BYTES, LARGE_BYTES = 256 * KIB, 16 * MIB
# What a small hop may take more than a raw one, and of raw bandwidth what a large one must reach.
EXTRA_US, SHARE = 5.0, 0.97


def summarise(ranks: tuple[dict[str, Any], ...], *, tp_size: int) -> dict[str, Any]:
    """Bring what the ranks saw into one table."""
    first = ranks[0]
    sizes = {size: summarise_size(ranks, size, tp_size=tp_size) for size in first["sizes"]}
    summary: dict[str, Any] = {"sizes": sizes, "sliced_from_bytes": first["sliced_from_bytes"]}
    if "default_group" in first:
        summary["default_group"] = summarise_default_group(first["default_group"])
    if "overlap" in first:
        summary["overlap"] = first["overlap"]
    return summary


def summarise_size(ranks: tuple[dict[str, Any], ...], size_text: str, *, tp_size: int) -> dict[str, Any]:
    """Set every method beside raw, turn by turn; of the tp ranks that send, the slowest counts in each."""
    seen = [rank["sizes"][size_text] for rank in ranks]
    first, senders = seen[0], seen[:tp_size]
    turns = {
        name: [max(times) for times in zip(*(sender["turns"][name] for sender in senders), strict=True)]
        for name in first["turns"]
    }
    answer_s = statistics.median(turns.pop("answer"))
    streamed_s = {name: max(rank["streamed"][name] for rank in seen) for name in turns}
    rows = {}
    for name, times in turns.items():
        raw = "raw sliced" if name == "pgplan sliced" else "raw"
        difference = interval([t - b for t, b in zip(times, turns[raw], strict=True)])
        shares = [(b - answer_s) / max(1e-9, t - answer_s) for t, b in zip(times, turns[raw], strict=True)]
        share, least, most = interval(shares)
        rows[name] = {
            "round_trip_us": statistics.median(times) * 1e6,
            "over_raw_us": [value * 1e6 for value in difference],
            "hop_us": (statistics.median(times) - answer_s) * 1e6,
            "bandwidth_of_raw": share,
            "bandwidth_of_raw_95": [least, most],
            "streamed_us": streamed_s[name] * 1e6,
            "streamed_GB_per_s": int(size_text) / streamed_s[name] / 1e9,
            "streamed_of_raw": streamed_s[raw] / streamed_s[name],
            "bit_equal": all(rank["equal"][name] for rank in seen),
            "sent_bytes_per_rank": first["sent"].get(name),
        }
    return {"repetitions": len(first["turns"]["answer"]), "answer_us": answer_s * 1e6, "methods": rows}


def summarise_default_group(found: dict[str, Any]) -> dict[str, Any]:
    """Set the stateless group beside torch.distributed's default group."""
    round_trips = {}
    for size_text, turns in found["turns"].items():
        difference = interval([s - d for s, d in zip(turns["stateless"], turns["default"], strict=True)])
        round_trips[size_text] = {
            "stateless_us": statistics.median(turns["stateless"]) * 1e6,
            "default_us": statistics.median(turns["default"]) * 1e6,
            "stateless_over_default_us": [value * 1e6 for value in difference],
        }
    return {"made": found["made"], "round_trips": round_trips}


def show(layout: str, summary: dict[str, Any]) -> None:
    print(f"\n{layout}")
    print(
        f"{'size':>8} {'method':<14} {'round trip':>11} {'over raw, 95 %':>26} "
        f"{'of raw, 95 %':>22} {'streamed':>18}"
    )
    for size_text, entry in summary["sizes"].items():
        for name, row in entry["methods"].items():
            median, low, high = row["over_raw_us"]
            share, (least, most) = row["bandwidth_of_raw"], row["bandwidth_of_raw_95"]
            print(
                f"{human(int(size_text)):>8} {name:<14} {row['round_trip_us']:8.1f} us "
                f"{median:+8.1f} [{low:+6.1f}, {high:+6.1f}] {share:6.1%} [{least:6.1%}, {most:6.1%}] "
                f"{row['streamed_us']:8.1f} us {row['streamed_GB_per_s']:6.1f} GB/s"
                + ("" if row["bit_equal"] else "  BYTES DIFFER")
            )
    if summary["sliced_from_bytes"] is not None or not layout.endswith("tp 1"):
        print(f"pgplan slices from {summary['sliced_from_bytes']} bytes on, by what it measured")
    if "overlap" in summary:
        o = summary["overlap"]
        parts = ", ".join(f"{name} {o[name] * 1e6:.0f} us" for name in ("compute", "hops", "both"))
        print(f"overlap at {human(o['size_bytes'])}: {parts}")
    if "default_group" in summary:
        made = summary["default_group"]["made"]
        print(f"made: stateless group {made['stateless_s']:.3f} s, default group {made['default_s']:.3f} s")
        for size_text, row in summary["default_group"]["round_trips"].items():
            median, low, high = row["stateless_over_default_us"]
            print(
                f"{human(int(size_text)):>8} stateless {row['stateless_us']:8.1f} us, "
                f"over the default group {median:+6.1f} [{low:+6.1f}, {high:+6.1f}]"
            )


def verdicts(
    layout: str, summary: dict[str, Any], *, pp_size: int, judged: bool
) -> Iterator[tuple[bool, str]]:
    """Hold a layout against what the hand-off has to show; a chain of stages makes ``pp_size - 1`` hops."""
    for size_text, entry in summary["sizes"].items():
        size = int(size_text)
        for name, row in entry["methods"].items():
            if not row["bit_equal"]:
                yield False, f"{layout}, {human(size)}, {name}: the bytes differ"
        for name in ("pgplan", "pgplan sliced"):
            row = entry["methods"].get(name)
            if row is None or not judged:
                continue
            if size < SMALL_BYTES:
                median, low, high = (value / (pp_size - 1) for value in row["over_raw_us"])
                said = f"{median:+.1f} us over raw per hop [{low:+.1f}, {high:+.1f}]"
                yield median <= EXTRA_US, f"{layout}, {human(size)}, {name}: {said}"
            elif size >= LARGE_BYTES:
                share, (least, most) = row["bandwidth_of_raw"], row["bandwidth_of_raw_95"]
                said = f"{share:.1%} of raw bandwidth [{least:.1%}, {most:.1%}]"
                yield share >= SHARE, f"{layout}, {human(size)}, {name}: {said}"
        sliced = entry["methods"].get("pgplan sliced")
        if sliced:
            sent = sliced["sent_bytes_per_rank"]
            share = sent * int(layout.split()[-1]) == entry["methods"]["pgplan"]["sent_bytes_per_rank"]
            yield share, f"{layout}, {human(size)}: sliced sends {sent} bytes per rank"


def human(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
