import threading

import pytest

from pgplan.errors import SplitError
from pgplan.widgets.background import Background

LONG_S = 30.0


class Watcher:
    """Note what a background shows, fails with and says of waiting."""

    def __init__(self):
        self.shown, self.failed, self.waits = [], [], []
        self.ended = threading.Event()
        self.background = Background(show=self.show, fail=self.fail, wait=self.wait)

    def show(self, result):
        self.shown.append(result)
        self.ended.set()

    def fail(self, error):
        self.failed.append(str(error))
        self.ended.set()

    def wait(self, is_waiting):
        self.waits.append(is_waiting)


@pytest.fixture
def watcher():
    watcher = Watcher()
    yield watcher
    watcher.background.cancel()


@pytest.fixture
def patience(monkeypatch):
    def have(seconds):
        monkeypatch.setattr("pgplan.widgets.background.PATIENCE_S", seconds)

    return have


def _raise(error):
    raise error


def test_what_is_quick_is_shown_at_once(watcher, patience):
    patience(LONG_S)
    watcher.background.run(lambda tell: 7)
    assert (watcher.shown, watcher.waits) == ([7], [])


def test_work_like_quick_work_needs_no_thread(watcher, patience, monkeypatch):
    patience(LONG_S)
    monkeypatch.setattr("pgplan.widgets.background.QUICK_S", LONG_S)
    threads = []

    def work(*_):
        threads.append(threading.current_thread())
        return len(threads)

    for kind in ("cuts", "cuts", "pp"):
        watcher.background.run(work, quick=work, like=kind)
    assert watcher.shown == [1, 2, 3]
    assert [thread is threading.main_thread() for thread in threads] == [False, True, False]
    watcher.background.run(work, quick=lambda: _raise(SplitError("no such split")), like="cuts")
    assert watcher.failed == ["no such split"]
    # What quick work cannot answer is done as a whole.
    watcher.background.run(lambda tell: "all", quick=lambda: None, like="cuts")
    assert watcher.shown[-1] == "all"


def test_work_that_was_not_quick_keeps_its_thread(watcher, patience, monkeypatch):
    patience(LONG_S)
    monkeypatch.setattr("pgplan.widgets.background.QUICK_S", -1.0)
    for _ in range(2):
        watcher.background.run(lambda tell: "slow", quick=lambda: "quick", like="cuts")
    assert watcher.shown == ["slow", "slow"]


def test_an_error_is_told_and_a_mistake_is_raised(watcher, patience):
    patience(LONG_S)
    watcher.background.run(lambda tell: _raise(SplitError("no such split")))
    assert watcher.failed == ["no such split"]
    with pytest.raises(ZeroDivisionError):
        watcher.background.run(lambda tell: 1 // 0)


def test_what_is_slow_is_shown_when_it_is_there(watcher, patience):
    patience(0.01)
    go_on = threading.Event()
    watcher.background.run(lambda tell: go_on.wait(LONG_S))
    assert (watcher.shown, watcher.waits) == ([], [True])
    go_on.set()
    assert watcher.ended.wait(LONG_S)
    assert (watcher.shown, watcher.waits) == ([True], [True, False])


def test_an_interim_result_is_shown_while_the_rest_takes_long(watcher, patience):
    patience(0.2)
    go_on = threading.Event()

    def work(tell):
        tell("first")
        go_on.wait(LONG_S)
        return "all"

    watcher.background.run(work)
    assert (watcher.shown, watcher.waits) == (["first"], [True])
    watcher.ended.clear()
    go_on.set()
    assert watcher.ended.wait(LONG_S)
    assert watcher.shown == ["first", "all"]


def test_what_is_cancelled_ends_and_is_never_shown(watcher, patience):
    patience(0.01)
    started = threading.Event()
    threads = []

    def work(tell):
        threads.append(threading.current_thread())
        started.set()
        total = 0
        while True:
            total += 1

    watcher.background.run(work)
    assert started.wait(LONG_S)
    assert watcher.background.cancel()
    threads[0].join(LONG_S)
    assert not threads[0].is_alive()
    assert (watcher.shown, watcher.failed, watcher.waits) == ([], [], [True, False])
    assert not watcher.background.cancel()


def test_newer_work_replaces_what_is_under_way(watcher, patience):
    patience(0.01)

    def endless(tell):
        while True:
            pass

    watcher.background.run(endless)
    patience(LONG_S)
    watcher.background.run(lambda tell: "new")
    assert watcher.shown == ["new"]
