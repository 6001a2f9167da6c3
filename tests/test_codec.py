"""Dataclasses to plain data and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from pgplan.codec import from_data, to_data
from pgplan.errors import PlanError


@dataclass(frozen=True)
class Leaf:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...]
    pair: tuple[int, int] | None
    colour: Literal["red", "blue"] = "red"


def test_round_trip_keeps_every_value() -> None:
    tree = Tree("oak", (Leaf(1), Leaf(2, 0.1)), (3, 4), "blue")
    assert from_data(Tree, to_data(tree)) == tree
    assert to_data(tree)["pair"] == [3, 4]


def test_a_part_that_is_read_already_stays_as_it_is() -> None:
    leaf = Leaf(7)
    tree = from_data(Tree, {"name": "oak", "leaves": [leaf, {"size": 1}], "pair": None})
    assert tree.leaves == (leaf, Leaf(1)) and tree.leaves[0] is leaf
    with pytest.raises(PlanError, match=r"leaves\[0\]"):
        from_data(Tree, {"name": "oak", "leaves": [tree], "pair": None})


def test_defaults_may_be_left_out() -> None:
    assert from_data(Tree, {"name": "oak", "leaves": [], "pair": None}) == Tree("oak", (), None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "oak", "leaves": []}, "tree lacks the field 'pair'"),
        ({"name": "oak", "leaves": [], "pair": None, "roots": 1}, "unknown field 'roots'"),
        ({"name": 7, "leaves": [], "pair": None}, "tree.name must be str, got 7"),
        ({"name": "oak", "leaves": [{"size": True}], "pair": None}, r"tree.leaves\[0\].size must be int"),
        ({"name": "oak", "leaves": [], "pair": [1]}, "tree.pair must have 2 items, got 1"),
        ({"name": "oak", "leaves": [], "pair": None, "colour": "green"}, "tree.colour must be one of 'red'"),
        ([], "tree must be an object"),
    ],
)
def test_wrong_data_is_refused_by_field(data: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        from_data(Tree, data, where="tree")
