"""Put a model's weights into memory as its checkpoint has them: dtype, and quantization per module.

The families list weights; here each gets its ``Storage``. Every method quantizes linear layers of
attention, MLP and experts only: embedding, head, norms, routers and towers keep the model's dtype (GPTQ
with ``lm_head: true`` is the one exception).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.quantization_methods import read_quantization
from pgplan.model.quantized import Quantization
from pgplan.model.spec import LayerSpec, ModelSpec, Storage, Weight
from pgplan.model.storage import dtype_storage

# Where a configuration states its dtype: the name of today, and the one before.
DTYPE_KEYS = ("dtype", "torch_dtype")
# Checkpoints with towers put the language model under one of these.
_PREFIXES = ("model.layers.", "language_model.model.layers.", "model.language_model.layers.")
# Nemotron-H keeps Mamba's own name for the decoder.
_BARE_PREFIXES = ("model.layers.", "backbone.layers.")


def lay_out(model: ModelSpec, config: Config, *, dtype: str | None = None) -> ModelSpec:
    """Return ``model`` with every weight stored as ``config`` says.

    Args:
        model: What a family built.
        config: The whole configuration that it was built from.
        dtype: Overrides the configuration's own dtype.

    Raises:
        ModelError: If the dtype or the quantization is not known.
    """
    stated = dtype or config.get(*DTYPE_KEYS) or config.text.get(*DTYPE_KEYS) or "bfloat16"
    if not isinstance(stated, str):
        raise ModelError(
            f"dtype must be a name such as 'bfloat16', got {stated!r} in {config.where}; correct it"
        )
    plain = dtype_storage(stated)
    quantization = read_quantization(config, plain)
    notes = list(model.notes) + list(quantization.notes if quantization else ())
    if plain.bits == 32 and dtype is None:
        notes.append("the configuration says float32; engines load that as 16 bit: give dtype='bfloat16'")
    prefixes = _PREFIXES if "text_config" in config.data else _BARE_PREFIXES

    def storage_of(index: int, weight: Weight) -> Storage:
        return _storage(weight, plain, quantization, tuple(f"{prefix}{index}." for prefix in prefixes))

    kinds, pattern = stored_layers(model, plain, storage_of)
    # Checkpoints number the layers that draft tokens after the decoder's.
    drafts = tuple(
        _with(layer, tuple(storage_of(index, weight) for weight in layer.weights), plain)
        for index, layer in enumerate(model.drafts, start=model.num_layers)
    )
    head = _plain(model.head, plain)
    if quantization and quantization.head and not model.tied:
        head = replace(head, storage=quantization.storage_of(("lm_head",)) or plain)
    return replace(
        model,
        dtype=plain.name,
        kinds=kinds,
        pattern=pattern,
        embedding=_plain(model.embedding, plain),
        beside_embedding=tuple(_plain(weight, plain) for weight in model.beside_embedding),
        head=head,
        final_norm=tuple(_plain(weight, plain) for weight in model.final_norm),
        towers=tuple(_plain(weight, plain) for weight in model.towers),
        drafts=drafts,
        notes=tuple(notes),
    )


def stored_layers(
    model: ModelSpec, plain: Storage, storage_of: Callable[[int, Weight], Storage]
) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
    """Return kinds and pattern anew, each weight stored as ``storage_of`` says by its layer.

    Layers of one kind may differ once some of their modules are stored otherwise.
    """
    seen: dict[tuple[int, tuple[Storage, ...]], int] = {}
    pattern = []
    for index, kind in enumerate(model.pattern):
        storages = tuple(storage_of(index, weight) for weight in model.kinds[kind].weights)
        pattern.append(seen.setdefault((kind, storages), len(seen)))
    return tuple(_with(model.kinds[kind], storages, plain) for kind, storages in seen), tuple(pattern)


def _with(layer: LayerSpec, storages: tuple[Storage, ...], plain: Storage) -> LayerSpec:
    return replace(
        layer,
        weights=tuple(
            replace(weight, storage=storage, bias_storage=plain if weight.bias and storage != plain else None)
            for weight, storage in zip(layer.weights, storages, strict=True)
        ),
    )


def _storage(
    weight: Weight, plain: Storage, quantization: Quantization | None, prefixes: tuple[str, ...]
) -> Storage:
    # A few weights are kept in 32 bits, whatever the model's dtype.
    if weight.storage.bits == 32:
        return weight.storage
    # A single output row is a gate (Qwen2-MoE's shared_expert_gate), and an indexer weighs its heads by a
    # few rows: no engine quantizes them.
    if (
        quantization is None
        or not weight.is_matrix
        or weight.rows == 1
        or weight.part not in quantization.parts
        or weight.name.endswith("weights_proj")
    ):
        return plain
    module = _module(weight)
    return quantization.storage_of(tuple(prefix + module for prefix in prefixes)) or plain


def _module(weight: Weight) -> str:
    """Return the checkpoint's module name: experts have a number, parts of a fused tensor share one name."""
    name = weight.name.partition("[")[0]
    return name.replace(".experts.", ".experts.0.") if weight.part == "experts" else name


def _plain(weight: Weight, plain: Storage) -> Weight:
    return weight if weight.storage.bits == 32 else replace(weight, storage=plain)
