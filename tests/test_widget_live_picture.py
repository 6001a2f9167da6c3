"""The picture in pieces: what the kernel sends, and what a real browser makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("anywidget", reason="the live picture needs the lab extra")

from plan_samples import sample

from pgplan.hardware import Cluster
from pgplan.planning import plan
from pgplan.view.picture import make_picture
from pgplan.view.svg import picture_hovers, picture_pieces, plan_svg
from pgplan.widgets.live_picture import PictureView
from pgplan.widgets.live_picture_widget import LivePicture


def drawn(split: str, *, pp_size: int = 4, is_told: bool = True) -> tuple[tuple[str, ...], str]:
    made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=pp_size), split=split)
    picture = make_picture(made)
    pieces = picture_pieces(picture, width=900, with_header=False)
    return pieces, picture_hovers(picture, width=900, with_header=False) if is_told else ""


# From one picture to the next: a cut, a stage less, one more, three more, hovers gone and back.
PICTURES = (
    drawn("8,8,8,8"),
    drawn("9,7,8,8"),
    drawn("11,11,10", pp_size=3),
    drawn("9,7,8,8", is_told=False),
    drawn("6,6,5,5,5,5", pp_size=6),
    drawn("6,6,5,5,5,5", pp_size=6, is_told=False),
    drawn("5,6,6,5,5,5", pp_size=6),
)


def whole(live: LivePicture) -> list[str]:
    """Return the pieces that a page which is loaded now would show."""
    pieces = dict(enumerate(live.pieces))
    pieces |= {int(index): piece for index, piece in live.changes.items()}
    return [pieces[index] for index in range(live.count)]


def test_state_and_changes_are_the_whole_picture():
    live = LivePicture()
    for pieces, hovers in (*PICTURES, *PICTURES[::-1]):
        live.show(pieces, hovers=hovers)
        assert (whole(live), live.hovers) == (list(pieces), hovers)


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
    # Tag and panels, then the words of the two stages beside the cut.
    assert {int(index) for index in live.changes} <= {*range(7), 8, 9}


def test_a_stage_less_does_not_send_the_others_again():
    live = LivePicture()
    before, after = (
        picture_pieces(make_picture(plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=count))))
        for count in (30, 29)
    )
    live.show(before)
    live.show(after)
    assert live.pieces == list(before)
    assert live.count == len(before) - 1


def test_plain_html_stands_in_until_a_front_end_runs_the_live_picture():
    view = PictureView()
    view.draw(make_picture(sample("four")))
    assert view.plain.value == view.value
    assert view.live.layout.display == "none"
    view.live.is_running = True
    assert view.plain.value == ""
    assert (view.plain.layout.display, view.live.layout.display) == ("none", "")
    assert f"{''.join(whole(view.live))}</svg>" == view.value
    view.tell(make_picture(sample("four")))
    assert f"{''.join(whole(view.live))}{view.live.hovers}</svg>" == view.value == view_svg("four")


def test_without_anywidget_the_picture_is_html(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pgplan.widgets.live_picture_widget", None)
    view = PictureView()
    assert view.live is None
    view.draw(make_picture(sample("four")))
    assert view.plain.value == view.value
    view.tell(make_picture(sample("four")))
    assert view.plain.value == view.value == view_svg("four")


def view_svg(name: str) -> str:
    return plan_svg(sample(name), width=900, with_header=False)


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
  const [shown, meant] = [document.querySelector("svg"), holder.content.firstChild];
  const frame = shown.parentNode.getBoundingClientRect();
  const ratio = Number(meant.getAttribute("height")) / Number(meant.getAttribute("width"));
  if (Math.abs(frame.height / frame.width - ratio) > 0.01) return false;
  // It may be higher than what is seen of it.
  if (Number(shown.getAttribute("height")) < Number(meant.getAttribute("height"))) return false;
  for (const name of ["height", "viewBox"]) meant.setAttribute(name, shown.getAttribute(name));
  return shown.isEqualNode(meant);
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
        empty = {"pieces": [], "changes": {}, "count": 0, "hovers": "", "is_running": False}
        visited.page.evaluate(_SHOW, [LivePicture._esm, empty])
        yield visited.page
        assert visited.complaints == []


def test_the_page_shows_the_picture_whatever_it_showed_before(page):
    live = LivePicture()
    for pieces, hovers in (*PICTURES, *PICTURES[::-1]):
        live.show(pieces, hovers=hovers)
        names = ("pieces", "changes", "count", "hovers")
        page.evaluate("(values) => receive(values)", {name: getattr(live, name) for name in names})
        svg = f"{''.join(pieces)}{hovers or '<g/>'}</svg>".replace(' xmlns="http://www.w3.org/2000/svg"', "")
        page.wait_for_function(_EQUAL, arg=svg)
    assert page.evaluate("model.get('is_running')")


def test_what_does_not_differ_is_left_alone(page):
    page.evaluate(
        "(values) => receive(values)", {"pieces": list(PICTURES[0][0]), "count": len(PICTURES[0][0])}
    )
    page.evaluate("document.querySelectorAll('text').forEach((text) => (text.kept = text.textContent))")
    page.evaluate(
        "(values) => receive(values)", {"pieces": list(PICTURES[1][0]), "count": len(PICTURES[1][0])}
    )
    same = "[...document.querySelectorAll('text')].filter((text) => text.kept === text.textContent).length"
    assert page.evaluate(same) > 0.5 * page.evaluate("document.querySelectorAll('text').length")


def test_what_goes_leaves_nothing_behind(page):
    page.evaluate(
        "(values) => receive(values)", {"pieces": list(PICTURES[0][0]), "count": len(PICTURES[0][0])}
    )
    page.evaluate("end()")
    assert page.evaluate("[listening(), document.querySelectorAll('svg').length]") == [0, 0]
