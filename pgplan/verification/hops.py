"""A hop by itself: whether it carries every bit, and what it takes.

That is the time from the sender's output being ready to the receiver having it. The clocks of two devices
cannot be compared, so the receiver asks for a hop and times until it has come:

    receiver   mark  ask ─╮             ╭─ hop, gathered if sliced  mark
    sender                ╰─ ask   hop ─╯

What asking takes is half of a round of two asks, and is taken off. That is no interval between hops that
follow each other, which is shorter where they overlap and longer where a host launches them too slowly. An
engine launches a hop while its stage still computes; so that launching does not count here either, the
receiver's GPU is held back until all is launched. Copies into the sender's buffer and out of the receiver's
are not part of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from pgplan.distributed.handoff import recv_stage, send_stage
from pgplan.verification.checking import Check
from pgplan.verification.passes import Clock
from pgplan.verification.place import Place

if TYPE_CHECKING:
    import torch

_ROUNDS, _WARM = 24, 4
# A host launches the rounds in a third of this; a GPU ticks at most so often.
_HELD_S, _TICKS_PER_S = 0.02, 2e9


def check_handoff(place: Place, *, tokens: int, hidden_size: int, dtype: torch.dtype) -> Check | None:
    """Send random activations over every hop and compare bit by bit, also after slices are gathered.

    Returns:
        The check on the first rank of every stage but the first; ``None`` on the others.
    """
    import torch

    handoff = place.handoff
    if handoff is None:
        return None

    def message(stage: int) -> torch.Tensor:
        generator = torch.Generator(device=place.device).manual_seed(1000 + stage)
        drawn = torch.empty((2, tokens, hidden_size), device=place.device, dtype=dtype)
        return drawn.normal_(generator=generator)

    equal = True
    measured = handoff.sliced_from_bytes
    for sliced_from_bytes in (None, 0) if place.tp_size > 1 else (None,):
        handoff.sliced_from_bytes = sliced_from_bytes
        if not place.is_first:
            arrived = recv_stage(handoff, tokens).wait()
            expected = message(place.stage - 1)
            equal &= all(torch.equal(a, b) for a, b in zip(arrived, expected, strict=True))
        if not place.is_last:
            outgoing = handoff.outgoing(tokens)
            for target, part in zip(outgoing, message(place.stage), strict=True):
                target.copy_(part)
            send_stage(handoff, *outgoing)
        place.plane.synchronize()
    handoff.sliced_from_bytes = measured
    if place.is_first or place.tp_rank > 0:
        return None
    ways = "whole and in slices that are gathered" if place.tp_size > 1 else "whole"
    return Check(
        name=f"hand-off from stage {place.stage - 1} to {place.stage}",
        passed=bool(equal),
        error=0.0 if equal else float("inf"),
        tolerance=0.0,
        detail=f"{tokens} tokens of {hidden_size}, {ways}, bit by bit",
    )


def time_hops(place: Place, *, tokens: int) -> list[float]:
    """Time hops of ``tokens`` tokens over every edge, one edge after the other.

    All ranks call it. A stage is the receiver first and the sender then, so that the first edge begins and
    each of the others waits for the one before it.

    Returns:
        Seconds of each hop that came here, all parts of it gathered; none on the first stage.
    """
    import torch

    handoff = place.handoff
    assert handoff is not None  # a pipeline of one stage has no hops
    seconds: list[float] = []
    token = torch.zeros(1, dtype=torch.long, device=place.device)
    if before := handoff.before:

        def ask() -> None:
            before.send(token, 0)
            before.recv(token, 0)

        def fetch() -> None:
            before.send(token, 0)
            recv_stage(handoff, tokens).wait()

        ask_s = statistics.median(_rounds(place, ask)) / 2
        # A hop carries no less than the ask for it, so it takes half of its round or more.
        seconds = [max(round_s - ask_s, round_s / 2) for round_s in _rounds(place, fetch)]
    if after := handoff.after:
        for _ in range(_WARM + _ROUNDS):
            after.recv(token, 1)
            after.send(token, 1)
        for _ in range(_WARM + _ROUNDS):
            after.recv(token, 1)
            send_stage(handoff, *handoff.outgoing(tokens))
    place.plane.synchronize()
    return seconds


def _rounds(place: Place, run: Callable[[], object]) -> list[float]:
    """Return the seconds of each round but the first few, during which ways are opened."""
    clock = Clock(place.device)
    _hold(place.device)
    for _ in range(_WARM):
        run()
    clock.mark()
    for _ in range(_ROUNDS):
        run()
        clock.mark()
    place.plane.synchronize()
    return [after - before for before, after in pairwise(clock.read())]


def _hold(device: torch.device) -> None:
    """Keep a GPU from beginning what is launched from here on until the host is ahead of it."""
    if device.type == "cuda":
        import torch

        torch.cuda._sleep(int(_HELD_S * _TICKS_PER_S))  # type: ignore[no-untyped-call, unused-ignore]
