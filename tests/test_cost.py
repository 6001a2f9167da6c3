"""Sharding, memory, timing and communication by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pgplan as pg
from pgplan.cost import memory as sizes
from pgplan.cost.batch import Batch, experts_touched
from pgplan.cost.communication import all_reduce_s, handoff_bytes, handoff_s
from pgplan.cost.pipeline import flow
from pgplan.cost.rates import Rates, Work
from pgplan.cost.sharding import check_tp_size, layer_bytes, rank_bytes, rank_shape
from pgplan.cost.timing import Parts, by_part, kernels_of, layer_work, product_work
from pgplan.errors import DivisibilityError
from pgplan.hardware import own_link
from pgplan.model.spec import LayerSpec, Weight
from pgplan.model.storage import dtype_storage, fp8

BFLOAT16 = dtype_storage("bfloat16")
H200 = pg.find_gpu("H200")
LLAMA_70B = pg.load_model("llama-3.1-70b")
# Two whole prompts of 2048 tokens.
CHUNK = Batch(
    tokens=4096, sequences=2, context=1024, cached=1024, decode=False, element_bytes=2, kv_element_bytes=2
)


def weight(**fields: object) -> Weight:
    return Weight(**{"name": "w", "part": "mlp", "rows": 1024, "cols": 512, "storage": BFLOAT16, **fields})  # type: ignore[arg-type]


def roofline_parts(model: pg.ModelSpec, layer: LayerSpec, batch: Batch) -> Parts:
    """Return the seconds that one layer takes on one H200, by part."""
    return by_part(layer_work(model, layer, batch, tp_size=1), Rates.roofline(H200))


@pytest.mark.parametrize(
    ("fields", "tp_size", "shape"),
    [
        ({"shard": "column"}, 4, (256, 512)),
        ({"shard": "row"}, 4, (1024, 128)),
        ({"shard": "replicated"}, 4, (1024, 512)),
        # 8 KV heads of 128 over 4 ranks, and over 16: then every rank has one head.
        ({"shard": "column", "units": 8}, 4, (256, 512)),
        ({"shard": "column", "units": 8}, 16, (128, 512)),
        # A vocabulary of 1000 is padded to 1024 first.
        ({"shard": "vocab", "rows": 1000}, 4, (256, 512)),
    ],
)
def test_rank_shape(fields: dict[str, object], tp_size: int, shape: tuple[int, int]) -> None:
    assert rank_shape(weight(**fields), tp_size=tp_size) == shape


def test_a_row_parallel_bias_is_on_every_rank() -> None:
    # 1024 x 128 elements and 1024 biases of 2 bytes.
    assert rank_bytes(weight(shard="row", bias=True), tp_size=4) == (1024 * 128 + 1024) * 2
    assert rank_bytes(weight(shard="column", bias=True), tp_size=4) == (256 * 512 + 256) * 2


def test_sizes_that_do_not_divide_are_named() -> None:
    with pytest.raises(DivisibilityError, match="w has 1024, which 3 ranks cannot share evenly"):
        rank_shape(weight(shard="column"), tp_size=3)
    with pytest.raises(AssertionError):  # as vLLM raises there
        rank_shape(weight(shard="column", units=28, rows=3584), tp_size=8)


def test_a_shard_must_not_cut_a_quantization_block() -> None:
    # Qwen3-30B-A3B-FP8: 768 / 4 = 192 rows per rank, blocks of 128; vLLM refuses that too.
    model = pg.load_model("qwen3-30b-a3b-fp8")
    check_tp_size(model, tp_size=2)
    with pytest.raises(
        pg.HardwareError, match="leaves 192 per rank, which cuts its quantization blocks of 128"
    ):
        check_tp_size(model, tp_size=4)


def test_dense_activation_peak_by_hand() -> None:
    # T (2h + 3I) elements of 2 bytes: 4096 * (2 * 8192 + 3 * 28672) * 2 = 0.78125 GiB.
    peak = sizes.activation_bytes(LLAMA_70B, LLAMA_70B.kinds[0], tokens=4096, tp_size=1, element_bytes=2)
    assert peak == 4096 * (2 * 8192 + 3 * 28672) * 2
    halved = sizes.activation_bytes(LLAMA_70B, LLAMA_70B.kinds[0], tokens=4096, tp_size=2, element_bytes=2)
    assert halved == 4096 * (2 * 8192 + 3 * 14336) * 2


def test_rotary_tables_are_shared_by_equal_layers() -> None:
    # 131072 positions * 128 * 2 bytes = 32 MiB for Llama 3.1.
    assert sizes.rotary_table_bytes(LLAMA_70B, frozenset({0}), element_bytes=2) == 32 << 20
    # Gemma 3 has one base for windows and one for full attention: two tables of 131072 * 128 * 2 bytes.
    gemma = pg.load_model("gemma-3-27b")
    both = sizes.rotary_table_bytes(gemma, frozenset(range(len(gemma.kinds))), element_bytes=2)
    one = sizes.rotary_table_bytes(gemma, frozenset({0}), element_bytes=2)
    assert both == 2 * one == 2 * 131_072 * 128 * 2


def test_decode_of_a_layer_is_bound_by_its_bytes() -> None:
    layer = LLAMA_70B.kinds[0]
    batch = Batch(
        tokens=1, sequences=1, context=512, cached=512, decode=True, element_bytes=2, kv_element_bytes=2
    )
    parts = dict(roofline_parts(LLAMA_70B, layer, batch))
    stream = 4.8e12 * 0.883 * 0.96
    assert parts["matmul"] == pytest.approx(layer_bytes(layer, tp_size=1) / stream, rel=0.001)


@pytest.mark.parametrize(
    ("sequences", "context", "decode", "measured_s"),
    # One Llama-3.1-70B layer in plain torch on an H200, CUDA events: prefill of whole prompts, decode in a
    # CUDA graph over a dense cache.
    [
        (2, 2048, False, 11.0e-3),
        (1, 4096, False, 11.1e-3),
        (1, 8192, False, 23.4e-3),
        (1, 512, True, 477e-6),
        (16, 4096, True, 527e-6),
        (64, 512, True, 526e-6),
        (64, 4096, True, 732e-6),
        (128, 512, True, 591e-6),
        (128, 4096, True, 1007e-6),
    ],
)
def test_a_layer_is_timed_within_the_stated_error(
    sequences: int, context: int, decode: bool, measured_s: float
) -> None:
    tokens = sequences if decode else sequences * context
    attended = context if decode else context / 2
    batch = Batch(
        tokens=tokens,
        sequences=sequences,
        context=attended,
        cached=attended,
        decode=decode,
        element_bytes=2,
        kv_element_bytes=2,
    )
    parts = roofline_parts(LLAMA_70B, LLAMA_70B.kinds[0], batch)
    # The shares were fitted to this project's own kernels, and know nothing of these measurements.
    assert sum(seconds for _, seconds in parts) == pytest.approx(measured_s, rel=0.06)


def test_where_memory_and_arithmetic_take_as_long_neither_hides_all_of_the_other() -> None:
    rates = Rates.roofline(H200)
    stream, compute = rates.stream_rate("weights"), rates.compute_rate("product", "bf16")
    both = Work(part="matmul", operations=compute * 1e-3, moved_bytes=stream * 1e-3)
    assert rates.seconds(replace(both, operations=0)) == pytest.approx(1e-3)
    assert rates.seconds(both) == pytest.approx(2 ** (1 / 3) * 1e-3)
    # A tenth of the time beside it does not show.
    assert rates.seconds(replace(both, operations=compute * 1e-4)) == pytest.approx(1e-3, rel=1e-3)


def test_products_in_fp16_hold_less_than_in_bf16() -> None:
    rates = Rates.roofline(H200)
    assert rates.compute_rate("product", "fp16") == 0.96 * rates.compute_rate("product", "bf16")


def test_norms_and_low_rank_queries_are_kernels_of_their_own() -> None:
    def kernels(name: str) -> list[int]:
        return [kernels_of(kind) for kind in pg.load_model(name).kinds]

    # Two norms, six of attention, three of the MLP.
    assert kernels("llama-3.1-70b") == [11]
    # Two norms more around each block.
    assert kernels("gemma-3-27b") == [13, 13]
    # Latent attention has eight; experts six, and shared ones four more.
    assert kernels("deepseek-v2-lite") == [2 + 8 + 3, 2 + 8 + 6 + 4]
    # Low-rank queries have two more; products in fp8 have one for each input: four of attention, two of the
    # MLP or of the experts, two of shared ones.
    assert kernels("deepseek-v3") == [2 + 10 + 3 + 4 + 2, 2 + 10 + 6 + 4 + 4 + 2 + 2]


def test_inputs_of_narrow_products_are_rounded_first() -> None:
    plain = LLAMA_70B.kinds[0]
    narrow = replace(
        plain,
        weights=tuple(
            replace(found, storage=fp8(block=(1, 0))) if found.is_matrix else found for found in plain.weights
        ),
    )
    # Four inputs: that of q, k and v, of the output, of gate and up, and of down.
    assert kernels_of(narrow) - kernels_of(plain) == 4

    def moved(layer: LayerSpec) -> float:
        return layer_work(LLAMA_70B, layer, CHUNK, tp_size=1)[-1].moved_bytes

    # Read in two bytes, written in one.
    assert moved(narrow) - moved(plain) == 4096 * (8192 + 8192 + 8192 + 28672) * 3


def test_a_chunk_behind_cached_latents_projects_them_again() -> None:
    model = pg.load_model("deepseek-v2-lite")
    layer = model.kinds[0]
    up = next(found for found in layer.weights if found.name.endswith("kv_b_proj"))

    def operations(batch: Batch) -> float:
        return sum(
            work.operations for work in layer_work(model, layer, batch, tp_size=1) if work.part == "matmul"
        )

    whole = replace(CHUNK, tokens=4096, sequences=1, context=2048, cached=2048)
    second_half = replace(whole, context=2048 + 4096)
    again = product_work(up, layer, replace(whole, tokens=4096), tp_size=1).operations
    assert operations(second_half) - operations(whole) == pytest.approx(again)
    # Decode attends to the latents themselves.
    step = replace(whole, tokens=64, sequences=64, context=4096, decode=True)
    assert operations(step) == pytest.approx(operations(replace(step, context=64)))


@pytest.mark.parametrize("depth", [2048, 8192])
def test_a_product_of_little_depth_is_dearer_per_operation(depth: int) -> None:
    work = product_work(weight(cols=depth), LLAMA_70B.kinds[0], CHUNK, tp_size=1)
    # Four stages of 64 are filled and emptied beside what is multiplied.
    assert work.operations == 2 * 4096 * 1024 * (depth + 256)


@pytest.mark.parametrize(
    ("window", "context", "sequences", "expected"),
    [
        (None, 1024, 2, "attention"),  # two whole prompts of 2048
        (4096, 1024, 2, "attention"),  # as wide as they are long: no window at all
        (1024, 1024, 2, "masked_attention"),
        (None, 3072, 1, "attention"),  # the second half of a prompt
        (4096, 3072, 1, "masked_attention"),  # which is longer than the window than its chunk is
    ],
)
def test_a_chunk_is_masked_by_a_window_that_is_shorter_than_all_before_it(
    window: int | None, context: float, sequences: int, expected: str
) -> None:
    spec = LLAMA_70B.kinds[0].attention
    assert spec is not None
    layer = replace(LLAMA_70B.kinds[0], attention=replace(spec, window=window))
    batch = replace(CHUNK, sequences=sequences, context=context, cached=context)
    found = [work for work in layer_work(LLAMA_70B, layer, batch, tp_size=1) if work.part == "attention"]
    assert [work.computing for work in found] == [expected]


def test_experts_touched_saturate() -> None:
    layer = LayerSpec(attention=None, weights=(), num_experts=128, experts_per_token=8)
    assert experts_touched(layer, 1) == pytest.approx(8)
    # 128 * (1 - (120 / 128)^16) = 82.4
    assert experts_touched(layer, 16) == pytest.approx(82.42, abs=0.01)
    assert experts_touched(layer, 10_000) == pytest.approx(128)


def test_windows_bound_attention() -> None:
    gemma = pg.load_model("gemma-3-27b")
    sliding, full = sorted(
        gemma.kinds, key=lambda kind: kind.attention.window is None if kind.attention else 0
    )
    batch = Batch(
        tokens=8, sequences=8, context=65536, cached=65536, decode=True, element_bytes=2, kv_element_bytes=2
    )
    times = [dict(roofline_parts(gemma, kind, batch)) for kind in (sliding, full)]
    assert times[1]["attention"] == pytest.approx(64 * times[0]["attention"])  # 65536 / 1024


def test_handoff_is_sliced_by_tp() -> None:
    # Hidden states and residual: 2 * 4096 * 8192 * 2 bytes, a quarter of it per rank with tp 4.
    assert handoff_bytes(LLAMA_70B, tokens=4096, tp_size=1, element_bytes=2) == 134_217_728
    assert handoff_bytes(LLAMA_70B, tokens=4096, tp_size=4, element_bytes=2) == 33_554_432
    link = own_link(H200)
    assert handoff_s(0, link, gpu=H200, tp_size=1) == link.latency_s
    assert handoff_s(1 << 28, link, gpu=H200, tp_size=1) == pytest.approx(752e-6, rel=0.1)  # measured


def test_all_reduce_near_what_was_measured() -> None:
    # 256 MiB of bf16 over 4 H200s took 1187 microseconds.
    assert all_reduce_s(1 << 28, gpu=H200, tp_size=4) == pytest.approx(1187e-6, rel=0.1)
    assert all_reduce_s(1 << 28, gpu=H200, tp_size=1) == 0.0


def test_a_full_pipeline_goes_at_the_pace_of_its_slowest_stage() -> None:
    full = flow([1.0, 3.0, 1.0], [0.5, 0.5, 0.0], microbatches=3)
    assert (full.cycle_s, full.latency_s, full.period_s, full.full) == (3.5, 6.0, 3.5, True)
    lone = flow([1.0, 3.0, 1.0], [0.5, 0.5, 0.0], microbatches=1)
    assert (lone.period_s, lone.full) == (6.0, False)


def test_an_unquantized_copy_of_a_model_weighs_its_parameters() -> None:
    for name in ("llama-3.1-8b", "mixtral-8x7b", "deepseek-v2-lite", "gemma-2-9b"):
        model = pg.load_model(name)
        for kind in model.kinds:
            plain = replace(
                kind,
                weights=tuple(replace(item, storage=BFLOAT16, bias_storage=None) for item in kind.weights),
            )
            assert layer_bytes(plain, tp_size=1) == 2 * kind.parameters
