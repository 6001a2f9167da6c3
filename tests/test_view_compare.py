import re

import pytest
from plan_samples import NAMES, sample

from pgplan.view import compare_plans, plan_frame
from pgplan.view.numbers import change, gib, milliseconds, share, short_count

GIB = 2**30


def test_the_frame_holds_every_figure_with_its_unit():
    plan = sample("four")
    frame = plan_frame(plan)
    assert list(frame.index) == [0, 1, 2, 3]
    assert list(frame["layers"]) == list(plan.split)
    assert list(frame["weights_gib"] * GIB) == pytest.approx([s.weight_bytes for s in plan.stages])
    assert list(frame["decode_ms"]) == pytest.approx([s.decode_s * 1e3 for s in plan.stages])
    parts = [
        "weights_gib",
        "activations_gib",
        "logits_gib",
        "cuda_graphs_gib",
        "cuda_context_gib",
        "kv_used_gib",
    ]
    assert list(frame[parts].sum(axis=1) * GIB) == pytest.approx([s.used_bytes for s in plan.stages])
    numeric = frame.select_dtypes("float").columns
    assert all(re.search("_(gib|ms)$", column) for column in numeric)
    assert plan.to_frame().equals(frame)


def test_words_tell_what_b_changes_against_a():
    a, b = sample("uneven"), sample("four")
    words = compare_plans(a, b).words
    gain = round(100 * (b.decode_tokens_per_s / a.decode_tokens_per_s - 1))
    assert gain > 0
    assert f"decode +{gain} %" in words
    assert f"KV {short_count(b.kv_tokens)} tokens (+" in words
    assert (
        f"decode −{round(100 * (1 - a.decode_tokens_per_s / b.decode_tokens_per_s))} %"
        in compare_plans(b, a).words
    )


def test_words_tell_which_of_the_two_fits():
    assert compare_plans(sample("too big"), sample("four")).words == "B fits, A does not"
    assert compare_plans(sample("four"), sample("too big")).words == "A fits, B does not"
    assert compare_plans(sample("too big"), sample("no room")).words == "neither fits"


def test_a_plan_against_itself_changes_nothing():
    plan = sample("four")
    comparison = plan.compare(plan)
    assert comparison.words == f"decode ±0 %, prefill ±0 %, KV {short_count(plan.kv_tokens)} tokens (±0 %)"
    assert "→" not in str(comparison)
    assert not comparison.to_frame()["B - A"].to_numpy().any()


@pytest.mark.parametrize("name", NAMES)
def test_plans_of_any_shape_can_be_compared(name):
    a, b = sample("four"), sample(name)
    comparison = a.compare(b)
    assert len(comparison.to_frame()) == max(a.pp_size, b.pp_size)
    html = comparison._repr_html_()
    assert html.count("<tr>") == max(a.pp_size, b.pp_size) + 2
    assert "<script" not in html
    assert comparison.words in str(comparison)


def test_the_table_shows_both_values_where_they_differ():
    text = str(sample("default").compare(sample("four")))
    row = next(line for line in text.splitlines() if line.split()[:1] == ["1"])
    assert "20 → 21" in row
    assert "roofline" in text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (gib(9.996 * GIB), "10.0"),
        (gib(0.004 * GIB), "0"),
        (gib(-5.39 * GIB), "-5.39"),
        (milliseconds(0.0099996), "10.0"),
        (milliseconds(0), "0"),
        (short_count(999_600), "1.00M"),
        (short_count(0), "0"),
        (share(0.0949), "9.5 %"),
        (share(0.0951), "10 %"),
        (change(3, 3), "±0 %"),
        (change(0, 3), "from 0"),
        (change(200, 100), "−50 %"),
    ],
)
def test_numbers_round_without_odd_edges(written, expected):
    assert written == expected
