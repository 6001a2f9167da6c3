"""Make the plans that the next step of the pp slider asks for, while the user rests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

from pgplan.errors import PgplanError
from pgplan.planning import Plan
from pgplan.planning.kept import costing_for
from pgplan.widgets.choice import Choice, Known
from pgplan.widgets.edits import edit
from pgplan.widgets.rest import running_loop

# Between two pieces of work the kernel's loop takes what has come in meanwhile.
_PAUSE_S = 0.002


class Ahead:
    """Keep the plans with one stage less and one more than on display.

    They are made in the kernel's loop, piece by piece, and given up as soon as something is asked for. Where
    no loop runs, nothing is made.
    """

    def __init__(self) -> None:
        self._made: tuple[tuple[Choice, Plan], ...] = ()
        self._timer: asyncio.TimerHandle | None = None

    def plan(self, choice: Choice) -> Plan:
        """Return the plan of a choice, without advice; at once where it is made already.

        Raises:
            PgplanError: If it cannot be made.
        """
        for known, plan in self._made:
            if known == choice:
                return plan
        return choice.plan(with_advice=False)

    def prepare(self, choice: Choice, known: Known) -> None:
        """Begin to make the plans beside what is chosen; others that were made are let go."""
        self.stop()
        loop = running_loop()
        if loop is not None:
            self._go_on(loop, self._pieces(choice, known))

    def stop(self) -> None:
        """Give up what is not made yet; what is made stays."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self, loop: asyncio.AbstractEventLoop, pieces: Iterator[None]) -> None:
        def act() -> None:
            for _ in pieces:
                if self._timer is not None:
                    self._go_on(loop, pieces)
                return

        self._timer = loop.call_later(_PAUSE_S, act)

    def _pieces(self, choice: Choice, known: Known) -> Iterator[None]:
        """Make the plans; between two pieces, of a few milliseconds each, something else may be done."""
        sizes = (size for size in (choice.pp_size - 1, choice.pp_size + 1) if 1 <= size <= choice.num_layers)
        wanted = [edit(choice, "pp", size, known)[0] for size in sizes]
        self._made = tuple(made for made in self._made if made[0] in wanted)
        yield
        for beside in wanted:
            # What cannot be planned is told once it is asked for.
            with suppress(PgplanError):
                costing_for(
                    *(beside.model, beside.cluster, beside.workload, beside.engine),
                    calibration=beside.calibration,
                )
                yield
                if beside not in [made for made, _ in self._made]:
                    self._made += ((beside, beside.plan(with_advice=False)),)
                yield
