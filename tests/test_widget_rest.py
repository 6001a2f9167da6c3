"""What is put off until the user rests, and that nothing of an older plan stands there meanwhile."""

from __future__ import annotations

import asyncio
import threading

import pytest

import pgplan as pg
from pgplan.widgets import planner as planner_module
from pgplan.widgets.rest import Rest, is_page_asking


def test_without_a_loop_it_is_done_at_once():
    done = []
    Rest(lambda: done.append(1), after_s=60).soon()
    assert done == [1]


def test_it_is_done_once_however_often_and_from_wherever_it_is_asked_for():
    async def ask() -> list[str]:
        done: list[str] = []
        ended = asyncio.Event()

        def act() -> None:
            done.append(threading.current_thread().name)
            ended.set()

        rest = Rest(act, after_s=0.01)
        rest.soon()
        other = threading.Thread(target=rest.soon)
        other.start()
        other.join()
        rest.soon()
        assert done == []
        await ended.wait()
        return done

    assert asyncio.run(ask()) == [threading.current_thread().name]


def test_what_has_been_stopped_is_not_done():
    done = []
    rest = Rest(lambda: done.append(1), after_s=60)
    rest.stop()
    rest.soon()
    assert done == []


def test_no_page_asks_where_no_kernel_runs():
    assert not is_page_asking()


def test_a_page_sees_the_plan_at_once_and_the_rest_when_it_rests(monkeypatch):
    pytest.importorskip("anywidget")
    cluster = pg.Cluster.uniform("H200", pp_size=4)
    by_code = pg.Planner("llama-3.1-8b", cluster)
    by_code.controls["split"].value = "5,9,9,9"

    async def by_page() -> pg.Planner:
        planner = pg.Planner("llama-3.1-8b", cluster)
        monkeypatch.setattr(planner_module, "is_page_asking", lambda: True)
        planner.controls["split"].value = "5,9,9,9"
        board = planner.board
        assert planner.plan.split == (5, 9, 9, 9)
        assert "5 layers" in board.picture.value
        # The export is of the plan before: it is dimmed and cannot be selected.
        assert "pgplan-old" in board.tab._dom_classes
        assert "visibility:hidden" in board.sentence.value
        assert "<title>" not in board.picture.value
        while "pgplan-old" in board.tab._dom_classes:
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        return planner

    planner = asyncio.run(by_page())
    for show in (
        lambda board: board.sentence.value,
        lambda board: board.picture.value,
        lambda board: board.hand_over.text.value,
    ):
        assert show(planner.board) == show(by_code.board)
    assert "5,9,9,9" in planner.board.hand_over.text.value
    planner.close()
    by_code.close()
