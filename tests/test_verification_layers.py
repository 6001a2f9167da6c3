"""Layers against independent ones, and against themselves another way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from verification_entries import small

from pgplan.model.spec import ModelSpec
from pgplan.verification import kv_cache
from pgplan.verification.attention import _behind_cached
from pgplan.verification.causal import causal_attention
from pgplan.verification.experts import Experts, grouped_product
from pgplan.verification.pieces import Step
from pgplan.verification.shards import Shards
from pgplan.verification.stage import Contents, Stage

KINDS = (
    "llama-3.1-8b",
    "qwen3-30b-a3b",
    "deepseek-v2-lite",
    "deepseek-v2",
    "gemma-3-4b",
    "olmo-2-7b",
    "phi-tiny-moe",
    "qwen1.5-moe-a2.7b",
    "glm-4.5-air",
)


def whole(model: ModelSpec) -> Stage:
    shards = Shards(tp_size=1, tp_rank=0, device=torch.device("cpu"))
    return Stage(model, Contents.whole(model), shards, reduce=lambda x: x, gather=lambda x: x)


def run(stage: Stage, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Return the final norm's output for all tokens, fed in pieces of the given lengths."""
    rows, total = tokens.shape
    count = stage.cache_elements(rows=rows, tokens=total)
    pool = torch.full((count,), float("nan")).to(stage.cache_dtype)
    caches = stage.make_cache(pool, rows=rows, tokens=total)
    outputs, start = [], 0
    for length in lengths:
        piece = tokens[:, start : start + length].reshape(-1)
        step = Step(sequences=rows, length=length, start=start)
        hidden, residual = stage.forward(stage.embed(piece), None, caches, step)
        outputs.append(stage.normalise(hidden, residual).view(rows, length, -1))
        start += length
    return torch.cat(outputs, 1)


def short_windows(model: ModelSpec, window: int) -> ModelSpec:
    """Cut windows short enough for a ring of the cache to go round."""
    kinds = tuple(
        replace(kind, attention=replace(kind.attention, window=window))
        if kind.attention and kind.attention.window
        else kind
        for kind in model.kinds
    )
    return replace(model, kinds=kinds)


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_a_prompt_at_once_in_chunks_and_token_by_token_is_the_same(name: str) -> None:
    model = short_windows(small(name, layers=3), 5)
    stage = whole(model)
    tokens = torch.randint(0, model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    at_once = run(stage, tokens, [16])
    torch.testing.assert_close(run(stage, tokens, [7, 5, 4]), at_once, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(run(stage, tokens, [6, *[1] * 10]), at_once, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v2-lite", "gemma-3-4b"])
@torch.inference_mode()
def test_a_cache_in_fp8_parts_from_a_plain_one_by_its_rounding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = short_windows(small(name, layers=3), 5)
    plain = whole(model)
    contents = replace(Contents.whole(model), kv_dtype="fp8")
    shards = Shards(tp_size=1, tp_rank=0, device=torch.device("cpu"))
    rounding = Stage(model, contents, shards, reduce=lambda x: x, gather=lambda x: x)
    tokens = torch.randint(0, model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    lengths = [6, 4, *[1] * 6]
    wanted = run(plain, tokens, lengths)
    found = run(rounding, tokens, lengths)
    # A prompt's first chunk attends to what it has just computed.
    torch.testing.assert_close(found[:, :6], wanted[:, :6], rtol=1e-4, atol=1e-5)
    error = float((found - wanted)[:, 6:].norm() / wanted[:, 6:].norm())
    assert 1e-4 < error < 0.1
    monkeypatch.setattr(kv_cache, "_SLICE_ELEMENTS", 100)
    torch.testing.assert_close(run(rounding, tokens, lengths), found, rtol=1e-4, atol=1e-5)


CONFIGS = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 16},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


@pytest.mark.parametrize("family", CONFIGS)
@torch.inference_mode()
def test_the_layers_are_those_of_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    import pgplan as pg

    data = {**SIZES, **CONFIGS[family]}
    model = pg.load_model(data)
    assert model.dtype == "float32"
    stage = whole(model)
    config = transformers.AutoConfig.for_model(**data)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.load_state_dict(state_of(stage))
    tokens = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(2))
    assert stage.head is not None
    logits = stage.head(run(stage, tokens, [12]))
    torch.testing.assert_close(logits, theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def state_of(stage: Stage) -> dict[str, torch.Tensor]:
    """Name a stage's tensors as a checkpoint does."""
    assert stage.embedding is not None and stage.head is not None
    state = {
        "model.embed_tokens.weight": stage.embedding,
        "lm_head.weight": stage.head.weight,
        "model.norm.weight": stage._final_norms[0].weight,
    }
    for index, layer in enumerate(stage.layers):
        attention = layer.attention
        parts = attention.qkv.weight.split([64, 32, 32])  # type: ignore[union-attr]
        names = {f"self_attn.{key}_proj": part for key, part in zip("qkv", parts, strict=True)}
        names["self_attn.o_proj"] = attention.out.weight
        for key, norm in zip("qk", attention.norms, strict=False):  # type: ignore[union-attr]
            names[f"self_attn.{key}_norm"] = norm.weight
        before_attention, _, before_mlp, _ = layer._norms
        assert before_attention is not None and before_mlp is not None
        names |= {"input_layernorm": before_attention.weight, "post_attention_layernorm": before_mlp.weight}
        if isinstance(layer.mlp, Experts):
            names["mlp.gate"] = layer.mlp.router.weight
            state[f"model.layers.{index}.mlp.experts.gate_up_proj"] = layer.mlp.up
            state[f"model.layers.{index}.mlp.experts.down_proj"] = layer.mlp.down
        else:
            gate, up = layer.mlp.up.weight.chunk(2)
            names |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": layer.mlp.down.weight}
        state |= {f"model.layers.{index}.{name}.weight": tensor for name, tensor in names.items()}
    return state


@pytest.mark.parametrize("window", [None, 1, 3, 9])
def test_attention_is_the_masked_sum(window: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    found = causal_attention(q[:, :, 4:], k, v, window=window)
    for head in range(4):
        scores = (q[:, head, 4:] @ k[:, head // 2].mT / 8**0.5).softmax(-1)
        for row, position in enumerate(range(4, 9)):
            first = 0 if window is None else max(0, position - window + 1)
            shares = scores[:, row, first : position + 1]
            shares = shares / shares.sum(-1, keepdim=True)
            expected = torch.einsum("sc,scd->sd", shares, v[:, head // 2, first : position + 1])
            torch.testing.assert_close(found[:, head, row], expected)


@pytest.mark.parametrize("kept", [3, 5, 8, 20, 25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_a_ring_gives_the_latest_tokens_in_their_order(kept: int, dtype: torch.dtype) -> None:
    tokens = torch.randn(2, 3, 20, 4).to(dtype).float()
    cache, start = torch.zeros(2, 3, kept, 4).to(dtype), 0
    for length in (2, 1, 4, 1, 5, 7):
        whole = _behind_cached(cache, tokens[:, :, start : start + length], start=start)
        before = min(start, kept)
        assert torch.equal(whole, tokens[:, :, start - before : start + length])
        start += length
    latest = torch.arange(20)[-kept:]
    assert torch.equal(cache.float()[:, :, latest % kept], tokens[:, :, latest])


def test_experts_without_tokens_are_skipped() -> None:
    x, weight = torch.randn(5, 3), torch.randn(4, 2, 3)
    ends = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    expected = torch.cat((x[:3] @ weight[1].mT, x[3:] @ weight[3].mT))
    torch.testing.assert_close(grouped_product(x, weight, ends), expected)


@pytest.mark.parametrize(
    ("tokens", "prompt", "expected"),
    [
        (4096, 2048, (2, 2048, 0)),
        (1024, 2048, (1, 1024, 512)),
        (4096, 1536, (3, 1365, 85)),
        (100, 128, (1, 100, 14)),
    ],
)
def test_a_chunk_attends_to_half_a_prompt_on_average(
    tokens: int, prompt: int, expected: tuple[int, int, int]
) -> None:
    step = Step.of_chunk(tokens=tokens, prompt=prompt)
    assert (step.sequences, step.length, step.start) == expected
    assert step.start + step.length / 2 == pytest.approx(prompt / 2, abs=1)
