import pytest
from plan_samples import NAMES, sample

from pgplan.view import plan_html, plan_text
from pgplan.view.table import stage_table


def _rows(text, first):
    """Return the cells of the block of lines whose header contains ``first``."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    lines = next(block for block in blocks if first in block[0])
    return [line.split() for line in lines]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_line_is_longer_than_the_terminal(name, width):
    assert max(map(len, plan_text(sample(name), width=width).splitlines())) <= width


def test_the_table_holds_the_figures_of_the_plan():
    plan = sample("four")
    header, _, *rows, total = _rows(plan_text(plan, width=80), "weights")
    assert header[:4] == ["stage", "layers", "range", "weights"]
    for row, stage in zip(rows, plan.stages, strict=True):
        assert row[:3] == [str(stage.stage), str(stage.num_layers), f"{stage.start}-{stage.stop - 1}"]
        # GiB to one digit.
        assert float(row[3]) == pytest.approx(stage.weight_bytes / 2**30, abs=0.051)
    assert total[:2] == ["all", "80"]


def test_a_wide_terminal_gets_one_table_and_a_narrow_one_two():
    plan = sample("four")
    wide, narrow = plan_text(plan, width=140), plan_text(plan, width=80)
    assert sum("KV tokens  prefill" in line for line in wide.splitlines()) == 1
    assert not any("KV tokens  prefill" in line for line in narrow.splitlines())
    assert narrow.count("stage  ") == 2


def test_problems_advice_and_notes_are_told():
    plan = sample("too big")
    text = " ".join(plan_text(plan, width=200).split())
    for remark in (*plan.problems, *plan.notes):
        assert " ".join(remark.split()) in text


def test_every_text_carries_tier_and_error():
    for name in NAMES:
        text = " ".join(plan_text(sample(name), width=80).split())
        assert f"GPU times: roofline, may be off by {100 * sample(name).time_error:.0f} %" in text


def test_str_is_the_text():
    assert str(sample("four")).splitlines()[0] == plan_text(sample("four"), width=80).splitlines()[0]


def test_mixed_gpus_get_a_column_and_towers_get_one_where_there_are_some():
    assert "A100 80GB SXM4" in plan_text(sample("mixed"), width=80)
    titles = {column.title for group in stage_table(sample("tied")).groups for column in group}
    assert "towers" in titles
    titles = {column.title for group in stage_table(sample("four")).groups for column in group}
    assert not titles & {"towers", "GPU"}


def test_html_needs_no_script_and_holds_picture_table_and_notes():
    plan = sample("starved")
    html = plan_html(plan)
    assert "<script" not in html
    assert html.count("<svg") == 1
    assert html.count("<tr>") == 1 + plan.pp_size + 1
    assert plan.notes[0][:40] in html
    assert plan._repr_html_() == html
