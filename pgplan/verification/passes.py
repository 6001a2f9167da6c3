"""A microbatch on its way through one stage, and many of them on their way through the pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pgplan.distributed.handoff import recv_stage, send_stage
from pgplan.verification.pieces import Step
from pgplan.verification.place import Place
from pgplan.verification.stage import Stage

if TYPE_CHECKING:
    import torch

    Caches = list[list[torch.Tensor]]


class Pass:
    """Compute one microbatch on one stage, again and again, between buffers that stay where they are.

    Args:
        stage: The stage.
        caches: Its KV cache.
        step: Where the tokens of the microbatch stand.
        streams: Buffers for the other stages' input; made if not given.

    Attributes:
        tokens: The first stage's input.
        streams: The other stages' input, hidden and residual.
        out: What the last run gave: hidden and residual, on the last stage sampled tokens and what they are
            sampled from.
    """

    def __init__(
        self, stage: Stage, caches: Caches, step: Step, *, streams: tuple[torch.Tensor, ...] = ()
    ) -> None:
        import torch

        self.stage, self.step, self._caches = stage, step, caches
        shape, device = (step.tokens, stage.model.hidden_size), stage.device
        self.tokens = torch.randint(0, stage.model.vocab_size, (step.tokens,), device=device)
        self.streams = () if stage.contents.is_first else streams
        if not stage.contents.is_first and not streams:
            self.streams = tuple(torch.randn(shape, device=device, dtype=stage.dtype) for _ in range(2))
        self.out: tuple[torch.Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def compute(self, streams: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Pass the streams, or on the first stage the tokens, through the stage."""
        stage, step = self.stage, self.step
        if stage.contents.is_first:
            hidden, residual = stage.forward(stage.embed(self.tokens), None, self._caches, step)
        else:
            # The residual is added to in place. Run after run over the same buffer it would grow, tokens
            # would come to look alike, and a router would send most of them to the same few experts.
            hidden, residual = stage.forward(streams[0], streams[1].clone(), self._caches, step)
        if not stage.contents.is_last:
            return hidden, residual
        x = stage.normalise(stage.last_of_each(hidden, step), stage.last_of_each(residual, step))
        return stage.sample(x), x

    def draw(self, seed: int) -> None:
        """Fill the inputs with random values that follow from a seed."""
        import torch

        generator = torch.Generator(device=self.stage.device).manual_seed(seed)
        self.tokens.random_(0, self.stage.model.vocab_size, generator=generator)
        for stream in self.streams:
            stream.normal_(generator=generator)

    def accept(self, arrived: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the streams to compute from: what arrived, or for a graph the buffers, filled with it."""
        if self._graph is None:
            return arrived
        for buffer, stream in zip(self.streams, arrived, strict=True):
            buffer.copy_(stream)
        return self.streams

    def run(self, streams: Sequence[torch.Tensor] | None = None) -> None:
        """Compute once, from what ``accept`` gave or from whatever the buffers hold."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self.out = self.compute(self.streams if streams is None else streams)

    def capture(self, pool: Any = None) -> Any:
        """Capture the run in a CUDA graph and return its memory pool, for the next one to share."""

        def run() -> None:
            self.out = self.compute(self.streams)

        self._graph = capture(run, self.stage.device, pool=pool)
        return self._graph.pool()


def capture(run: Callable[[], object], device: torch.device, *, pool: Any = None) -> torch.cuda.CUDAGraph:
    """Capture a run in a CUDA graph; what it leaves in its closures is what each replay writes again."""
    import torch

    # Kernels are chosen and compiled at their first run, which cannot be captured.
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as NCCL's watchdog, may ask the device while this one captures.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        run()
    return graph


def run_pipeline(
    place: Place, passes: Sequence[Pass], *, steps: int, in_flight: int
) -> list[tuple[float, float]]:
    """Send ``steps`` microbatches through the pipeline, at most ``in_flight`` at a time.

    Step ``i`` computes pass ``i % len(passes)``. The first stage starts it once the tokens of step
    ``i - in_flight`` have come back, as an engine does that must know a token before it feeds it in.

    Returns:
        When each step's computation began and ended here, in seconds from the first.
    """
    clock = Clock(place.device)
    handoff = place.handoff
    for index in range(steps):
        work = passes[index % len(passes)]
        tokens = work.step.tokens
        if place.is_first and index >= in_flight:
            sampled = work.tokens if work.step.length == 1 else work.tokens[: work.step.sequences]
            place.take_tokens(sampled)
        streams: Sequence[torch.Tensor] = ()
        if handoff is not None and not place.is_first:
            streams = work.accept(recv_stage(handoff, tokens).wait())
        clock.mark()
        work.run(streams)
        clock.mark()
        if place.is_last:
            if index + in_flight < steps:
                place.return_tokens(work.out[0].clone())
        elif handoff is not None:
            outgoing = handoff.outgoing(tokens)
            for target, stream in zip(outgoing, work.out, strict=True):
                target.copy_(stream)
            send_stage(handoff, *outgoing)
        place.worker.progress(index + 1, steps)
    place.plane.synchronize()
    marks = clock.read()
    return list(zip(marks[::2], marks[1::2], strict=True))


def times_s(
    run: Callable[[], object],
    device: torch.device,
    *,
    repeats: int,
    told: Callable[[int], object] | None = None,
) -> list[float]:
    """Return the seconds of each of ``repeats`` runs, back to back; ``told`` hears how many are launched."""
    import torch

    clock = Clock(device)
    clock.mark()
    for index in range(repeats):
        run()
        clock.mark()
        if told is not None:
            told(index + 1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    marks = clock.read()
    return [after - before for before, after in pairwise(marks)]


class Clock:
    """Take the time on the device: with CUDA by events in the stream, which the host does not wait for."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Remember this moment."""
        if not self._on_gpu:
            self._marks.append(time.perf_counter())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
        event.record()
        self._marks.append(event)

    def read(self) -> list[float]:
        """Return the moments in seconds from the first; with CUDA, after a synchronize."""
        if not self._marks:
            return []
        first = self._marks[0]
        if self._on_gpu:
            return [first.elapsed_time(mark) / 1e3 for mark in self._marks]
        return [mark - first for mark in self._marks]
