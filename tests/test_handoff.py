from __future__ import annotations

from typing import Any

import pytest

from pgplan.launcher import launch

torch = pytest.importorskip("torch")
TOKENS = [1, 5, 3, 8, 8, 2]
WIDTH, TENSORS = 16, 2
ITEM_BYTES = {"bfloat16": 2, "float32": 4, "float8_e4m3fn": 1}


def hop(
    pp_size: int, tp_size: int, *, sliced: bool | None, joined: bool, dtype: str = "bfloat16"
) -> dict[str, Any]:
    return {
        "pp_size": pp_size,
        "tp_size": tp_size,
        "sliced": sliced,
        "joined": joined,
        "dtype": dtype,
        "tokens": TOKENS,
    }


def name(case: dict[str, Any]) -> str:
    way = {None: "measured", True: "sliced", False: "whole"}[case["sliced"]]
    joined = "joined" if case["joined"] else "separate"
    return f"pp{case['pp_size']}-tp{case['tp_size']}-{way}-{joined}-{case['dtype']}"


TWO = [
    hop(2, 1, sliced=None, joined=True),
    hop(2, 1, sliced=False, joined=False, dtype="float32"),
    hop(2, 1, sliced=False, joined=True, dtype="float8_e4m3fn"),
    hop(1, 2, sliced=True, joined=True),
]
FOUR = [
    hop(4, 1, sliced=None, joined=True),
    *[hop(2, 2, sliced=sliced, joined=joined) for sliced in (False, True, None) for joined in (False, True)],
]


@pytest.fixture(scope="module")
def passed_on() -> dict[str, list[Any]]:
    """What each rank saw of each hand-off."""
    seen: dict[str, list[Any]] = {}
    for cases in (TWO, FOUR):
        ranks = cases[0]["pp_size"]
        args = {"cases": [("hand_on", case) for case in cases] + [("wrong_use", {})] * (cases is TWO)}
        results = launch("tensor_entries:several", ranks=ranks, args=args, timeout=120).results
        for index, case in enumerate(cases):
            seen[str(case)] = [mine[index] for mine in results]
        if cases is TWO:
            seen["wrong use"] = [mine[-1] for mine in results]
    return seen


@pytest.mark.parametrize("case", TWO + FOUR, ids=name)
def test_every_bit_arrives_and_slices_halve_the_bytes(
    case: dict[str, Any], passed_on: dict[str, list[Any]]
) -> None:
    tp_size, ranks = case["tp_size"], passed_on[str(case)]
    assert all(seen["equal"] for seen in ranks)
    whole_bytes = sum(TOKENS) * WIDTH * TENSORS * ITEM_BYTES[case["dtype"]]
    senders, last = ranks[:-tp_size], ranks[-tp_size:]
    assert all(seen["sent"] == 0 for seen in last)
    if tp_size == 1 or case["sliced"] is not None:
        assert all(seen["sent"] == whole_bytes // (tp_size if case["sliced"] else 1) for seen in senders)
    else:
        # Measured: whatever it found, all ranks found the same.
        assert len({seen["sliced_from"] for seen in ranks}) == 1
        assert all(whole_bytes // tp_size <= seen["sent"] <= whole_bytes for seen in senders)


def test_wrong_use_is_told_with_its_mend(passed_on: dict[str, list[Any]]) -> None:
    first, second = passed_on["wrong use"]
    assert first == [
        "GroupError: pp_size 3 x tp_size 1 is not the number of ranks, 2; start pp_size * tp_size ranks",
        "GroupError: stage 0 of 2 has no stage before it",
        "GroupError: a hop of 5 tokens has 320 bytes, its buffer 256; raise max_tokens",
        "GroupError: send_stage wants the tensors of the last outgoing(), once; or give joined=False",
    ]
    assert second[1] == "GroupError: stage 1 of 2 has no stage after it"
