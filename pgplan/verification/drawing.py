"""Draw a verification: measured over predicted, one row per figure."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from pgplan.verification.record import Verification
from pgplan.verification.reporting import headline


class RecordFigure(Figure):
    """Show in a notebook without pyplot, as a plan's figure does."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.savefig(image, format="png", dpi=100)
        return image.getvalue()


def figure(record: Verification) -> RecordFigure:
    """Draw measured over predicted, one row per figure; the shaded band is what the tier promises."""
    items = [item for item in record.comparisons if item.predicted]
    drawn = RecordFigure(figsize=(7.0, 1.2 + 0.24 * len(items)), layout="constrained")
    axes = drawn.add_subplot()
    axes.axvline(1.0, color="0.3", linewidth=1)
    for row, item in enumerate(reversed(items)):
        if item.tolerance is not None:
            axes.barh(row, 2 * item.tolerance, left=1 - item.tolerance, color="0.9", height=0.9)
        axes.plot(item.ratio, row, "o", color="tab:blue" if item.passed else "tab:red", markersize=4)
    axes.set_yticks(
        range(len(items)),
        [f"{item.what} {item.quantity.rpartition('_')[0].replace('_', ' ')}" for item in reversed(items)],
        fontsize=7,
    )
    axes.set_xlabel("measured / predicted")
    axes.set_title(headline(record), fontsize=8, wrap=True)
    return drawn
