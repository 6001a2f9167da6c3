"""Give every rank every rank's object.

Small objects go through rank 0, which hands all of them to everybody as it got them, unread: 2 (N - 1)
messages instead of the N (N - 1) of everybody to everybody, and with more ranks than cores messages are
what a gathering costs. Large ones go straight from each to all, so that rank 0 does not carry them twice.
"""

from __future__ import annotations

from typing import Any

from pgplan.distributed import codec
from pgplan.distributed.exchange import Exchange
from pgplan.distributed.wire import Kind, Message

_SMALL_BYTES = 16 << 10


def all_gather(exchange: Exchange, obj: object, *, world_size: int) -> list[Any]:
    """Return every rank's object, in order of ranks."""
    me = exchange.mesh.rank
    others = [r for r in range(world_size) if r != me]
    message = exchange.message(Kind.GATHER, obj, readers=len(others))
    direct = world_size <= 2 or message.size_bytes > _SMALL_BYTES
    if direct:
        message.kind = Kind.SHARE
        exchange.post(message, others)
        mine = None
    else:
        mine = message.head, message.frozen() if message.body_bytes else None
    gathered = [None] * world_size if world_size <= 2 else _through_hub(exchange, mine, message, others)
    objects = []
    for rank, content in enumerate(gathered):
        if rank == me:
            objects.append(obj)
        elif content is None:
            objects.append(exchange.take(Kind.SHARE, rank))
        else:
            head, body = content
            objects.append(exchange.open(head, body and memoryview(bytearray(body)), rank))
    return objects


def _through_hub(
    exchange: Exchange, mine: tuple[bytes, bytes | None] | None, message: Message, others: list[int]
) -> list[Any]:
    """Return each rank's encoded object, or None for those that it sends to everybody itself."""
    if exchange.mesh.rank != 0:
        exchange.post(Message(Kind.GATHER) if mine is None else message, [0])
        return list(exchange.take(Kind.GATHERED, 0))
    exchange.wait_for(Kind.GATHER, others)
    contents: list[Any] = [mine]
    for rank in others:
        parcel = exchange.take_parcel(Kind.GATHER, rank)
        body = parcel.body and bytes(parcel.body)
        contents.append((parcel.inline_head, body) if parcel.inline_head else None)
    head, _ = codec.encode([content and list(content) for content in contents])
    exchange.post(Message(Kind.GATHERED, head, readers=len(others)), others)
    return contents
