import subprocess
import sys
from itertools import combinations

import pytest
from plan_samples import NAMES, sample

from pgplan.view import plan_figure


def _texts(figure):
    """Return the measured box of every visible text of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [
        (text.get_window_extent(canvas.get_renderer()), text.get_text())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_and_nothing_is_cut_off(name):
    figure = plan_figure(sample(name))
    boxes = _texts(figure)
    width, height = figure.bbox.width, figure.bbox.height
    assert len(boxes) > 20
    for box, words in boxes:
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, words
    for (one, words), (other, more) in combinations(boxes, 2):
        shared_x = min(one.x1, other.x1) - max(one.x0, other.x0)
        shared_y = min(one.y1, other.y1) - max(one.y0, other.y0)
        # Boxes include the room above and below small letters.
        assert shared_x <= 1 or shared_y <= 0.25 * min(one.height, other.height), (words, more)


def test_bars_are_the_bytes_and_seconds_of_the_plan():
    plan = sample("four")
    memory, decode, _ = plan_figure(plan).axes
    blue = [
        bar for bar in memory.patches if bar.get_facecolor()[:3] == pytest.approx((0, 0x72 / 255, 0xB2 / 255))
    ]
    assert [bar.get_width() for bar in blue] == pytest.approx(
        [(stage.layer_bytes + stage.buffer_bytes) / 2**30 for stage in plan.stages]
    )
    assert [bar.get_width() for bar in decode.patches[: plan.pp_size]] == pytest.approx(
        [stage.decode_s * 1e3 for stage in plan.stages]
    )


def test_a_notebook_shows_it_as_png():
    assert plan_figure(sample("two"))._repr_png_().startswith(b"\x89PNG")


def test_pyplot_is_not_loaded_and_text_and_svg_load_nothing():
    code = """
import sys
import pgplan as pg
plan = pg.plan("llama-3.1-8b", pg.Cluster.uniform("H200", pp_size=2))
str(plan), plan.to_svg(), plan._repr_html_(), str(plan.compare(plan))
heavy = {"torch", "pandas", "matplotlib", "ipywidgets", "numpy"} & set(sys.modules)
assert not heavy, heavy
plan.plot()
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
