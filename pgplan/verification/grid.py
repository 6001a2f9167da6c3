"""Time one kind of layer, embedding and head on one device, over grids of tokens and context.

A layer is timed as a few of its kind in a row, so that their weights do not stay in a cache, and on one rank
of a tensor-parallel group as its shard alone: what the ranks say to each other is timed apart. Decode
and prefill are captured in CUDA graphs, so that times are the device's and not those of the host's launches:
what an engine's host adds is told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pgplan.cost.pricing import ends_digest, layer_digest
from pgplan.hardware.calibration_rows import EndTimes, LayerTimes
from pgplan.hardware.interpolation import Curve, Grid
from pgplan.model.spec import ModelSpec
from pgplan.verification.figures import Spread
from pgplan.verification.memory import DeviceMemory
from pgplan.verification.passes import Pass, capture, times_s
from pgplan.verification.pieces import Step
from pgplan.verification.shards import Shards
from pgplan.verification.sizes import Sizes
from pgplan.verification.stage import Contents, Stage

if TYPE_CHECKING:
    import torch

_MEMORY_SHARE = 0.8
_FEWEST, _MOST = 3, 500


class Bench:
    """Time layers of one model on one device.

    Args:
        model: The model.
        device: The device.
        sizes: At which sizes.
        told: Called after each point.
    """

    def __init__(
        self, model: ModelSpec, device: torch.device, sizes: Sizes, *, told: Callable[[], object]
    ) -> None:
        longest = model.max_position_embeddings - 1
        self.model, self.device, self._told = model, device, told
        self.sizes = replace(
            sizes,
            prompts=tuple(size for size in sizes.prompts if size <= longest),
            contexts=tuple(size for size in sizes.contexts if size <= longest),
        )
        self._memory = DeviceMemory(device)

    def layer(self, kind: int, *, tp_size: int) -> LayerTimes:
        """Time one kind of layer (an index), as the shard of one of ``tp_size`` ranks."""
        self._memory.release()
        stage, layers = self.stack(kind, tp_size)
        spec = self.model.kinds[kind]
        window = (spec.attention.window if spec.attention else None) or 0
        # Times bend where a sliding window is full.
        prompts = _with(self.sizes.prompts, 2 * window)
        prefills = [
            (tokens, prompt, Step.of_chunk(tokens=tokens, prompt=prompt))
            for tokens, prompt in _crossings(self.sizes.chunks, prompts)
        ]
        contexts = _with(self._contexts(stage), window)
        decodes = [
            (batch, context, Step(sequences=batch, length=1, start=context - 1))
            for batch, context in _crossings(self.sizes.batches, contexts)
        ]
        pool = self.pool(stage, [step for _, _, step in (*prefills, *decodes)])

        def seconds(step: Step) -> float:
            self._told()
            return self.pass_s(stage, pool, step) / layers

        prefill = {(tokens, prompt // 2): seconds(step) for tokens, prompt, step in prefills}
        decode = {(batch, context): seconds(step) for batch, context, step in decodes}
        return LayerTimes(
            digest=layer_digest(spec),
            kind=spec.kind,
            model=self.model.name,
            tp_size=tp_size,
            prefill=_grid(prefill, self.sizes.chunks, tuple(size // 2 for size in prompts)),
            decode=_grid(decode, self.sizes.batches, contexts),
        )

    def ends(self, *, tp_size: int) -> EndTimes:
        """Time embedding and head."""
        embed, sample = self.end_work(tp_size)
        tokens = tuple(sorted({*self.sizes.rows, *self.sizes.chunks}))
        return EndTimes(
            digest=ends_digest(self.model),
            model=self.model.name,
            tp_size=tp_size,
            embedding=timed_curve(tokens, embed),
            head=timed_curve(self.sizes.rows, sample),
        )

    def end_work(self, tp_size: int) -> tuple[Callable[[int], float], Callable[[int], float]]:
        """Build embedding and head, and return what times them, over tokens and over sampled rows."""
        import torch

        self._memory.release()
        contents = Contents(layers=(), embedding=True, head=not self.model.tied, is_first=True, is_last=True)
        stage = self._stage(self.model, contents, tp_size)
        hidden = (max(self.sizes.rows), self.model.hidden_size)
        streams = [torch.randn(hidden, dtype=stage.dtype, device=self.device) for _ in range(2)]

        def embed(tokens: int) -> float:
            drawn = torch.randint(0, self.model.vocab_size, (tokens,), device=self.device)
            return self._graphed_s(lambda: stage.embed(drawn))

        def sample(rows: int) -> float:
            return self._graphed_s(
                lambda: stage.sample(stage.normalise(streams[0][:rows], streams[1][:rows]))
            )

        return embed, sample

    def pool(self, stage: Stage, steps: Sequence[Step]) -> torch.Tensor:
        """Take the memory that the KV cache of any of some steps needs."""
        import torch

        elements = max(_cache_elements(stage, step) for step in steps)
        return torch.empty(elements, dtype=stage.dtype, device=self.device)

    def pass_s(self, stage: Stage, pool: torch.Tensor, step: Step) -> float:
        """Return the seconds of a step through a stage."""
        tokens = step.start + step.length
        work = Pass(stage, stage.make_cache(pool, rows=step.sequences, tokens=tokens), step)
        if self._memory.on_gpu:
            work.capture()
        return self._warm_s(
            work.run, budget_s=self.sizes.budget_of(step), settling_s=self.sizes.settling_of(step)
        )

    def stack(self, kind: int, tp_size: int) -> tuple[Stage, int]:
        """Build some layers of one kind, as many as leave room for their cache."""
        layers = self.sizes.layers
        while True:
            same = replace(self.model, pattern=(kind,) * layers, forbidden_cuts=(), towers=())
            contents = Contents(
                layers=tuple(range(layers)),
                embedding=False,
                head=False,
                is_first=False,
                is_last=False,
                widens_latents=True,
            )
            stage = self._stage(same, contents, tp_size)
            if layers == 1 or self._cache_bytes(stage, max(self.sizes.contexts)) <= self._room_bytes():
                return stage, layers
            del stage
            self._memory.release()
            layers //= 2

    def _stage(self, model: ModelSpec, contents: Contents, tp_size: int) -> Stage:
        depth = self.model.num_layers
        shards = Shards(tp_size=tp_size, tp_rank=self.tp_rank, device=self.device, depth=depth)
        return Stage(
            model, contents, shards, reduce=self.reduce, gather=partial(self.gather, tp_size=tp_size)
        )

    @property
    def tp_rank(self) -> int:
        """Say which of the ranks that share a layer this is: alone any, and the first."""
        return 0

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Leave a partial sum as it is: what ranks say to each other is timed apart."""
        return tensor

    def gather(self, tensor: torch.Tensor, *, tp_size: int) -> torch.Tensor:
        """Stand in for the logits of all ranks, from which each samples, by this one's."""
        return tensor.repeat(1, tp_size) if tp_size > 1 else tensor

    def most(self, value: float) -> float:
        """Return the largest value of all ranks that measure the same."""
        return value

    def _contexts(self, stage: Stage) -> tuple[int, ...]:
        """Return the contexts for which the largest batch's cache has room."""
        room = self._room_bytes()
        fitting = [size for size in self.sizes.contexts if self._cache_bytes(stage, size) <= room]
        return tuple(fitting or self.sizes.contexts[:1])

    def _cache_bytes(self, stage: Stage, context: int) -> int:
        rows = max(self.sizes.batches)
        return stage.cache_elements(rows=rows, tokens=context) * stage.dtype.itemsize

    def _room_bytes(self) -> float:
        free = self._memory.free_bytes()
        return -self.most(float("-inf") if free is None else -_MEMORY_SHARE * free)

    def _graphed_s(self, run: Callable[[], object]) -> float:
        self._told()
        graphed = capture(run, self.device).replay if self._memory.on_gpu else run
        return self._warm_s(graphed, budget_s=self.sizes.budget_s)

    def _warm_s(self, run: Callable[[], object], *, budget_s: float, settling_s: float = 0.0) -> float:
        """Return the seconds of a run that is warm: the mean, on a CPU that others use too the least."""
        for repeats in (2, 2):
            once_s = min(times_s(run, self.device, repeats=repeats))
        once_s = self.most(once_s)
        if settling := int(settling_s / once_s):
            times_s(run, self.device, repeats=settling)
        repeats = max(_FEWEST, min(_MOST, int(budget_s / once_s)))
        seconds = times_s(run, self.device, repeats=repeats)
        return Spread.of(seconds).mean_s if self._memory.on_gpu else min(seconds)


def timed_curve(sizes: Sequence[int], seconds: Callable[[int], float]) -> Curve:
    """Measure a curve at ``sizes``, and one size in the middle of its last gap to see what lies between."""
    curve = Curve(sizes=tuple(sizes), seconds=tuple(seconds(size) for size in sizes))
    between = [(curve.sizes[index] + curve.sizes[index + 1]) // 2 for index in _gaps(len(sizes))]
    errors = [abs(curve.at(size) / seconds(size) - 1) for size in between]
    return replace(curve, error=round(max(errors, default=0.0), 4))


def _with(sizes: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Add a size to an axis that reaches beyond it."""
    return tuple(sorted({*sizes, size})) if sizes[0] < size < sizes[-1] else sizes


def _gaps(count: int) -> tuple[int, ...]:
    """Choose the gaps of an axis that are looked into: one in the middle and the last."""
    return tuple(sorted({(count - 1) // 2, count - 2})) if count > 1 else ()


def _crossings(rows: tuple[int, ...], columns: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the crossings of two axes, and the centres of the cells that are looked into."""
    for row in rows:
        for column in columns:
            yield row, column
    for row in _gaps(len(rows)):
        for column in _gaps(len(columns)):
            yield (rows[row] + rows[row + 1]) // 2, (columns[column] + columns[column + 1]) // 2


def _grid(found: dict[tuple[int, int], float], rows: tuple[int, ...], columns: tuple[int, ...]) -> Grid:
    """Make the grid of the crossings; what was measured between them tells its error."""
    grid = Grid(
        tokens=rows,
        contexts=columns,
        seconds=tuple(tuple(found[row, column] for column in columns) for row in rows),
    )
    between = [point for point in found if point[0] not in rows or point[1] not in columns]
    errors = [abs(grid.at(*point) / found[point] - 1) for point in between]
    return replace(grid, error=round(max(errors, default=0.0), 4))


def _cache_elements(stage: Stage, step: Step) -> int:
    return stage.cache_elements(rows=step.sequences, tokens=step.start + step.length)
