import pytest
from plan_samples import NAMES, sample

from pgplan.view.parts import PARTS
from pgplan.view.picture import make_picture


@pytest.mark.parametrize("name", NAMES)
def test_segments_add_up_to_what_the_stage_uses_and_strands(name):
    plan = sample(name)
    for row, stage in zip(make_picture(plan).rows, plan.stages, strict=True):
        assert row.drawn_bytes == stage.used_bytes + stage.stranded_kv_bytes
        assert all(size > 0 for _, size in row.segments)


@pytest.mark.parametrize("name", NAMES)
def test_segments_are_drawn_in_the_order_of_the_legend(name):
    picture = make_picture(sample(name))
    order = [part.key for part in PARTS]
    for row in picture.rows:
        places = [order.index(key) for key, _ in row.segments]
        assert places == sorted(places)
    assert {part.key for part in picture.parts} == {key for row in picture.rows for key, _ in row.segments}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "one"])
def test_exactly_one_stage_is_marked_slowest_and_none_is_slower(name):
    for phase in make_picture(sample(name)).phases:
        marked = [bar for bar in phase.bars if bar.is_slowest]
        assert len(marked) == 1
        assert marked[0].total_s == pytest.approx(max(bar.total_s for bar in phase.bars))


def test_of_equally_slow_stages_the_one_that_the_plan_names_is_marked():
    plan = sample("sixteen")
    decode = make_picture(plan).phases[0]
    assert decode.bars[plan.bottleneck.stage].is_slowest


def test_one_stage_alone_is_not_called_slowest_or_tightest():
    picture = make_picture(sample("one"))
    assert not any(bar.is_slowest for phase in picture.phases for bar in phase.bars)
    assert not picture.rows[0].is_tightest


def test_the_tightest_stage_is_the_one_that_holds_the_fewest_tokens():
    plan = sample("uneven")
    tightest = [row for row in make_picture(plan).rows if row.is_tightest]
    assert [row.kv_tokens for row in tightest] == [min(stage.kv_tokens for stage in plan.stages)]


def test_a_plan_that_fits_says_what_holds_it_back():
    plan = sample("four")
    sentence = make_picture(plan).sentence
    assert sentence[0].isupper()
    assert sentence.lower() == plan.bottleneck.why.lower() + "."


@pytest.mark.parametrize("name", ["too big", "no room"])
def test_a_plan_that_does_not_fit_says_why_and_what_would_help(name):
    plan = sample(name)
    assert not plan.fits
    picture = make_picture(plan)
    assert picture.sentence.startswith("Does not fit: " + plan.problems[0])
    assert "t would fit with" in picture.summary
    assert "tokens/s" not in picture.summary


def test_short_bytes_are_what_the_budget_lacks():
    plan = sample("too big")
    for row, stage in zip(make_picture(plan).rows, plan.stages, strict=True):
        assert row.short_bytes == max(0, -stage.kv_budget_bytes)
    assert any(row.short_bytes for row in make_picture(plan).rows)


def test_a_starved_pipeline_is_said_to_be_so_and_shows_no_cycle():
    plan = sample("starved")
    assert plan.microbatches < plan.pp_size
    picture = make_picture(plan)
    assert "the pipeline is never full" in picture.summary
    decode = picture.phases[0]
    assert not decode.is_full
    assert decode.note.startswith("not full")


def test_a_full_pipeline_shows_its_cycle():
    plan = sample("four")
    picture = make_picture(plan)
    assert all(phase.is_full for phase in picture.phases)
    assert "never full" not in picture.summary
    # 64 requests in 4 microbatches of 16: one microbatch leaves in each cycle.
    assert plan.decode_tokens_per_s == pytest.approx(16 / picture.phases[0].cycle_s)


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_says_how_sure_it_is(name):
    plan = sample(name)
    basis = make_picture(plan).basis
    assert plan.tier in basis
    assert f"may be off by {100 * plan.time_error:.0f} %" in basis
    assert "KV tokens" in basis


def test_mixed_gpus_are_named_per_stage_and_equal_ones_are_not():
    rows = make_picture(sample("mixed")).rows
    assert [row.detail.partition(" · ")[2] for row in rows] == [
        "H200 SXM 141GB",
        "H200 SXM 141GB",
        "L40S",
        "A100 80GB SXM4",
    ]
    assert all("·" not in row.detail for row in make_picture(sample("four")).rows)


def test_the_hover_text_tells_every_part_of_the_stage():
    plan = sample("four")
    hover = make_picture(plan).rows[3].hover
    assert "layers 61 to 79" in hover
    # 128256 x 8192 rows and columns in bf16 and the final norm: 1.957 GiB.
    assert "final norm and head: 1.96 GiB" in hover
    assert "embedding:" not in hover
