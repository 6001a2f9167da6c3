"""The proof: run the plan's verification beside the planner, one line per rank, and show what came out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from html import escape

import ipywidgets as W

from pgplan.errors import PgplanError
from pgplan.launcher import Event, Run
from pgplan.launcher.backends import visible_gpus
from pgplan.planning import Plan
from pgplan.verification import Verification, verify
from pgplan.verification.record import Comparison
from pgplan.verification.reporting import headline
from pgplan.view.numbers import significant
from pgplan.widgets.measured import measured_svg, unit_of
from pgplan.widgets.scene import Scene
from pgplan.widgets.style import button, column, html, listed, row, told

_REDRAW_S = 0.1


class Proof:
    """Verify the plan on display, on request.

    Args:
        proven: Called with the record once it is there, from the verification's own thread.
    """

    def __init__(self, *, proven: Callable[[Verification, Plan], None]) -> None:
        self._proven = proven
        self._plan: Plan | None = None
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.start = button(
            "Verify", "verify", tooltip="Run this plan's split on the devices of this machine"
        )
        self.stop = button("Cancel", "cancel", tooltip="End the verification and all its processes")
        self.stop.layout.display = "none"
        self.stop.on_click(lambda _: self.cancel())
        self.about, self.lines, self.result = html("about"), html("progress"), html("proof")
        self.box = column(row(self.about, self.stop), self.lines, self.result)

    def draw(self, scene: Scene) -> None:
        """Say what verifying this plan means here, and show what is known of it."""
        self._plan = scene.plan
        self.about.value = f"<p>{escape(prospect(scene.plan))}</p>"
        if scene.proof is not None:
            self.result.value = record_html(scene.proof)
        elif self._thread is None:
            self.result.value = ""

    # --- running --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start verifying the plan on display, unless one is being verified."""
        plan = self._plan
        if plan is None or self._thread is not None:
            return
        self._stopping = False
        self.start.disabled, self.stop.layout.display = True, ""
        self.result.value, self.lines.value = "", told("status", "starting processes")
        self._thread = threading.Thread(target=self._verify, args=(plan,), name="pgplan-verify", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """End the verification under way; its processes are gone when ``wait`` returns."""
        with self._lock:
            self._stopping = True
            if self._run is not None:
                self._run.cancel()

    def wait(self) -> None:
        """Wait for the end of the verification under way."""
        if self._thread is not None:
            self._thread.join()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of the verification under way."""
        run = self._run
        return () if run is None else run.pids

    def _started(self, run: Run) -> None:
        with self._lock:
            self._run = run
            if self._stopping:
                run.cancel()

    def _verify(self, plan: Plan) -> None:
        progress = Progress(self.lines)
        record: Verification | None = None
        try:
            record = verify(plan, on_event=progress, on_run=self._started)
        except PgplanError as error:
            # Ended on request is no failure.
            words = "cancelled; no process is left" if self._stopping else str(error)
            self.result.value = told("status" if self._stopping else "alert", words)
        except OSError as error:
            self.result.value = told("alert", f"the processes cannot be started: {error}")
        finally:
            self._run = self._thread = None
            self.lines.value = ""
            self.start.disabled, self.stop.layout.display = False, "none"
        if record is not None:
            self._proven(record, plan)


class Progress:
    """Write one line per rank into a piece of HTML, at most ten times a second."""

    def __init__(self, html: W.Widget) -> None:
        self._html = html
        self._ranks: dict[int, str] = {}
        self._drawn_at = 0.0

    def __call__(self, event: Event) -> None:
        """Take in what a rank says of itself."""
        if event.rank is None or event.kind in ("gone", "state"):
            return
        words = {"result": "done", "error": f"failed: {event.text}"}.get(event.kind, event.text)
        done = ""
        if event.kind == "progress":
            of = f" of {event.total}" if event.total else ""
            done = f" {event.step}{of}"
        self._ranks[event.rank] = f"{words}{done}"
        now = time.monotonic()
        if now - self._drawn_at >= _REDRAW_S or event.kind in ("result", "error"):
            self._drawn_at = now
            self._html.value = self._table()

    def _table(self) -> str:
        rows = "".join(
            f'<tr class="pgplan-rank"><td>rank {rank}</td><td>{escape(words)}</td></tr>'
            for rank, words in sorted(self._ranks.items())
        )
        return f'<table role="status" aria-live="off">{rows}</table>'


def prospect(plan: Plan) -> str:
    """Say what verifying a plan on this machine means."""
    ranks, gpus = plan.pp_size * plan.tp_size, visible_gpus()
    if gpus >= ranks:
        return f"Verify lays this plan out on {ranks} of {gpus} GPUs, runs it and measures memory and time."
    if gpus >= plan.tp_size:
        return (
            f"{gpus} of {ranks} GPUs are here: Verify runs the stages one after the other, and leaves the "
            f"hand-off unmeasured."
        )
    return (
        f"No GPU for this plan is here: Verify checks split, wiring and hand-off with {ranks} processes on "
        f"the CPU, on the model scaled down; it says nothing about a GPU's times and bytes."
    )


def record_html(record: Verification) -> str:
    """Return a verification as HTML: the verdict, every figure beside its prediction, the sentences."""
    rows = "".join(_row(item) for item in record.comparisons)
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("", "quantity", "predicted", "measured", "off by", "")
    )
    verdict = "passed" if record.passed else "FAILED"
    return (
        f'<div role="status" aria-live="polite"><b>{verdict}</b>: {escape(headline(record))}</div>'
        f"{measured_svg(record)}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{listed(record.sentences)}"
    )


def _row(item: Comparison) -> str:
    cells = (
        item.what,
        item.quantity.rpartition("_")[0].replace("_", " "),
        _with_unit(item, item.predicted),
        _with_unit(item, item.measured),
        f"{100 * (item.ratio - 1):+.1f} %",
        "" if item.passed else "missed",
    )
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _with_unit(item: Comparison, value: float) -> str:
    """Return a figure as people read it, in the unit of what it is compared with."""
    unit, name = unit_of(item.quantity, item.predicted)
    return f"{significant(value / unit, digits=5 if item.quantity.endswith('_bytes') else 4)} {name}".rstrip()
