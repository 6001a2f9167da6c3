"""The engines' rules against what the engines themselves answered, restated compactly.

Each digest stands for 2080 combinations, 1 to 130 layers over 1 to 16 stages: the SHA-256 of the layer counts
that the engine's own function gave, one line per combination, e.g. ``15,16,16,15``.
"""

import hashlib

import pytest

from pgplan.split import (
    extras_before_last,
    extras_first_stages,
    extras_last_stages,
    get_pp_indices,
    remainder_on_last,
    sglang_pp_indices,
)

ENGINES = {
    "vllm": (get_pp_indices, "VLLM_PP_LAYER_PARTITION"),
    "sglang": (sglang_pp_indices, "SGLANG_PP_LAYER_PARTITION"),
}
DIGESTS = {
    "vllm 0.33.0": "d09148135526b1ac71f51939ecdb339e1531b2ad154d8ac42a6f615c47a37d9a",
    "sglang 0.5.23": "a4dc2a7f6e907649fee8b8a244a64ee9cba1fd90f47e2f63b2c7dce0506771bb",
    "vllm 0.6.6.post1 and sglang 0.5.3": "108bd10ca4b4a0fcd9f010555d5cdb0f8846a959d38f924f4f0bde423997270a",
    "tensorrt-llm": "511d073e4509fd195bfed9c528ee6796d7e85afaf6b979b79aec29077c37ae26",
}


def digest(rule):
    lines = (
        ",".join(map(str, rule(layers, stages))) + "\n" for layers in range(1, 131) for stages in range(1, 17)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def counts_by(function):
    """Return the rule that an index function implies, and check on the way that its ranges join."""

    def rule(layers, stages):
        ranges = [function(layers, rank, stages) for rank in range(stages)]
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
        assert ranges[-1][1] == layers
        return [stop - start for start, stop in ranges]

    return rule


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    for _, variable in ENGINES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("engine", "rule"),
    [
        ("vllm 0.33.0", extras_before_last),
        ("vllm 0.33.0", counts_by(get_pp_indices)),
        ("sglang 0.5.23", extras_last_stages),
        ("sglang 0.5.23", counts_by(sglang_pp_indices)),
        ("vllm 0.6.6.post1 and sglang 0.5.3", remainder_on_last),
        ("tensorrt-llm", extras_first_stages),
    ],
)
def test_rule_equals_the_engine_on_every_combination(engine, rule):
    assert digest(rule) == DIGESTS[engine]


@pytest.mark.parametrize(
    ("rule", "split"),
    [
        (extras_before_last, (7, 7, 8, 8, 8, 8, 8, 7)),
        (extras_last_stages, (7, 7, 7, 8, 8, 8, 8, 8)),
        (remainder_on_last, (7, 7, 7, 7, 7, 7, 7, 12)),
        (extras_first_stages, (8, 8, 8, 8, 8, 7, 7, 7)),
    ],
)
def test_61_layers_over_8_stages(rule, split):
    assert rule(61, 8) == split


def test_more_stages_than_layers_leaves_stages_empty_as_the_engines_do():
    assert extras_before_last(2, 4) == (0, 1, 1, 0)
    assert extras_last_stages(2, 4) == (0, 0, 1, 1)
    assert [n for n, count in enumerate(extras_before_last(1, 16)) if count] == [14]


def outcome(function, arguments):
    """Return the range, or the error's type, message and the type of its cause."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error), str(error), type(error.__cause__)


# The engines chain "Invalid partition string" from the ValueError of int(); their other errors have no cause.
UNPARSED, NO_CAUSE = ValueError, type(None)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("5,3", (8, 0, 2), (0, 5)),
        ("5,3", (8, 1, 2), (5, 8)),
        ("5,3", (8, -1, 2), (5, 8)),
        ("5,3", (8, 2, 2), (IndexError, "list index out of range", NO_CAUSE)),
        (" 5 , 3 ", (8, 1, 2), (5, 8)),
        ("5,3\n", (8, 1, 2), (5, 8)),
        ("+5,3", (8, 0, 2), (0, 5)),
        ("\uff15,3", (8, 0, 2), (0, 5)),
        ("1_0,2", (12, 0, 2), (0, 10)),
        ("0,8", (8, 0, 2), (0, 0)),
        ("-1,9", (8, 0, 2), (0, -1)),
        ("-1,9", (8, 1, 2), (-1, 8)),
        ("5,3,", (8, 0, 2), (ValueError, "Invalid partition string: 5,3,", UNPARSED)),
        ("", (8, 0, 2), (ValueError, "Invalid partition string: ", UNPARSED)),
        ("a,b", (8, 0, 2), (ValueError, "Invalid partition string: a,b", UNPARSED)),
        ("5;3", (8, 0, 2), (ValueError, "Invalid partition string: 5;3", UNPARSED)),
        ("5.0,3", (8, 0, 2), (ValueError, "Invalid partition string: 5.0,3", UNPARSED)),
        ("[5,3]", (8, 0, 2), (ValueError, "Invalid partition string: [5,3]", UNPARSED)),
        ("8", (8, 0, 2), (ValueError, "len(partitions)=1 does not match pp_size=2.", NO_CAUSE)),
        ("5,2", (8, 0, 2), (ValueError, "sum(partitions)=7 does not match num_hidden_layers=8.", NO_CAUSE)),
        ("8", (8, 0, 1), (0, 8)),
    ],
)
def test_override_is_read_as_the_engine_reads_it(monkeypatch, engine, text, arguments, expected):
    function, variable = ENGINES[engine]
    monkeypatch.setenv(variable, text)
    assert outcome(function, arguments) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "Invalid partition string: "), ("4,4", "len(partitions)=2 does not match pp_size=1.")],
)
def test_only_sglang_ignores_the_override_for_a_single_stage(monkeypatch, text, message):
    for _, variable in ENGINES.values():
        monkeypatch.setenv(variable, text)
    assert outcome(get_pp_indices, (8, 0, 1))[:2] == (ValueError, message)
    assert sglang_pp_indices(8, 0, 1) == (0, 8)


def test_override_is_read_on_every_call(monkeypatch):
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "5,3")
    assert get_pp_indices(8, 0, 2) == (0, 5)
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "6,2")
    assert get_pp_indices(8, 0, 2) == (0, 6)
    monkeypatch.delenv("VLLM_PP_LAYER_PARTITION")
    assert get_pp_indices(8, 0, 2) == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "vllm", "sglang"),
    [
        ((8, -1, 2), (4, 8), (-4, 0)),
        ((0, 0, 2), (0, 0), (0, 0)),
        ((-3, 0, 2), (0, -1), (0, -2)),
        ((2, 0, 4), (0, 0), (0, 0)),
        ((2, 3, 4), (2, 2), (1, 2)),
        ((8, 2, 2), (IndexError, "list index out of range", NO_CAUSE), (8, 13)),
    ],
)
def test_odd_arguments_without_an_override(arguments, vllm, sglang):
    assert outcome(get_pp_indices, arguments) == vllm
    assert outcome(sglang_pp_indices, arguments) == sglang


@pytest.mark.parametrize("function", [get_pp_indices, sglang_pp_indices])
def test_no_stages_divides_by_zero_as_the_engines_do(function):
    with pytest.raises(ZeroDivisionError):
        function(8, 0, 0)
