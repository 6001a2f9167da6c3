"""What a verification says: a line of headline, a table of its figures, and sentences on what follows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pgplan.verification.comparing import is_emulated, measured_parts
from pgplan.verification.memory import readable_bytes
from pgplan.verification.record import Verification


def sentences(record: Verification) -> tuple[str, ...]:
    """Return what a reader should know, the most important first."""
    found = list(record.problems)
    for check in record.checks:
        verdict = "holds" if check.passed else "FAILS"
        found.append(f"{check.name}: {verdict} ({check.detail}; {check.error:.1e} of {check.tolerance:.0e})")
    found += record.unchecked
    misses = [item for item in record.comparisons if not item.passed]
    for item in sorted(misses, key=lambda item: abs(item.ratio - 1), reverse=True):
        found.append(
            f"{item.what}: {item.quantity} is {item.measured:.6g}, {100 * (item.ratio - 1):+.1f} % from the "
            f"predicted {item.predicted:.6g}; promised are {100 * (item.tolerance or 0):.1f} %"
        )
    found += _limits(record)
    found += _reading(record)
    kernels = record.environment.get("kernels")
    if kernels and is_emulated(record):
        found.append(
            f"products with quantized weights or caches are emulated in part, so times are not those of an "
            f"engine, and none is promised ({kernels})"
        )
    elif kernels:
        found.append(f"quantized weights are multiplied with by torch's kernels ({kernels})")
    if record.mode == "stage by stage":
        found.append(
            "the stages ran one after the other, because there are fewer GPUs than ranks: hand-off and "
            "pipeline were not measured; stages of several ranks were checked against one process, and the "
            "pipeline was not"
        )
    return tuple(found)


def _limits(record: Verification) -> Iterator[str]:
    if len(record.stages) < 2:
        return
    for phase, measured in (("prefill", record.prefill), ("decode", record.decode)):
        prefill = phase == "prefill"
        compute, hops = measured_parts(record.stages, prefill=prefill)
        busy = [seconds + hop for seconds, hop in zip(compute, hops, strict=True)]
        slowest = busy.index(max(busy))
        planned = [stage.prefill_busy_s if prefill else stage.decode_busy_s for stage in record.plan.stages]
        expected = planned.index(max(planned))
        as_planned = "as planned" if slowest == expected else f"where the plan expected stage {expected}"
        text = (
            f"stage {slowest} limits {phase}, {as_planned}: {max(busy) * 1e3:.2f} ms, "
            f"{100 * (max(busy) * len(busy) / sum(busy) - 1):.1f} % above the average"
        )
        if measured is not None:
            idle = _listed(f"{100 * share:.0f}" for share in measured.idle)
            text += (
                f"; with {measured.microbatches} microbatches in flight one leaves every "
                f"{measured.period_s * 1e3:.2f} ms ({measured.tokens_per_s:,.0f} tokens/s), "
                f"and the stages are idle for {idle} % of the time"
            )
        yield text


def _reading(record: Verification) -> Iterator[str]:
    """Say how fast these GPUs read: individual ones differ, and those that were calibrated were others."""
    rates = {row.stage: row.read_bytes_per_s for row in record.stages if row.read_bytes_per_s is not None}
    if not rates:
        return
    told = _listed(f"{rate / 1e12:.2f}" for rate in rates.values())
    where = "stage" if len(rates) == 1 else "stages"
    text = f"weights are read at {told} TB/s on {where} {_listed(map(str, rates))}"
    basis = next((note for note in record.plan.notes if note.startswith("times rest on")), None)
    yield f"{text}; {basis.partition(': ')[0]}" if basis else text


def report(record: Verification) -> str:
    """Return the verification as text: what it was, a table, and the sentences."""
    lines = [headline(record), ""]
    rows = [("", "predicted", "measured", "ratio", "promised", "")]
    for item in record.comparisons:
        promised = "" if item.tolerance is None else f"{100 * item.tolerance:.1f} %"
        rows.append(
            (
                f"{item.what}: {item.quantity.rpartition('_')[0].replace('_', ' ')}",
                _readable(item.predicted, item.quantity),
                _readable(item.measured, item.quantity),
                f"{item.ratio:.3f}",
                promised,
                ("" if item.passed else "MISSED") + (" *" if item.note else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    lines += [f"* {note}" for note in dict.fromkeys(item.note for item in record.comparisons) if note]
    lines += ["", *(f"- {sentence}" for sentence in record.sentences)]
    total_s = sum(record.phase_s.values())
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in record.phase_s.items() if seconds >= 0.05)
    lines += ["", f"took {total_s:.1f} s: {parts}", "passed" if record.passed else "FAILED"]
    return "\n".join(lines)


def headline(record: Verification) -> str:
    """Return the first line: what ran where, and whether its times mean anything."""
    plan = record.plan
    split = ",".join(map(str, plan.split))
    what = f"{record.asked}, split {split}, tp {plan.tp_size}"
    if record.on_gpu:
        devices = record.stages[0].device if record.stages else "GPUs"
        return f"{what}, on {devices} ({record.mode})"
    return (
        f"times and bytes below are NOT those of a GPU: {what}, on CPU processes through gloo, "
        f"every width divided by {record.narrowed_by}, float32, short requests"
    )


def _readable(value: float, quantity: str) -> str:
    if quantity.endswith("_bytes"):
        return readable_bytes(value)
    return f"{value * 1e3:.3f} ms"


def _listed(figures: Iterable[str]) -> str:
    """Join figures as in a sentence; a comma alone between two would be read as a decimal one."""
    told = list(figures)
    return " and ".join([", ".join(told[:-1]), told[-1]]) if len(told) > 1 else "".join(told)
