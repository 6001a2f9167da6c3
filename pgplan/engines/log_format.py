"""How an engine's start-up log says what a plan predicts, as regular expressions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFormat:
    """State the lines of one engine's log that a plan can be held against.

    Args:
        starts: What begins a start of the engine, the first of them that occurs; what is logged before the
            last one belongs to earlier starts.
        version: The engine's release, where it says it.
        tag: The mark of the process that a message comes from.
        stage, rank: The stage (pipeline rank) and the tensor-parallel rank, in a tag.
        world_rank: The rank over all stages, in a tag.
        assigned: A message in which a process says its stage and rank (groups ``pp`` and ``tp``).
        weights: GiB once the model is loaded, per process.
        kv_memory: GiB for the KV cache, per process; of several patterns the first that occurs counts, and
            its groups are added up.
        kv_memory_is: Whether that is what is left for the cache (``"budget"``) or what it takes (``"pool"``).
        graphs: GiB of CUDA graphs, per process.
        kv_tokens: Tokens of the KV cache; the fewest of all lines hold.
        split: Layers per stage, where the log says them.
        settings: What the log says of the plan's settings, as ``(field, pattern)``.
        failures: What the engine says when it gives up.
    """

    starts: tuple[str, ...]
    version: str
    tag: str
    stage: str
    rank: str
    world_rank: str
    assigned: str
    weights: str
    kv_memory: tuple[str, ...]
    kv_memory_is: Literal["budget", "pool"]
    graphs: str
    kv_tokens: str
    split: str
    settings: tuple[tuple[str, str], ...]
    failures: tuple[str, ...]
