"""The post: what many widgets change at once, in one message, and how a page hands it out."""

from __future__ import annotations

import ipywidgets as W
import pytest

pytest.importorskip("anywidget", reason="the post needs the lab extra")

from pgplan.widgets.planner import Planner
from pgplan.widgets.post_widget import Post


@pytest.fixture
def told(monkeypatch):
    """Collect the data of every message to a page."""
    messages = []

    def publish(comm, kind, data=None, **more):
        if kind == "comm_msg":
            messages.append((comm.comm_id, data))

    monkeypatch.setattr("comm.base_comm.BaseComm.publish_msg", publish, raising=False)
    monkeypatch.setattr("comm.DummyComm.publish_msg", publish)
    return messages


def letters(told):
    """Return what the posts among the messages carried."""
    return [data["content"] for _, data in told if data["method"] == "custom"]


def test_widgets_send_their_own_until_a_front_end_runs_the_post(told):
    post, text = Post(), W.Text()
    post.serve(first=[text], then=[])
    with post.together():
        text.value = "a"
    assert [(comm, data["state"]) for comm, data in told] == [(text.model_id, {"value": "a"})]


def test_what_changes_together_goes_in_one_message(told):
    post, slider, words = Post(), W.IntSlider(), W.HTML()
    post.serve(first=[slider], then=[words])
    post.is_running = True
    told.clear()
    with post.together():
        slider.value, slider.max, words.value = 2, 200, "old"
        with post.together():
            words.value = "new"
        assert not told
    assert letters(told) == [
        {"first": {slider.model_id: {"value": 2, "max": 200}}, "then": {words.model_id: {"value": "new"}}}
    ]
    told.clear()
    # Alone as well, so that messages keep their order.
    slider.value = 3
    assert letters(told) == [{"first": {slider.model_id: {"value": 3}}, "then": {}}]
    assert len(told) == 1


def test_what_a_page_set_is_echoed_and_not_sent_back(told):
    post, slider = Post(), W.IntSlider()
    post.serve(first=[slider], then=[])
    post.is_running = True
    told.clear()
    slider.set_state({"value": 5})
    assert [data["method"] for _, data in told] == ["echo_update"]


def test_an_edit_of_the_planner_is_two_messages_the_picture_first(told):
    planner = Planner("llama-3.1-8b")
    for running in (planner.board.picture.live, planner._screen.post):
        running.is_running = True
    told.clear()
    planner.controls["split"].value = "9,7,8,8"
    typed, drawn, said, complete = letters(told)
    assert typed == {"first": {planner.controls["split"].model_id: {"value": "9,7,8,8"}}, "then": {}}
    # Picture and controls; ruler, words and buttons once these are painted.
    assert planner.board.picture.live.model_id in drawn["first"]
    assert {pin.model_id for pin in planner.board.stages.pins[:2]} <= set(drawn["first"])
    assert not drawn["then"] and not said["first"]
    told_of = {planner.board.ruler.model_id, planner.board.sentence.model_id, planner.board.tab.model_id}
    assert told_of <= set(said["then"])
    # Code is answered in full; on a page this follows when the user rests.
    assert "hovers" in complete["first"][planner.board.picture.live.model_id]
    planner.close()
    assert planner._screen.post.comm is None
