"""The strict override: what passes, and the one line each refusal says."""

import math

import pytest

from pgplan.errors import SplitError
from pgplan.split import check_stage_count, format_split, parse_split


@pytest.mark.parametrize(
    ("given", "split"),
    [
        ("20,21,20,19", (20, 21, 20, 19)),
        (" 20 , 21,\t20,19 ", (20, 21, 20, 19)),
        ("20,*,*,19", (20, None, None, 19)),
        ("*,*,*,*", (None, None, None, None)),
        ((20, 21, 20, 19), (20, 21, 20, 19)),
        ([20, "*", None, 19], (20, None, None, 19)),
        ((count for count in (20, 21, 20, 19)), (20, 21, 20, 19)),
    ],
)
def test_canonical_splits_pass(given, split):
    assert parse_split(given, num_layers=80, pp_size=4) == split


def test_formatted_split_is_what_is_parsed():
    for split in ((20, 21, 20, 19), (20, None, None, 19)):
        assert parse_split(format_split(split), num_layers=80, pp_size=4) == split
    assert format_split((20, None, None, 19)) == "20,*,*,19"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0,80", ("stage 0 of '0,80' has '0'", "vLLM", "divides by zero", "e.g. 40,40")),
        ("81,-1", ("stage 1 of '81,-1' has '-1'", "backwards", "e.g. 40,40")),
        ("", ("2 layer counts but '' has none", "not unset", "e.g. 40,40")),
        ("  ", ("'  ' has none",)),
        ("40,40,", ("'40,40,' has 3 and pp_size is 2", "e.g. 40,40")),
        ("80", ("'80' has 1 and pp_size is 2",)),
        ("40,,40", ("has 3 and pp_size is 2",)),
        (",80", ("stage 0 of ',80' has nothing",)),
        ("40,39", ("80 layers but '40,39' gives 79; add 1",)),
        ("41,41", ("80 layers but '41,41' gives 82; take 2 off",)),
        ("80,*", ("fixes 80 of 80 layers and leaves 0 for 1 free stages; take 1 off",)),
        ("a,b", ("has 'a'",)),
        ("+40,40", ("has '+40'",)),
        ("4_0,40", ("has '4_0'",)),
        ("040,40", ("has '040'",)),
        ("\uff14\uff10,40", ("plain digits",)),
        ("40;40", ("has 1 and pp_size is 2",)),
        ("[40,40]", ("has '[40'",)),
        ("40.0,40", ("has '40.0'",)),
        ("40\n,40", ("has '40\\n'",)),
        ((40.0, 40.0), ("has 40.0",)),
        ((math.nan, 40), ("has nan",)),
        ((True, 79), ("has True",)),
        ((0, 80), ("has 0", "divides by zero")),
        ((-1, 81), ("has -1", "backwards")),
        ((), ("has 0 and pp_size is 2",)),
        (7, ("not 7",)),
    ],
)
def test_refusal_says_rule_value_and_mend_on_one_line(given, words):
    with pytest.raises(SplitError) as caught:
        parse_split(given, num_layers=80, pp_size=2)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("num_layers", "pp_size", "words"),
    [
        (4, 8, "4 layers cannot fill 8 stages; set pp_size to 4 or less"),
        (4, 0, r"stages \(pp_size\) must be a whole number of at least 1, not 0; give 1 or more"),
        (4, -1, "not -1"),
        (4, True, "not True"),
        (0, 1, "number of layers must be a whole number of at least 1, not 0"),
        (4.0, 2, "not 4.0"),
    ],
)
def test_pipeline_that_leaves_a_stage_empty_is_refused(num_layers, pp_size, words):
    with pytest.raises(SplitError, match=words):
        check_stage_count(num_layers, pp_size)
    with pytest.raises(SplitError, match=words):
        parse_split("1,1", num_layers=num_layers, pp_size=pp_size)
