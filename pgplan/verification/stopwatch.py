"""How long a pass, a hop and the whole pipeline take: how often to run, and from when on it counts.

A GPU that has drawn all the power it may is slowed down for about a second after. So everything runs as long
as that before it is timed, and then long enough for a mean to hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgplan.verification.figures import FlowMeasurement, Spread
from pgplan.verification.hops import time_hops
from pgplan.verification.passes import Pass, run_pipeline, times_s
from pgplan.verification.pieces import Step
from pgplan.verification.place import Place

# How long a measurement may take; on a CPU, where times are worth little, a part of it.
_BUDGET_S, _ON_CPU = 1.0, 0.2
_FEWEST, _MOST, _FLOW_MOST = 5, 400, 64
# How often one microbatch goes through the pipeline alone, if it is not slow.
_ALONE_S, _ALONE_MOST = 0.5, 5


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Time what all ranks do together; every rank calls the same, in the same order.

    Args:
        place: The rank's place.
        on_gpu: Whether times are those of a GPU.
    """

    place: Place
    on_gpu: bool

    @property
    def _budget_s(self) -> float:
        return _BUDGET_S if self.on_gpu else _BUDGET_S * _ON_CPU

    def _settling(self, once_s: float) -> int:
        """Return how often to run before times hold."""
        return max(1, int(self._budget_s / once_s))

    def time(self, work: Pass, *, budgets: int = 1) -> Spread:
        """Time a pass on this stage alone, as often as fits the budget on the slowest rank."""
        probes = 2
        once_s = self.place.most(min(self._seconds(work, repeats=probes)))
        self._seconds(work, repeats=max(1, self._settling(once_s) - probes))
        repeats = max(_FEWEST, min(_MOST, int(budgets * self._budget_s / once_s)))
        return Spread.of(self._seconds(work, repeats=repeats))

    def _seconds(self, work: Pass, *, repeats: int) -> list[float]:
        """Return the seconds of each run of a pass; the launcher hears how far it is."""
        place = self.place
        seconds = times_s(
            work.run, place.device, repeats=repeats, told=lambda done: place.worker.progress(done, repeats)
        )
        place.plane.check("timing its stage")
        return seconds

    def hop(self, step: Step) -> Spread | None:
        """Time the hop that brings a step's activations here, whole or sliced; ``None`` where none comes."""
        if self.place.handoff is None:
            return None
        seconds = time_hops(self.place, tokens=step.tokens)
        return Spread.of(seconds) if seconds else None

    def flow(
        self, passes: Sequence[Pass], each: Spread, *, in_flight: int
    ) -> tuple[FlowMeasurement, float] | None:
        """Time the full pipeline, whose stages take ``each`` by themselves.

        Returns:
            What it took, as the last stage sees it, and the share of time that this stage was idle;
            ``None`` if this is no pipeline.
        """
        if not self.place.is_pipeline:
            return None
        slowest_s, pp_size = self.place.most(each.mean_s), self.place.pp_size
        # The first one alone opens ways; each comes back to the first stage before the next begins.
        alone_s = pp_size * slowest_s
        turns = 1 + max(1, min(_ALONE_MOST, int(_ALONE_S / alone_s)))
        alone = run_pipeline(self.place, passes[:1], steps=turns, in_flight=1)
        # What fills the pipeline and settles it is of the same run, so that nothing rests in between.
        settling = pp_size + max(len(passes), self._settling(slowest_s))
        steps = max(3 * pp_size, min(_FLOW_MOST, int(2 * self._budget_s / slowest_s)))
        marks = run_pipeline(self.place, passes, steps=settling + steps, in_flight=in_flight)
        ends = [end for _, end in marks[settling - 1 :]]
        window_s = ends[-1] - ends[0]
        measured = FlowMeasurement(
            microbatches=in_flight,
            period_s=window_s / (len(ends) - 1),
            latency_s=(alone[-1][1] - alone[0][1]) / (len(alone) - 1),
            tokens=passes[0].step.tokens,
            idle=(),
            steps=steps,
        )
        return measured, 1 - sum(end - begin for begin, end in marks[settling:]) / window_s
