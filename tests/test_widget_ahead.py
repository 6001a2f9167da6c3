"""Plans that are made before the pp slider asks for them: the same, and given up at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

import pgplan as pg
from pgplan.widgets import planner as planner_module
from pgplan.widgets.ahead import Ahead
from pgplan.widgets.choice import Choice, Known, first_choice
from pgplan.widgets.edits import edit


def chosen(pp_size: int, split: str = "auto") -> Choice:
    cluster = pg.Cluster.uniform("H200", pp_size=pp_size)
    return first_choice("llama-3.1-8b", cluster, pg.Workload(), "vllm", split, "decode", None)


@pytest.fixture
def asked(monkeypatch):
    """Note the pp_size of every plan that is made, in order."""
    sizes: list[int] = []
    plan = Choice.plan

    def noted(choice: Choice, **options: bool) -> pg.Plan:
        sizes.append(choice.pp_size)
        return plan(choice, **options)

    monkeypatch.setattr(Choice, "plan", noted)
    return sizes


async def until(is_so) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.001)


def prepared(choice: Choice, asked: list[int], *, count: int = 2) -> Ahead:
    """Return what is made while the loop has nothing else to do."""

    async def prepare() -> Ahead:
        ahead = Ahead()
        ahead.prepare(choice, Known())
        await until(lambda: len(asked) == count)
        return ahead

    return asyncio.run(prepare())


@pytest.mark.parametrize("split", ["auto", "default", "9,8,8,7"])
def test_what_is_made_ahead_is_what_is_made_on_demand(asked, split):
    choice = chosen(4, split)
    ahead = prepared(choice, asked)
    assert asked == [3, 5]
    for size in (3, 5):
        beside, _ = edit(choice, "pp", size, Known())
        asked.clear()
        plan = ahead.plan(beside)
        assert asked == []
        assert plan == beside.plan(with_advice=False)


def test_another_choice_is_planned_on_demand(asked):
    choice = chosen(4)
    ahead = prepared(choice, asked)
    longer = replace(edit(choice, "pp", 3, Known())[0], workload=pg.Workload(prompt_tokens=3000))
    assert ahead.plan(longer).workload.prompt_tokens == 3000
    assert asked == [3, 5, 3]


def test_there_are_no_fewer_stages_than_one_and_no_more_than_layers(asked):
    prepared(chosen(1), asked, count=1)
    assert asked == [2]
    asked.clear()
    prepared(chosen(32), asked, count=1)
    assert asked == [31]


def test_only_the_neighbours_of_the_last_choice_are_kept(asked):
    async def prepare() -> Ahead:
        ahead = Ahead()
        ahead.prepare(chosen(4), Known())
        await until(lambda: asked == [3, 5])
        ahead.prepare(chosen(6), Known())
        # The one with five stages is beside both.
        await until(lambda: asked == [3, 5, 7])
        return ahead

    ahead = asyncio.run(prepare())
    ahead.plan(chosen(3))
    assert asked == [3, 5, 7, 3]


def test_nothing_more_is_made_once_something_is_asked_for(monkeypatch):
    sizes = []
    plan = Choice.plan

    async def prepare() -> None:
        ahead = Ahead()

        def stopped(choice: Choice, **options: bool) -> pg.Plan:
            sizes.append(choice.pp_size)
            ahead.stop()
            return plan(choice, **options)

        monkeypatch.setattr(Choice, "plan", stopped)
        ahead.prepare(chosen(4), Known())
        await until(lambda: sizes)
        await asyncio.sleep(0.1)

    asyncio.run(prepare())
    assert sizes == [3]


def test_what_is_stopped_before_it_begins_makes_nothing(asked):
    async def prepare() -> None:
        ahead = Ahead()
        ahead.prepare(chosen(4), Known())
        ahead.stop()
        await asyncio.sleep(0.1)

    asyncio.run(prepare())
    assert asked == []


def test_nothing_is_made_where_no_loop_runs(asked):
    Ahead().prepare(chosen(4), Known())
    assert asked == []


def test_a_step_of_the_slider_shows_what_code_shows(asked, monkeypatch):
    pytest.importorskip("anywidget")
    # However slow this machine is.
    monkeypatch.setattr("pgplan.widgets.background.QUICK_S", 30.0)
    cluster = pg.Cluster.uniform("H200", pp_size=4)
    by_code = pg.Planner("llama-3.1-8b", cluster)
    by_code.controls["pp"].value = 6

    async def by_page() -> pg.Planner:
        planner = pg.Planner("llama-3.1-8b", cluster)
        with monkeypatch.context() as patched:
            patched.setattr(planner_module, "is_page_asking", lambda: True)
            asked.clear()
            planner.controls["pp"].value = 5
            assert asked == [5]
            await until(lambda: asked[1:] == [4, 6])
            await asyncio.sleep(0)
            planner.controls["pp"].value = 6
            assert (planner.plan.pp_size, asked) == (6, [5, 4, 6])
            await until(lambda: "pgplan-old" not in planner.board.tab._dom_classes)
        return planner

    planner = asyncio.run(by_page())
    assert planner.plan == by_code.plan
    for show in (
        lambda planner: planner.board.sentence.value,
        lambda planner: planner.board.picture.value,
        lambda planner: planner.board.hand_over.text.value,
        lambda planner: planner.controls["split"].value,
    ):
        assert show(planner) == show(by_code)
    planner.close()
    by_code.close()
