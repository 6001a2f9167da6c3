"""What DeepSpeed, torchgpipe and FairScale share: the model is a list of items, of which layers are some.

For an 80-layer decoder written as embedding, 80 layers, norm and head, the split 19,21,21,19 is 20,21,21,21
items.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from pgplan.engines.exporter import Exporter
from pgplan.errors import EngineError


class SequentialExporter(Exporter):
    """Count items where others count layers.

    Args:
        version: Of the program.
        items_before: Items ahead of the first layer (the embedding).
        items_after: Items after the last layer (final norm and head).
    """

    def __init__(self, version: str | None = None, *, items_before: int = 1, items_after: int = 2) -> None:
        super().__init__(version)
        if items_before < 0 or items_after < 0:
            raise EngineError(
                f"items_before and items_after are at least 0, got {items_before} and {items_after}; count "
                f"the items of the list beside the layers"
            )
        self.items_before, self.items_after = items_before, items_after

    def balance(self, split: Sequence[int]) -> list[int]:
        """Return the items of each stage."""
        items = list(split)
        items[0] += self.items_before
        items[-1] += self.items_after
        return items

    def bounds(self, split: Sequence[int]) -> list[int]:
        """Return the first item of each stage, and at last the number of items."""
        return list(accumulate(self.balance(split), initial=0))

    def layers(self, balance: Sequence[int]) -> list[int]:
        """Return the layers of each stage, given its items."""
        counts = list(balance)
        if counts:
            counts[0] -= self.items_before
            counts[-1] -= self.items_after
        return counts

    @property
    def items_remark(self) -> str:
        """Return a comment that says what is counted."""
        return (
            f"# Items, not layers, are counted: {self.items_before} ahead of the layers (embedding) and "
            f"{self.items_after} after them (norm, head)."
        )
