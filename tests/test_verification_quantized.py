"""Quantized weights as tensors: to the byte what the plan counts, and products those of their values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from verification_entries import small

import pgplan as pg
from pgplan.cost.pricing import layer_digest
from pgplan.cost.sharding import rank_bytes
from pgplan.errors import ModelError
from pgplan.model import storage as kinds
from pgplan.model.spec import ModelSpec, Storage, Weight
from pgplan.verification import products, quantized, scaled
from pgplan.verification.experts import grouped_product
from pgplan.verification.grid import Bench
from pgplan.verification.layouts import Layout, layout_of
from pgplan.verification.memory import DeviceMemory
from pgplan.verification.quantized import Quantized
from pgplan.verification.quantized_shards import quantized_shard
from pgplan.verification.shards import Shards, check_supported
from pgplan.verification.sizes import ON_CPU
from pgplan.verification.stage import Contents, Stage

BF16 = kinds.dtype_storage("bfloat16")
STORAGES = {
    "fp8 per tensor": kinds.fp8(block=(0, 0)),
    "fp8 static": kinds.fp8(block=(0, 0), static=True),
    "fp8 per row": kinds.fp8(block=(1, 0)),
    "fp8 blocks": kinds.fp8(block=(128, 128)),
    "fp8 blocks, scales of a byte": kinds.fp8(block=(128, 128), scale_bytes=1),
    "int8 per row": kinds.int8(block=(1, 0)),
    "int8 static": kinds.int8(block=(0, 0), static=True),
    "int8 groups": kinds.weight_only_int(8, 128, zero_points=True, plain=BF16),
    "awq": kinds.weight_only_int(4, 128, zero_points=True, plain=BF16),
    "gptq, act-order": kinds.weight_only_int(4, 32, zero_points=False, act_order=True, plain=BF16),
    "int4 per row": kinds.weight_only_int(4, -1, zero_points=False, plain=BF16),
    "mxfp4": kinds.mxfp4(plain=BF16),
    "nvfp4": kinds.nvfp4(activations=True, plain=BF16),
}
storages = pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)


def on_rank(storage: Storage, *weights: Weight, tp_size: int = 1, tp_rank: int = 0) -> Quantized:
    layout = layout_of(storage)
    assert layout is not None
    shards = Shards(tp_size=tp_size, tp_rank=tp_rank, device=torch.device("cpu"))
    return quantized_shard(shards, "layer 0", layout, *weights)


def weight(storage: Storage, *, rows: int = 512, shard: str = "column", copies: int = 1) -> Weight:
    return Weight(
        name=f"proj {rows}", part="mlp", rows=rows, cols=768, copies=copies, shard=shard, storage=storage
    )


def wide(held: Quantized) -> torch.Tensor:
    return held.widened(torch.float32, count=held.copies)


# --- storage ----------------------------------------------------------------------------------------------


@storages
@pytest.mark.parametrize(("shard", "axis"), [("column", 1), ("row", 2)])
def test_the_shards_together_are_the_whole_and_weigh_what_is_counted(
    storage: Storage, shard: str, axis: int
) -> None:
    given = weight(storage, shard=shard, copies=2)
    whole = on_rank(storage, given)
    parts = [on_rank(storage, given, tp_size=2, tp_rank=rank) for rank in range(2)]
    assert torch.equal(torch.cat([wide(part) for part in parts], axis), wide(whole))
    memory = DeviceMemory(torch.device("cpu"))
    assert memory.allocated_bytes(whole) == rank_bytes(given, tp_size=1)
    assert [memory.allocated_bytes(part) for part in parts] == [rank_bytes(given, tp_size=2)] * 2


@storages
def test_fused_matrices_are_each_their_own(storage: Storage) -> None:
    first, second = weight(storage), weight(storage, rows=256)
    both = wide(on_rank(storage, first, second))[0]
    assert torch.equal(both[:512], wide(on_rank(storage, first))[0])
    assert torch.equal(both[512:], wide(on_rank(storage, second))[0])


@storages
def test_a_product_keeps_the_size_of_what_goes_in(storage: Storage) -> None:
    held = wide(on_rank(storage, weight(storage)))
    assert float(held.square().mean() * 768) == pytest.approx(1, abs=0.15)


def test_scales_differ_from_block_to_block() -> None:
    scales = on_rank(STORAGES["fp8 blocks"], weight(STORAGES["fp8 blocks"])).scales
    assert scales.shape == (1, 4, 6) and len(scales.unique()) == 24


def test_a_block_may_end_at_the_edge() -> None:
    storage = STORAGES["fp8 blocks"]
    held = on_rank(storage, replace(weight(storage, rows=576), shard="replicated"))
    assert held.scales.shape == (1, 5, 6)
    last = held.elements[0, 512:, 640:].float() * held.scales[0, 4, 5]
    assert torch.equal(wide(held)[0, 512:, 640:], last)


def by_hand(layout: Layout, codes: list[int], **others: torch.Tensor) -> list[float]:
    held = Quantized(
        layout=layout,
        parts=(2,),
        cols=len(codes),
        elements=torch.tensor([[codes, codes]], dtype=torch.uint8)[:, :, ::2] * 16
        + torch.tensor([[codes, codes]], dtype=torch.uint8)[:, :, 1::2],
        **others,
    )
    return wide(held)[0, 1].tolist()


def test_four_bits_mean_what_the_formats_say() -> None:
    e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    nvfp4, awq, plain = (
        layout_of(kind)
        for kind in (
            kinds.nvfp4(activations=False, plain=BF16),
            kinds.weight_only_int(4, 16, zero_points=True, plain=BF16),
            kinds.weight_only_int(4, 16, zero_points=False, plain=BF16),
        )
    )
    assert nvfp4 is not None and awq is not None and plain is not None
    half, twice = torch.full((1, 2, 1), 0.5), torch.full((1, 1, 1), 2.0)
    codes = list(range(16))
    assert by_hand(nvfp4, codes, scales=half, extras=twice) == e2m1 + [-value for value in e2m1]
    assert by_hand(plain, codes, scales=half) == [(code - 8) / 2 for code in codes]
    # The zero point of the second row is the lower half of its byte.
    points = torch.tensor([[[0x53]]], dtype=torch.uint8)
    assert by_hand(awq, codes, scales=half, zero_points=points) == [(code - 3) / 2 for code in codes]


def config(**quantization: object) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "attention_bias": True,
        "quantization_config": quantization,
    }


def group(**weights: object) -> dict[str, object]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}


CONFIGS = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "static"},
    "blocks": {"quant_method": "fp8", "weight_block_size": [64, 64], "activation_scheme": "dynamic"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 64,
        "sym": True,
        "desc_act": True,
        "lm_head": True,
    },
    "pack-quantized": {
        "quant_method": "compressed-tensors",
        **group(num_bits=4, type="int", strategy="group", group_size=32, symmetric=True),
    },
    "channels": {
        "quant_method": "compressed-tensors",
        **group(num_bits=8, type="float", strategy="channel", symmetric=True),
    },
    "modelopt fp8": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "modelopt nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
}


def stages(model: ModelSpec, *, tp_size: int, engine: str) -> Iterator[tuple[int, int]]:
    """Yield what the tensors of each stage weigh on its last rank, and what the plan says."""
    cluster = pg.Cluster.uniform("H200", pp_size=2, tp_size=tp_size)
    plan = pg.plan(model, cluster, engine=engine, split="default")
    for planned in plan.stages:
        shards = Shards(tp_size=tp_size, tp_rank=tp_size - 1, device=torch.device("cpu"))
        stage = Stage(model, Contents.of(plan, planned.stage), shards, reduce=lambda x: x, gather=lambda x: x)
        yield DeviceMemory(torch.device("cpu")).allocated_bytes(stage), planned.weight_bytes


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("quantization", CONFIGS.values(), ids=CONFIGS)
def test_a_stage_weighs_what_the_plan_says(quantization: dict[str, object], tp_size: int) -> None:
    model = pg.load_model(config(**quantization))
    check_supported(model)
    assert {w.storage.bits for w in model.kinds[0].weights if w.is_matrix} <= {4, 8}
    for held, planned in stages(model, tp_size=tp_size, engine="vllm"):
        assert held == planned


CATALOGUE = ("qwen3-30b-a3b-fp8", "deepseek-v3", "kimi-k2.5", "llama-3.1-405b-fp8", "devstral-2-123b")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("name", CATALOGUE)
def test_a_narrowed_stage_weighs_what_the_plan_says(name: str, tp_size: int, engine: str) -> None:
    for held, planned in stages(small(name, layers=4), tp_size=tp_size, engine=engine):
        assert held == planned


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_narrowed_model_has_as_many_blocks(name: str) -> None:
    model, narrow = pg.load_model(name), small(name, layers=4)
    for theirs, ours in zip(model.kinds, narrow.kinds, strict=True):
        for before, after in zip(theirs.weights, ours.weights, strict=True):
            layout, other = layout_of(before.storage), layout_of(after.storage)
            assert (layout is None) == (other is None)
            if layout is not None and other is not None:
                counts = layout.scales_shape(before.rows, before.cols)
                found = other.scales_shape(after.rows, after.cols)
                for count, other_count, size in zip(counts, found, layout.block, strict=True):
                    assert size == 1 or count == other_count


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 64}, "int3 groups of 64"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 64, "dynamic": {"-:.*v_proj": {}}},
            "multiplied with at once",
        ),
    ],
)
def test_what_cannot_be_laid_out_is_refused_by_name(quantization: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_supported(pg.load_model(config(**quantization)))


# --- products ---------------------------------------------------------------------------------------------


@storages
def test_a_product_is_that_of_the_values_however_it_is_sliced(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = on_rank(storage, weight(storage), weight(storage, rows=256))
    x, bias = torch.randn(2, 5, 768), torch.randn(768)
    wanted = x @ wide(held)[0].t() + bias
    torch.testing.assert_close(products.multiply(held, x, bias), wanted, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(quantized, "_SLICE_ELEMENTS", 768 * 200)
    torch.testing.assert_close(products.multiply(held, x, bias), wanted, rtol=1e-4, atol=1e-4)


@storages
@pytest.mark.parametrize("slice_elements", [1 << 25, 3 * 768 * 512, 768 * 512])
def test_experts_are_multiplied_group_by_group_however_they_are_sliced(
    storage: Storage, slice_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "_SLICE_ELEMENTS", slice_elements)
    held = on_rank(storage, weight(storage, copies=5))
    x, ends = torch.randn(700, 768), torch.tensor([0, 300, 300, 301, 700], dtype=torch.int32)
    plain = wide(held)
    wanted = torch.cat((x[:300] @ plain[1].t(), x[300:301] @ plain[3].t(), x[301:] @ plain[4].t()))
    torch.testing.assert_close(grouped_product(x, held, ends), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "product"),
    [
        ("fp8 per tensor", scaled.per_tensor),
        ("fp8 static", scaled.per_tensor),
        ("fp8 per row", scaled.per_row),
    ],
)
def test_fp8_products_part_by_the_rounding_of_activations(kind: str, product: products.Product) -> None:
    held = on_rank(STORAGES[kind], weight(STORAGES[kind]))
    x = torch.randn(32, 768).bfloat16()
    wanted = held.multiply(x).float()
    error = float((product(held, x).float() - wanted).norm() / wanted.norm())
    assert 0.01 < error < 0.05


def test_activations_and_scales_by_blocks_lie_as_cublas_wants_them() -> None:
    storage = STORAGES["fp8 blocks"]
    held = on_rank(storage, replace(weight(storage, rows=200), cols=576, shard="replicated"))
    x = torch.randn(5, 576)
    quantized, scale = scaled.by_blocks(x)
    # A multiple of 4 tokens; their scales one block after the other; those of the weight padded to 8.
    assert quantized.shape == (8, 576) and quantized.dtype == torch.float8_e4m3fn
    assert (scale.shape, scale.stride()) == ((8, 5), (1, 8))
    beside = scaled.padded_scales(held).t()
    assert (beside.shape, beside.stride()) == ((8, 2), (1, 8))
    back = (quantized.float() * scale.repeat_interleave(128, 1)[:, :576])[:5]
    assert 0.01 < float((back - x).norm() / x.norm()) < 0.04
    of_each = beside.t().repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :576]
    assert torch.equal(held.elements[0].float() * of_each, wide(held)[0])


@pytest.mark.parametrize("kind", ["awq", "gptq, act-order"])
def test_the_int4_kernel_reads_scales_and_zero_points_as_they_are_given(kind: str) -> None:
    held = on_rank(STORAGES[kind], weight(STORAGES[kind]))
    x = torch.randn(4, 768)
    codes = torch.stack((held.elements[0] >> 4, held.elements[0] & 15), -1).flatten(1)
    # The CPU has a kernel of the same kind, with an order of its own for the elements.
    packed = torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    group = held.layout.block[1]
    found = torch._weight_int4pack_mm_for_cpu(x.bfloat16(), packed, group, scaled.scales_and_zeros(held))
    wanted = x @ wide(held)[0].t()
    assert float((found.float() - wanted).norm() / wanted.norm()) < 0.01


def test_a_cpu_multiplies_widened_and_says_so() -> None:
    used = products.kernels_entry(
        small("qwen3-30b-a3b-fp8", layers=2), tp_size=1, device="cpu", kv_is_fp8=True
    )
    assert [line.partition(": emulated")[0] for line in used["kernels"].split("; ")] == [
        "fp8 blocks of 128x128 / 64, experts in fp8 blocks of 128x128 / 64",
        "KV cache in fp8",
    ]
    assert products.kernels_entry(small("llama-3.1-8b", layers=2), tp_size=1, device="cpu") == {}


def test_latents_that_are_widened_at_every_step_are_told() -> None:
    model = small("deepseek-v3", layers=4)
    said = [
        products.kernels_entry(model, tp_size=1, device="cpu", widens_latents=widens)["kernels"]
        for widens in (True, False)
    ]
    assert ["latent up-projections in decode: emulated" in text for text in said] == [False, True]


def test_emulated_products_are_not_calibrated_with() -> None:
    with pytest.raises(
        ModelError, match="fp8 blocks of 128x128 / 64 is emulated here, since there is no GPU"
    ):
        products.check_real(small("qwen3-30b-a3b-fp8", layers=2), tp_size=1, device="cpu")
    products.check_real(small("llama-3.1-8b", layers=2), tp_size=1, device="cpu")


def test_a_kernel_that_fails_is_not_used_and_its_words_are_kept() -> None:
    layout = layout_of(STORAGES["awq"])
    assert layout is not None
    # The reordering for tiles exists on GPUs alone.
    problem = products.probe("_weight_int4pack_mm", layout, torch.bfloat16, "cpu")
    assert problem.startswith("fails here (") and "CPU" in problem


# --- a whole run ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_record_says_what_is_emulated_and_promises_no_times_then() -> None:
    model = pg.load_model(config(**CONFIGS["awq"]))
    workload = pg.Workload(
        prompt_tokens=64, output_tokens=8, concurrency=4, max_model_len=128, kv_dtype="fp8"
    )
    plan = pg.plan(model, pg.Cluster.uniform("H200", pp_size=2), workload=workload)
    record = pg.verify(plan, backend="gloo", timeout=100)
    assert record.passed
    assert record.plan.workload.kv_dtype == "fp8"
    factor = record.narrowed_by
    said = record.sentences[-1]
    assert f"int4 groups of 128 / {factor}: emulated" in said and "KV cache in fp8: emulated" in said
    for stage, planned in zip(record.stages, record.plan.stages, strict=True):
        assert stage.weight_bytes == planned.weight_bytes
    on_gpu = {(item.what, item.quantity): item for item in replace(record, backend="nccl").comparisons}
    assert on_gpu["stage 0", "decode_s"].tolerance is on_gpu["pipeline", "decode_period_s"].tolerance is None
    real = replace(record, backend="nccl", environment={"kernels": "int4 groups of 128: _weight_int4pack_mm"})
    promised = {(item.what, item.quantity): item.tolerance for item in real.comparisons}
    assert promised["stage 0", "decode_s"] and promised["pipeline", "decode_period_s"]
    assert "are multiplied with by torch's kernels" in real.sentences[-1]


@pytest.mark.slow
@torch.inference_mode()
def test_layers_of_a_quantized_model_are_timed() -> None:
    model = pg.load_model(config(**CONFIGS["awq"]))
    bench = Bench(model, torch.device("cpu"), ON_CPU, told=lambda: None)
    shard = bench.layer(0, tp_size=2)
    assert shard.digest == layer_digest(model.kinds[0])
    assert (shard.prefill.tokens, shard.decode.tokens) == (ON_CPU.chunks, ON_CPU.batches)
    # Widening takes its time however few tokens there are, so nothing is said of their order.
    assert min(map(min, (*shard.prefill.seconds, *shard.decode.seconds))) > 0


# --- on a GPU ---------------------------------------------------------------------------------------------

KERNELS = {
    "fp8 per tensor": "_scaled_mm, per tensor",
    "fp8 static": "_scaled_mm, per tensor",
    "fp8 per row": "_scaled_mm, per row",
    "awq": "_weight_int4pack_mm",
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", STORAGES)
def test_a_gpu_multiplies_as_a_cpu_does(kind: str) -> None:
    storage = STORAGES[kind]
    layout = layout_of(storage)
    assert layout is not None
    shards = Shards(tp_size=1, tp_rank=0, device=torch.device("cuda"))
    held = quantized_shard(shards, "layer 0", layout, weight(storage), weight(storage, rows=256))
    x = torch.randn(33, 768, device="cuda", dtype=torch.bfloat16)
    wanted = x.float() @ wide(held)[0].t()
    ready = products.prepared(held)
    found = products.multiply(ready, x, None).float()
    assert float((found - wanted).norm() / wanted.norm()) < 0.06
    assert DeviceMemory(torch.device("cpu")).allocated_bytes(ready) == sum(
        rank_bytes(part, tp_size=1) for part in (weight(storage), weight(storage, rows=256))
    )
    if kind in KERNELS:
        chosen = products.kernel_for(layout, torch.bfloat16, "cuda", 768, 768, grouped=False)
        assert chosen.name == KERNELS[kind], chosen


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["fp8 per row", "fp8 blocks", "awq"])
def test_a_gpu_multiplies_experts_as_a_cpu_does_and_in_a_graph(kind: str) -> None:
    from pgplan.verification.passes import capture

    storage = STORAGES[kind]
    layout = layout_of(storage)
    assert layout is not None
    shards = Shards(tp_size=1, tp_rank=0, device=torch.device("cuda"))
    held = quantized_shard(shards, "layer 0", layout, weight(storage, copies=4))
    x = torch.randn(64, 768, device="cuda", dtype=torch.bfloat16)
    ends = torch.tensor([10, 10, 50, 64], dtype=torch.int32, device="cuda")
    found: list[torch.Tensor] = []
    graph = capture(lambda: found.append(grouped_product(x, held, ends)), torch.device("cuda"))
    graph.replay()
    plain = wide(held)
    wanted = torch.cat([x[a:b].float() @ plain[i].t() for i, a, b in ((0, 0, 10), (2, 10, 50), (3, 50, 64))])
    assert float((found[-1].float() - wanted).norm() / wanted.norm()) < 0.06
