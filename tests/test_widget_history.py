from dataclasses import replace

import pytest
from plan_samples import sample

from pgplan.widgets.choice import Choice
from pgplan.widgets.history import Entry, History

CHOICE = Choice.from_plan(sample("four"))


def _entry(number):
    return Entry(choice=replace(CHOICE, num_layers=number))


@pytest.fixture
def clock():
    """A clock that is set by hand."""
    return [0.0]


@pytest.fixture
def history(clock):
    return History(_entry(80), clock=lambda: clock[0])


def test_every_change_can_be_taken_back_and_made_again(history):
    for number in (81, 82, 83):
        history.push(_entry(number), field="split")
    for number in (82, 81, 80):
        history.back()
        assert history.present == _entry(number)
    assert history.before is None
    history.back()
    assert history.present == _entry(80)
    history.forth()
    history.forth()
    assert (history.present, history.after) == (_entry(82), _entry(83))


def test_a_new_change_forgets_what_was_taken_back(history):
    history.push(_entry(81), field="split")
    history.back()
    history.push(_entry(82), field="split")
    assert history.after is None
    assert history.before == _entry(80)


def test_a_change_that_changes_nothing_is_none(history):
    history.push(_entry(80), field="split")
    assert history.before is None


def test_what_is_dragged_is_one_change(history, clock):
    for number in (81, 82, 83):
        clock[0] += 0.1
        history.push(_entry(number), field="layers")
    history.back()
    assert history.present == _entry(80)
    history.forth()
    # A second drag, and a control that is not dragged, are changes of their own.
    clock[0] += 5.0
    history.push(_entry(84), field="layers")
    assert history.before == _entry(83)
    history.push(_entry(85), field="pp")
    assert history.before == _entry(84)
    history.push(_entry(86), field="split")
    history.push(_entry(87), field="split")
    assert history.before == _entry(86)


def test_a_gesture_is_one_change_however_long_it_rests_and_another_one_is_another(history, clock):
    for number, gesture in ((81, 1), (82, 1), (83, 2), (84, 3), (85, 3)):
        clock[0] += 5.0 if gesture == 1 else 0.1
        history.push(_entry(number), field="cuts", gesture=gesture)
    seen = []
    while history.before is not None:
        seen.append(history.present)
        history.back()
    assert seen == [_entry(85), _entry(83), _entry(82)]


def test_what_was_taken_back_is_not_dragged_on(history):
    history.push(_entry(81), field="layers")
    history.push(_entry(82), field="split")
    history.back()
    history.push(_entry(83), field="layers")
    assert history.before == _entry(81)


def test_it_does_not_grow_for_ever(history):
    for number in range(1000):
        history.push(_entry(1 + number), field="split")
    steps = 0
    while history.before is not None:
        history.back()
        steps += 1
    assert steps == 499
    assert history.present == _entry(501)
