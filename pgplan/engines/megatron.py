"""Megatron-LM: the layer layout and the first/last counts, as megatron-core 0.16 reads them.

The layout is one word: ``Et*19|t*21|t*21|t*19,L``, with ``E`` embedding, ``t`` decoder layer, ``m`` layer of
multi-token prediction, ``L`` loss, ``|`` between stages and ``x*n``, ``(x|)*n`` for repetition
(``megatron/core/transformer/pipeline_parallel_layer_layout.py``).

With virtual stages a rank holds several chunks: chunk ``v`` of rank ``r`` is stage ``v * pp_size + r``. What
a rank holds in all is what the plan says of its stage; its chunks are as equal as can be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pgplan.engines.exporter import Exporter, find_setting, whole_numbers
from pgplan.engines.launching import command, flag_words
from pgplan.errors import EngineError
from pgplan.split import extras_first_stages, format_split

if TYPE_CHECKING:
    from pgplan.planning.record import Plan

# More repetitions than any model has layers; a slip of the keyboard shall not fill the memory.
_MOST_REPEATS = 10_000
_FIRST, _LAST = "num-layers-in-first-pipeline-stage", "num-layers-in-last-pipeline-stage"


class MegatronLM(Exporter):
    """Write command-line arguments for ``pretrain_gpt.py``.

    Args:
        version: Of megatron-core.
        form: ``layout``: any split; ``counts``: of the first and last stage, the others being equal.
        virtual_stages: Chunks of layers per rank.
        mtp_layers: Layers of multi-token prediction, which go on the last stage.
    """

    name = "megatron"
    title = "Megatron-LM (megatron-core)"
    default_version = "0.16"
    writes = "arguments"
    syntax = "--pipeline-model-parallel-layout or the first and last counts"
    checked = "0.16.1: its layout parser, validation and counting, run"

    def __init__(
        self,
        version: str | None = None,
        *,
        form: Literal["layout", "counts"] = "layout",
        virtual_stages: int = 1,
        mtp_layers: int = 0,
    ) -> None:
        super().__init__(version)
        if virtual_stages < 1 or mtp_layers < 0:
            raise EngineError(
                f"virtual_stages is at least 1 and mtp_layers at least 0, got {virtual_stages} and "
                f"{mtp_layers}; give such numbers"
            )
        self.counts = form == "counts"
        self.virtual_stages, self.mtp_layers = virtual_stages, mtp_layers

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...] | None:
        """Divide evenly; Megatron-LM refuses what does not divide."""
        return None if num_layers % pp_size else (num_layers // pp_size,) * pp_size

    def export(self, plan: Plan) -> str:
        """Return the arguments that set layers, ranks and layout."""
        flags: dict[str, object] = {
            "num-layers": plan.model.num_layers,
            "tensor-model-parallel-size": plan.tp_size,
            "pipeline-model-parallel-size": len(plan.split),
        }
        if self.mtp_layers:
            flags["mtp-num-layers"] = self.mtp_layers
        if self.counts:
            first, last = self.first_and_last(plan.split)
            flags |= {
                "decoder-first-pipeline-num-layers": first,
                "decoder-last-pipeline-num-layers": last,
            }
        else:
            flags["pipeline-model-parallel-layout"] = f'"{self.layout(plan.split)}"'
        return f"{self.header(plan)}\n{command(flag_words(flags))}\n"

    def layout(self, split: Sequence[int]) -> str:
        """Write a split in the layout language.

        Raises:
            EngineError: If a stage has fewer layers than virtual stages.

        >>> MegatronLM().layout((19, 21, 21, 19))
        'Et*19|t*21|t*21|t*19,L'
        """
        if min(split) < self.virtual_stages:
            raise EngineError(
                f"each of the {self.virtual_stages} virtual stages of a rank needs a layer, but split "
                f"{format_split(split)} has a stage of {min(split)}; give virtual_stages {min(split)} or less"
            )
        chunks = [extras_first_stages(count, self.virtual_stages) for count in split]
        stages = [f"t*{counts[chunk]}" for chunk in range(self.virtual_stages) for counts in chunks]
        mtp = f",m*{self.mtp_layers}" if self.mtp_layers else ""
        return f"E{'|'.join(stages)}{mtp},L"

    def first_and_last(self, split: Sequence[int]) -> tuple[int, int]:
        """Return the counts of the first and the last stage, which say all if the others are equal.

        Raises:
            EngineError: If they are not, or with virtual stages or layers of multi-token prediction.
        """
        if self.virtual_stages > 1 or self.mtp_layers:
            raise EngineError(
                "first and last counts say nothing of virtual stages and multi-token prediction; "
                "use the layout (form 'layout')"
            )
        middle = set(split[1:-1])
        if len(split) < 2 or len(middle) > 1:
            raise EngineError(
                f"first and last counts need equal stages between them, but the split is "
                f"{format_split(split)}; use the layout (form 'layout'): {self.layout(split)}"
            )
        return split[0], split[-1]

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the layout, else the first and last counts, else nothing but the number of stages."""
        layout = find_setting(text, "pipeline_model_parallel_layout")
        if layout is None and re.fullmatch(r"\s*E[EtmL|,()*\d\s]*L\s*", text):
            layout = text.strip()
        if layout is not None:
            return read_layout(layout, pp_size=pp_size)
        first = find_setting(text, "decoder-first-pipeline-num-layers", _FIRST)
        last = find_setting(text, "decoder-last-pipeline-num-layers", _LAST)
        if first is not None or last is not None:
            return _around_middle(first, last, num_layers=num_layers, pp_size=pp_size)
        if find_setting(text, "pipeline-model-parallel-size") != str(pp_size):
            return None
        return self.default_split(num_layers, pp_size)


def read_layout(layout: str, *, pp_size: int) -> tuple[int, ...]:
    """Return the decoder layers of each rank, its virtual stages added up.

    Raises:
        EngineError: If the layout is not one that Megatron-LM reads.

    >>> read_layout("Et*10|(t*11|)*2t*10|t*9|t*10|t*10|t*9,L", pp_size=4)
    (19, 21, 21, 19)
    """
    flat = layout.replace(",", "")
    for pattern in (r"\(([^()]+)\)\*(\d+)", r"(.)\*(\d+)"):
        flat = re.sub(pattern, lambda match: match[1] * min(int(match[2]), _MOST_REPEATS), flat)
    for letter in flat:
        if letter not in "EtmL|":
            raise EngineError(
                f"a layout is made of E, t, m, L, | and *n, but {layout!r} has {letter!r}; take it out"
            )
    stages = flat.split("|")
    if len(stages) % pp_size:
        raise EngineError(
            f"a layout has a multiple of pp_size stages, but {layout!r} has {len(stages)} and pp_size is "
            f"{pp_size}; give the pp_size that it was made for"
        )
    letters = flat.replace("|", "")
    if not re.fullmatch(r"Et*m*L", letters):
        raise EngineError(
            f"a layout is E, then t, then m, then L, but {layout!r} orders them {_runs(letters)}; reorder it"
        )
    return tuple(sum(stage.count("t") for stage in stages[rank::pp_size]) for rank in range(pp_size))


def _runs(letters: str) -> str:
    return re.sub(r"(.)\1+", r"\1", letters)


def _around_middle(first: str | None, last: str | None, *, num_layers: int, pp_size: int) -> tuple[int, ...]:
    """Return the split that first and last counts mean; one that is not given is as large as the middle."""
    given = [value for value in (first, last) if value is not None]
    ends = whole_numbers(given, what="first and last counts")
    stages, layers = pp_size - len(ends), num_layers - sum(ends)
    if stages < 0 or layers < 0 or (layers % stages if stages else layers):
        raise EngineError(
            f"first and last counts leave the others equal layers, but {num_layers} layers less "
            f"{' and '.join(map(str, ends))} do not divide over {stages} stages; use a layout"
        )
    middle = (layers // stages,) * stages if stages else ()
    return (*ends[: first is not None], *middle, *ends[first is not None :])
