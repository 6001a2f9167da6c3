"""The picture in pieces: what the kernel sends, and what a real browser makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("anywidget", reason="the live picture needs the lab extra")

from plan_samples import sample

from pgplan.hardware import Cluster
from pgplan.planning import plan
from pgplan.view.picture import make_picture
from pgplan.view.svg import picture_pieces
from pgplan.widgets.live_picture import PictureView
from pgplan.widgets.live_picture_widget import LivePicture


def pieces_of(split: str, *, pp_size: int = 4, with_hovers: bool = True) -> tuple[str, ...]:
    made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=pp_size), split=split)
    return picture_pieces(make_picture(made, with_hovers=with_hovers), width=900, with_header=False)


# From one picture to the next: a cut, a stage less, three more, hovers gone and back.
PICTURES = (
    pieces_of("8,8,8,8"),
    pieces_of("9,7,8,8"),
    pieces_of("11,11,10", pp_size=3),
    pieces_of("6,6,5,5,5,5", pp_size=6),
    pieces_of("6,6,5,5,5,5", pp_size=6, with_hovers=False),
    pieces_of("5,6,6,5,5,5", pp_size=6),
)


def whole(live: LivePicture) -> list[str]:
    """Return what a page that is loaded now would show."""
    pieces = list(live.pieces)
    for index, piece in live.changes.items():
        pieces[int(index)] = piece
    return pieces


def test_state_and_changes_are_the_whole_picture():
    live = LivePicture()
    for pieces in (*PICTURES, *PICTURES[::-1]):
        live.show(pieces)
        assert whole(live) == list(pieces)


def test_a_moved_cut_sends_its_two_stages():
    live = LivePicture()
    many = Cluster.uniform("H200", pp_size=16)
    before, after = (
        picture_pieces(make_picture(plan("llama-3.1-8b", many, split=split)))
        for split in ((3, 1, *[2] * 14), (3, 2, 1, *[2] * 13))
    )
    live.show(before)
    live.show(after)
    assert live.pieces == list(before)
    # Tag and panels, then words and hovers of the two stages beside the cut.
    assert {int(index) for index in live.changes} <= {*range(7), *range(9, 13)}


def test_plain_html_stands_in_until_a_front_end_runs_the_live_picture():
    view = PictureView()
    view.draw(make_picture(sample("four")))
    assert view.plain.value == view.value
    assert view.live.layout.display == "none"
    view.live.is_running = True
    assert view.plain.value == ""
    assert (view.plain.layout.display, view.live.layout.display) == ("none", "")
    assert f"{''.join(whole(view.live))}</svg>" == view.value


def test_without_anywidget_the_picture_is_html(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pgplan.widgets.live_picture_widget", None)
    view = PictureView()
    assert view.live is None
    view.draw(make_picture(sample("four")))
    assert view.plain.value == view.value


# --- in a browser ---------------------------------------------------------------------------------------

_SHOW = """
async ([source, attributes]) => {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  const listeners = new Map();
  window.model = {
    get: (name) => attributes[name],
    set: (name, value) => (attributes[name] = value),
    save_changes: () => {},
    on: (name, listener) => listeners.set(name, listener),
    off: (name) => listeners.delete(name),
  };
  window.receive = (values) => {
    Object.assign(attributes, values);
    Object.keys(values).forEach((name) => listeners.get(`change:${name}`)?.());
  };
  window.listening = () => listeners.size;
  widget.initialize({ model });
  window.end = widget.render({ model, el: document.body });
}
"""
_EQUAL = """
(source) => {
  const holder = document.createElement("template");
  holder.innerHTML = source;
  return document.querySelector("svg").isEqualNode(holder.content.firstChild);
}
"""


@pytest.fixture
def page() -> Iterator[object]:
    """Return a page with a live picture that has not been sent anything, and see that nothing goes wrong."""
    pytest.importorskip("playwright", reason="the browser tests need the test extra")
    from browser import chromium, find_chromium, visit

    if find_chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with chromium() as browser, visit(browser) as visited:
        visited.page.goto("about:blank")
        visited.page.evaluate(_SHOW, [LivePicture._esm, {"pieces": [], "changes": {}, "is_running": False}])
        yield visited.page
        assert visited.complaints == []


def test_the_page_shows_the_picture_whatever_it_showed_before(page):
    live = LivePicture()
    for pieces in (*PICTURES, *PICTURES[::-1]):
        live.show(pieces)
        page.evaluate("(values) => receive(values)", {"pieces": live.pieces, "changes": live.changes})
        svg = f"{''.join(pieces)}</svg>".replace(' xmlns="http://www.w3.org/2000/svg"', "")
        page.wait_for_function(_EQUAL, arg=svg)
    assert page.evaluate("model.get('is_running')")


def test_what_does_not_differ_is_left_alone(page):
    page.evaluate("(values) => receive(values)", {"pieces": list(PICTURES[0])})
    page.evaluate("document.querySelectorAll('text').forEach((text) => (text.kept = text.textContent))")
    page.evaluate("(values) => receive(values)", {"pieces": list(PICTURES[1])})
    same = "[...document.querySelectorAll('text')].filter((text) => text.kept === text.textContent).length"
    assert page.evaluate(same) > 0.5 * page.evaluate("document.querySelectorAll('text').length")


def test_what_goes_leaves_nothing_behind(page):
    page.evaluate("(values) => receive(values)", {"pieces": list(PICTURES[0])})
    page.evaluate("end()")
    assert page.evaluate("[listening(), document.querySelectorAll('svg').length]") == [0, 0]
