"""FLOPs of a layer against what a flop counter saw on the architectures' own modules."""

from __future__ import annotations

import pytest

from pgplan.errors import ModelError
from pgplan.model import layer_flops, load_model, matmul_flops

# One prompt of 2048 tokens, eager attention: FLOPs of the first layer; of the head over all positions.
COUNTED = {
    "qwen3-0.6b": (98_784_247_808, 637_265_772_544),
    "llama-2-7b": (897_648_164_864, 536_870_912_000),
    "llama-3.1-8b": (962_072_674_304, 2_151_778_615_296),
    "llama-3.1-405b": (13_331_578_486_784, 8_607_114_461_184),
    "qwen2.5-7b": (1_014_686_023_680, 2_232_309_252_096),
    "qwen3-32b": (2_134_598_746_112, 3_186_328_862_720),
    "phi-4": (1_481_763_717_120, 2_104_533_975_040),
    "gemma-2-9b": (880_468_295_680, 3_758_096_384_000),
    "gemma-3-27b": (1_759_862_849_536, 5_773_845_331_968),
    "olmo-3.1-32b": (2_083_059_138_560, 2_102_982_082_560),
    "yi-34b": (2_405_181_685_760, 1_879_048_192_000),
    "devstral-2-123b": (5_875_515_260_928, 6_597_069_766_656),
    "minicpm3-4b": (310_378_496_000, 770_158_100_480),
    # Experts, attention sinks, latent attention and a dense first layer.
    "qwen3-30b-a3b": (301_721_452_544, 1_274_531_545_088),
    "mixtral-8x7b": (1_683_761_397_760, 536_870_912_000),
    "gpt-oss-120b": (586_632_134_656, 2_372_130_570_240),
    "deepseek-v3": (2_733_478_248_448, 3_795_677_347_840),
}


@pytest.mark.parametrize("name", COUNTED)
def test_flops_equal_the_flop_counter(name: str) -> None:
    model = load_model(name)
    layer, head = COUNTED[name]
    assert layer_flops(model.layers[0], 2048) == layer
    assert matmul_flops(model.head, 2048) == head


def test_expert_layers_behind_dense_ones() -> None:
    assert layer_flops(load_model("deepseek-v3").layers[3], 2048) == 2_740_994_441_216


def test_windows_do_not_change_the_full_square() -> None:
    sliding, full = load_model("gemma-2-9b").layers[:2]
    assert layer_flops(sliding, 16384) == layer_flops(full, 16384)


def test_a_decoded_token_attends_to_its_context() -> None:
    layer = load_model("llama-3.1-8b").layers[0]
    attended = layer_flops(layer, 1, context=4096) - layer_flops(layer, 1, context=1)
    # 32 heads of 128, scores and values, 2 per multiply-add, 4095 keys more.
    assert attended == 2 * 2 * 32 * 128 * 4095


@pytest.mark.parametrize("arguments", [{"tokens": 0}, {"tokens": 1, "context": 0}])
def test_nothing_to_count_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ModelError, match=r"must be at least 1, got 0"):
        layer_flops(load_model("llama-3.1-8b").layers[0], **arguments)
