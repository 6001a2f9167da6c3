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
from pgplan.errors import MessageError

# The largest encoded object that goes through rank 0; arrays up to this size ride in the head.
_SMALL_BYTES = 16 << 10


def all_gather(exchange: Exchange, obj: object) -> list[Any]:
    """Return every rank's object, in order of ranks."""
    me, others = exchange.mesh.rank, exchange.mesh.others
    world_size = len(others) + 1
    message = exchange.message(Kind.GATHER, obj, readers=len(others), inline_bytes=_SMALL_BYTES)
    if world_size > 2 and not message.body_bytes and message.head_bytes <= _SMALL_BYTES:
        direct, objects = _through_hub(exchange, message, others)
    else:
        message.kind = Kind.SHARE
        exchange.post(message, others)
        direct, objects = others, [None] * world_size
        if world_size > 2:
            direct, objects = _through_hub(exchange, Message(Kind.GATHER), others)
    for rank in direct:
        if rank != me:
            objects[rank] = exchange.take(Kind.SHARE, rank)
    objects[me] = obj
    return objects


def _through_hub(exchange: Exchange, mine: Message, others: list[int]) -> tuple[list[int], list[Any]]:
    """Return which ranks send their objects to everybody themselves, and the objects of the others."""
    if exchange.mesh.rank != 0:
        exchange.post(mine, [0])
        joined: bytes | memoryview = exchange.take(Kind.GATHERED, 0, encoded=True)
    else:
        exchange.wait_for(Kind.GATHER, others)
        heads = [mine.head, *(exchange.take(Kind.GATHER, r, encoded=True) for r in others)]
        direct = [rank for rank, head in enumerate(heads) if not head]
        joined = codec.join([codec.encode(direct)[0], *(head or codec.NOTHING for head in heads)])
        exchange.post(Message(Kind.GATHERED, joined, readers=len(others)), others)
    try:
        direct, *objects = exchange.open(joined, None, 0)
    except MessageError:
        for rank, head in enumerate(codec.part(joined)[1:]):  # whose is it?
            exchange.open(head, None, rank)
        raise
    return direct, objects
