"""What plans make of a calibration: the tier of each stage, its error, and what the fit explains."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

import pgplan as pg
from pgplan.cost.batch import Batch
from pgplan.cost.communication import all_gather_s, all_reduce_s
from pgplan.cost.fitting import _least_squares, fit_rates, points_of, seen_classes, with_fit
from pgplan.cost.pricing import ends_digest, layer_digest
from pgplan.cost.rates import Rates
from pgplan.cost.timing import by_part, embedding_work, head_work, layer_work
from pgplan.errors import CalibrationError
from pgplan.hardware.calibration_rows import EndReduceTimes, EndTimes, LayerTimes, LinkTimes, ReduceTimes
from pgplan.hardware.interpolation import Curve, Grid
from pgplan.model import ModelSpec
from pgplan.verification.sizes import ON_GPU

H200 = pg.find_gpu("H200")
CLUSTER = pg.Cluster.uniform(H200, pp_size=4)
WORKLOAD = pg.Workload(prompt_tokens=2048, output_tokens=256, concurrency=256, max_num_batched_tokens=4096)
CHUNKS, PROMPT_HALVES = ON_GPU.chunks, tuple(size // 2 for size in ON_GPU.prompts)
BATCHES, CONTEXTS = ON_GPU.batches, ON_GPU.contexts


def slow_rates(factor: float = 1.5) -> Rates:
    """Return a device that is ``factor`` slower than the roofline in products, and twice in launches."""
    usual = Rates.roofline(H200)
    shares = replace(
        usual.shares,
        product=usual.shares.product / factor,
        experts=usual.shares.experts / factor,
        weights=usual.shares.weights / factor,
        expert_weights=usual.shares.expert_weights / factor,
        prefill_kernel_s=2 * usual.shares.prefill_kernel_s,
    )
    return replace(usual, shares=shares)


def measured(model: ModelSpec, rates: Rates, *, tp_size: int = 1) -> pg.Calibration:
    """Make the calibration that a device of these rates would give."""

    def batch(tokens: int, context: int, *, decode: bool) -> Batch:
        sequences = tokens if decode else max(1, tokens // (2 * context))
        return Batch(
            tokens=tokens,
            sequences=sequences,
            context=context,
            cached=context,
            decode=decode,
            element_bytes=2,
            kv_element_bytes=2,
        )

    def seconds(work: object) -> float:
        return sum(s for _, s in by_part(work, rates))  # type: ignore[arg-type]

    def grid(kind: int, rows: tuple[int, ...], columns: tuple[int, ...], *, decode: bool) -> Grid:
        spec = model.kinds[kind]
        return Grid(
            tokens=rows,
            contexts=columns,
            seconds=tuple(
                tuple(
                    seconds(layer_work(model, spec, batch(n, ctx, decode=decode), tp_size=tp_size))
                    for ctx in columns
                )
                for n in rows
            ),
        )

    def curve(sizes: tuple[int, ...], work: object) -> Curve:
        return Curve(sizes=sizes, seconds=tuple(seconds(work(size)) for size in sizes))  # type: ignore[operator]

    one = batch(1, 1, decode=True)
    return pg.Calibration(
        gpu=H200.name,
        device="NVIDIA H200",
        date="2026-11-22",
        environment={"torch": "2.11"},
        models=(model.name,),
        layers=tuple(
            LayerTimes(
                digest=layer_digest(spec),
                kind=spec.kind,
                model=model.name,
                tp_size=tp_size,
                prefill=grid(kind, CHUNKS, PROMPT_HALVES, decode=False),
                decode=grid(kind, BATCHES, CONTEXTS, decode=True),
            )
            for kind, spec in enumerate(model.kinds)
        ),
        ends=(
            EndTimes(
                digest=ends_digest(model),
                model=model.name,
                tp_size=tp_size,
                embedding=curve((1, 16384), lambda n: embedding_work(model, replace(one, tokens=n))),
                head=curve((1, 64, 512), lambda n: head_work(model, n, one, tp_size=tp_size)),
            ),
        ),
    )


LLAMA = pg.load_model("llama-3.1-70b")


@pytest.fixture(scope="module")
def llama() -> pg.Calibration:
    return with_fit(measured(LLAMA, slow_rates()), [LLAMA], H200)


def plan(model: ModelSpec | str, calibration: pg.Calibration | None, **options: object) -> pg.Plan:
    settings = {"workload": WORKLOAD, "split": "default", **options}
    return pg.plan(model, settings.pop("cluster", CLUSTER), calibration=calibration, **settings)  # type: ignore[arg-type]


def test_a_model_that_was_measured_is_planned_by_its_own_times(llama: pg.Calibration) -> None:
    found, roofline = plan(LLAMA, llama), plan(LLAMA, None)
    assert found.tier == "measured" and found.time_error == pytest.approx(0.05)
    assert [stage.tier for stage in found.stages] == ["measured"] * 4
    times = llama.layers[0]
    middle = found.stages[1]
    assert middle.decode_s == pytest.approx(20 * times.decode.at(found.decode_batch, 2048 + 128))
    assert middle.prefill_s == pytest.approx(20 * times.prefill.at(4096, 1024))
    assert middle.decode_s > 1.2 * roofline.stages[1].decode_s
    # The parts are those of the estimate, and sum up to what was measured.
    assert sum(seconds for _, seconds in middle.decode_parts) == pytest.approx(middle.decode_s)
    assert any("times rest on NVIDIA H200, torch 2.11, 2026-11-22" in note for note in found.notes)


def test_another_model_is_planned_by_the_fit(llama: pg.Calibration) -> None:
    found = plan("qwen3-32b", llama)
    true = plan("qwen3-32b", measured(pg.load_model("qwen3-32b"), slow_rates()))
    assert found.tier == "calibrated" and found.time_error == 0.05
    for stage, right in zip(found.stages, true.stages, strict=True):
        assert stage.decode_s == pytest.approx(right.decode_s, rel=0.05)
        assert stage.prefill_s == pytest.approx(right.prefill_s, rel=0.05)


def test_narrow_weights_stay_at_the_roofline(llama: pg.Calibration) -> None:
    # The fit has seen products in 16 bits alone, and in fp8 activations are scaled and rounded besides.
    found = plan("devstral-2-123b", llama)
    assert found.tier == "roofline"
    assert 0.2 < found.time_error <= 0.25


def test_a_kind_whose_operations_were_never_seen_stays_at_the_roofline(llama: pg.Calibration) -> None:
    found = plan("qwen3-30b-a3b", llama)
    assert found.tier == "roofline"
    assert found.time_error == 0.25


def test_what_lies_outside_the_grid_falls_back_and_says_so(llama: pg.Calibration) -> None:
    found = plan(LLAMA, llama, workload=replace(WORKLOAD, prompt_tokens=20_000, concurrency=16))
    assert found.tier == "calibrated"
    assert any("tokens of context lie outside the calibration" in note for note in found.notes)


def test_other_tensor_parallelism_is_another_measurement(llama: pg.Calibration) -> None:
    cluster = pg.Cluster.uniform(H200, pp_size=2, tp_size=2)
    found = plan(LLAMA, llama, cluster=cluster)
    # The layers are calibrated; what their ranks say to each other was not measured at all.
    assert found.tier == "roofline"
    assert any(part == "all-reduce" for part, _ in found.stages[0].prefill_parts)


def test_ranks_pay_for_the_vocabulary_that_they_share() -> None:
    cluster = pg.Cluster.uniform("H200 SXM 141GB", pp_size=2, tp_size=2)
    found = plan(LLAMA, None, cluster=cluster)
    first, last = (dict(stage.decode_parts) for stage in found.stages)
    # Every layer has two all-reduces, the embedding one more; the ranks gather the logits of every request.
    one = all_reduce_s(found.decode_batch * LLAMA.hidden_size * 2, gpu=H200, tp_size=2)
    assert first["all-reduce"] == pytest.approx(81 * one) and "all-gather" not in first
    assert last["all-reduce"] == pytest.approx(80 * one)
    logits = found.decode_batch * LLAMA.vocab_size * 2
    assert last["all-gather"] == pytest.approx(all_gather_s(logits, gpu=H200, tp_size=2))
    alone = plan(LLAMA, None, cluster=CLUSTER)
    assert not {"all-reduce", "all-gather"} & {
        part for stage in alone.stages for part, _ in stage.decode_parts
    }


def test_what_communication_adds_to_the_ends_is_taken_where_it_was_measured() -> None:
    cluster = pg.Cluster.uniform("H200 SXM 141GB", pp_size=2, tp_size=2)
    curve = Curve(sizes=(1, 16384), seconds=(1e-5, 16385e-5))
    shards = measured(LLAMA, slow_rates(), tp_size=2)
    reduces = tuple(
        ReduceTimes(digest=row.digest, kind=row.kind, model=row.model, tp_size=2, prefill=curve, decode=curve)
        for row in shards.layers
    )
    ends = EndReduceTimes(digest=ends_digest(LLAMA), model=LLAMA.name, tp_size=2, embedding=curve, head=curve)
    found = plan(LLAMA, replace(shards, reduces=reduces, end_reduces=(ends,)), cluster=cluster)
    first, last = (dict(stage.decode_parts) for stage in found.stages)
    each = curve.at(found.decode_batch)
    assert first["all-reduce"] == pytest.approx(41 * each)
    assert (last["all-reduce"], last["all-gather"]) == (pytest.approx(40 * each), pytest.approx(each))
    assert found.tier == "measured"
    estimated = plan(LLAMA, replace(shards, reduces=reduces), cluster=cluster)
    assert estimated.tier == "roofline"
    note = (
        "not measured, so estimated: what embedding and head exchange; calibrate this model on 2 GPUs or more"
    )
    assert note in estimated.notes and not any("exchange" in note for note in found.notes)


def test_a_mixed_cluster_has_a_tier_for_each_stage(llama: pg.Calibration) -> None:
    cluster = pg.Cluster.mixed(["H200", "H200", "B200", "B200"])
    found = plan(LLAMA, llama, cluster=cluster)
    assert [stage.tier for stage in found.stages] == ["measured", "measured", "roofline", "roofline"]
    assert found.tier == "roofline" and found.time_error == 0.25
    assert pg.Plan.from_json(found.to_json()) == found


def test_a_calibration_of_another_device_is_refused(llama: pg.Calibration) -> None:
    with pytest.raises(CalibrationError, match="is of H200 SXM 141GB and the cluster has L40S"):
        plan("qwen3-8b", llama, cluster=pg.Cluster.uniform("L40S", pp_size=2))


def test_a_file_serves_as_well(llama: pg.Calibration, tmp_path: Path) -> None:
    path = tmp_path / "h200.json"
    llama.save(path)
    assert pg.plan(LLAMA, CLUSTER, workload=WORKLOAD, calibration=str(path)) == pg.plan(
        LLAMA, CLUSTER, workload=WORKLOAD, calibration=llama
    )


def test_links_that_were_measured_take_what_was_measured(llama: pg.Calibration) -> None:
    hop = Curve(sizes=(1 << 10, 1 << 30), seconds=(1e-3, 2e-3))
    links = LinkTimes(latency_s=1e-3, bandwidth=1e12, handoff=hop)
    found = plan(LLAMA, replace(llama, links=links))
    sent = 2 * 4096 * 8192 * 2
    assert found.stages[0].prefill_handoff_s == pytest.approx(hop.at(sent))
    # A link that the user gave is not the one that was measured.
    network = pg.Link(name="100 GbE", bandwidth=11e9, latency_s=50e-6)
    given = plan(
        LLAMA, replace(llama, links=links), cluster=pg.Cluster.uniform(H200, pp_size=4, link=network)
    )
    assert given.stages[0].prefill_handoff_s == pytest.approx(50e-6 + sent / 11e9)


def test_the_best_split_follows_the_measurement() -> None:
    # A head that takes as long as eight layers sends layers away from the last stage.
    calibration = measured(LLAMA, slow_rates())
    layer_s = calibration.layers[0].decode.at(64, 2176)
    end = calibration.ends[0]
    heavy = replace(end, head=Curve(sizes=(1, 512), seconds=(8 * layer_s, 8 * layer_s)))
    found = plan(LLAMA, replace(calibration, ends=(heavy,)), split="auto")
    assert found.split == (22, 22, 22, 14)


def test_the_fit_finds_the_rates_of_the_device() -> None:
    moe = pg.load_model("qwen3-30b-a3b")
    true = slow_rates(1.7)
    points = [point for model in (LLAMA, moe) for point in points_of(measured(model, true), model)]
    found = fit_rates(points, H200)
    seen = seen_classes(points, found)
    assert {"product", "weights", "expert_weights"} <= seen
    assert "latent" not in seen and "latent_cache" not in seen
    for name in ("product", "weights", "expert_weights"):
        assert getattr(found.shares, name) == pytest.approx(getattr(true.shares, name), rel=0.03)


def test_no_class_is_fitted_to_be_faster_than_the_data_sheet() -> None:
    usual = slow_rates()
    # A device that copies within its cache, three times as fast as its memory.
    true = replace(usual, shares=replace(usual.shares, copy=3.0))
    points = points_of(measured(LLAMA, true), LLAMA)
    found = fit_rates(points, H200).shares
    assert found.copy == 1.0
    assert found.product == pytest.approx(true.shares.product, rel=0.05)
    # Where the sheet holds guesses, as a CPU's does, a share of more says that the guess is low.
    assert fit_rates(points, replace(H200, confidence="low")).shares.copy > 2.0


def test_a_bound_is_kept_and_the_others_are_solved_for_beside_it() -> None:
    def residuals(theta: list[float]) -> list[float]:
        # Without a bound (3, -1); with the first at 1 the second is where the two halves agree.
        return [theta[0] + theta[1] - 2, theta[0] - theta[1] - 4, 1e-9 * theta[0]]

    free, bound = (_least_squares(residuals, [0.0, -0.5], most=[most, 5.0]) for most in (math.inf, 1.0))
    assert free == pytest.approx([3.0, -1.0], abs=1e-5)
    assert bound[0] == 1.0 and bound[1] == pytest.approx(-1.0, abs=1e-5)


def test_the_error_of_a_fit_is_that_of_models_it_has_not_seen() -> None:
    models = [pg.load_model(name) for name in ("llama-3.1-8b", "llama-3.1-70b")]
    one, other = (
        measured(model, slow_rates(factor)) for model, factor in zip(models, (1.0, 2.0), strict=True)
    )
    fit = with_fit(one.merge(other), models, H200).fit
    assert fit is not None and fit.left_out
    # Each is off by up to two from what the other shows.
    assert fit.error > 0.4
    alone = with_fit(one, models, H200).fit
    assert alone is not None and not alone.left_out and alone.error < 0.02


def test_a_digest_knows_shapes_and_not_names() -> None:
    layer = LLAMA.kinds[0]
    renamed = replace(
        layer, weights=tuple(replace(weight, name=f"x.{weight.name}") for weight in layer.weights)
    )
    assert layer_digest(renamed) == layer_digest(layer)
    wider = replace(layer.weights[0], rows=2 * layer.weights[0].rows)
    assert layer_digest(replace(layer, weights=(wider, *layer.weights[1:]))) != layer_digest(layer)
