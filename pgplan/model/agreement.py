"""Bring a model as its configuration describes it into agreement with its checkpoint.

Sizes must agree, weight by weight: where they do not, configuration and checkpoint are of two models. How
a weight is stored is the checkpoint's to say: where it differs, the model takes it over. What a plan does
not count, the model's notes name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.checkpoint import Checkpoint
from pgplan.model.comparison import Comparison, Modules, compare, matrix_elements
from pgplan.model.headers import DTYPE_BITS, readable
from pgplan.model.quantization import stored_layers
from pgplan.model.spec import ModelSpec
from pgplan.model.storage import DTYPES
from pgplan.model.stored import FLOATS, StoredModule, scales_of
from pgplan.model.tensor_names import Place, parse
from pgplan.model.weights import Storage, Weight

# So many names tell what the trouble is; the rest is counted.
_SHOWN = 3
_OUTSIDE = -1

Places = Mapping[tuple[Place, int], Modules]
Restored = Mapping[tuple[int, str], Storage]


def agree(model: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """Return ``model`` with every weight stored as the checkpoint's headers say.

    Raises:
        ModelError: If a weight is missing or of another size; names the first ones.
    """
    places = by_place(checkpoint, num_layers=model.num_layers)
    comparisons = {
        layer: compare(spec.weights, places.get(("layer", layer), {}), where=f"layer {layer} ")
        for layer, spec in enumerate(model.layers)
    }
    comparisons[_OUTSIDE] = _compare_outside(model, places)
    _refuse_differences([line for found in comparisons.values() for line in found.differences], checkpoint)
    for index, spec in enumerate(model.drafts, start=model.num_layers):
        # Without them no tokens can be drafted, and all else stands: no reason to refuse.
        comparisons[index] = replace(compare(spec.weights, places.get(("draft", index), {})), extra=[])
    plain = DTYPES[model.dtype]
    restored = {
        (layer, weight.name): kind
        for layer, found in comparisons.items()
        for weights, modules in found.pairs
        for weight, kind in _stored_otherwise(weights, modules, plain)
    }
    model = _with_towers(_restore(model, restored, plain), places)
    notes = (*_notes(model, checkpoint, restored, comparisons.values()), *_place_notes(model, places))
    return replace(model, notes=(*model.notes, *notes))


def by_place(checkpoint: Checkpoint, *, num_layers: int) -> Places:
    """Sort a checkpoint's tensors into modules by place and layer (-1: none)."""
    places: dict[tuple[Place, int], Modules] = {}
    for tensor in checkpoint.tensors.values():
        name = parse(tensor.name, num_layers=num_layers)
        modules = places.setdefault((name.place, name.layer), {})
        if name.module not in modules:
            modules[name.module] = StoredModule(tensor.name)
        modules[name.module].add(name, tensor)
    return places


def _compare_outside(model: ModelSpec, places: Places) -> Comparison:
    """Compare embedding, what stands beside it, last norm and head."""
    weights = [model.embedding, *model.beside_embedding, *model.final_norm]
    found = {**places.get(("embedding", _OUTSIDE), {}), **places.get(("outside", _OUTSIDE), {})}
    if not model.tied:
        weights.append(model.head)
        found.update(places.get(("head", _OUTSIDE), {}))
    return compare([replace(weight, name=_last(weight)) for weight in weights], found)


def _last(weight: Weight) -> str:
    """Return the last part of a name: outside the layers what is before it differs from file to file."""
    return weight.name.rpartition(".")[2]


def _refuse_differences(differences: list[str], checkpoint: Checkpoint) -> None:
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if differences[_SHOWN:] else ""
        raise ModelError(
            f"config.json and checkpoint must describe the same model, in {checkpoint.source} "
            f"{'; '.join(differences[:_SHOWN])}{more}; take both from one repository, or give the path of "
            f"config.json to plan without the checkpoint"
        )


def _stored_otherwise(
    weights: list[Weight], modules: list[StoredModule], plain: Storage
) -> Iterable[tuple[Weight, Storage]]:
    """Yield the weights that lie in the checkpoint otherwise than the configuration says, and how."""
    elements = matrix_elements(weights)
    kinds = {module.storage(module.elements(elements), plain) for module in modules if module.weights}
    if len(kinds) != 1:
        return
    kind = kinds.pop()
    said = sum(weight.copies * scales_of(weight.storage, weight.rows, weight.cols) for weight in weights)
    stored = sum(scale.elements for module in modules for scale in module.tensors.get("scale", ()))
    for weight in weights:
        same_scales = said == stored or weight.storage.block == kind.block
        if weight.storage.bits != kind.bits or not same_scales:
            yield weight, kind


def _restore(model: ModelSpec, restored: Restored, plain: Storage) -> ModelSpec:
    if not restored:
        return model

    def outside(weight: Weight) -> Weight:
        return replace(weight, storage=restored.get((_OUTSIDE, _last(weight)), weight.storage))

    kinds, pattern = stored_layers(
        model, plain, lambda layer, weight: restored.get((layer, weight.name), weight.storage)
    )
    embedding = outside(model.embedding)
    drafts = tuple(
        replace(
            layer,
            weights=tuple(
                replace(weight, storage=restored.get((index, weight.name), weight.storage))
                for weight in layer.weights
            ),
        )
        for index, layer in enumerate(model.drafts, start=model.num_layers)
    )
    return replace(
        model,
        kinds=kinds,
        pattern=pattern,
        embedding=embedding,
        head=replace(model.head, storage=embedding.storage) if model.tied else outside(model.head),
        beside_embedding=tuple(map(outside, model.beside_embedding)),
        final_norm=tuple(map(outside, model.final_norm)),
        drafts=drafts,
    )


def _with_towers(model: ModelSpec, places: Places) -> ModelSpec:
    """Take the towers from the checkpoint, tensor by tensor, where it holds others."""
    modules = places.get(("tower", _OUTSIDE), {}).values()
    stored = sum(module.elements(0) + module.bias_elements for module in modules)
    described = sum(weight.parameters for weight in model.towers)
    if stored == described:
        return model
    towers = tuple(weight for module in modules for weight in _as_stored(module, DTYPES[model.dtype]))
    note = (
        f"the towers have {stored} parameters in the checkpoint, {described} by the configuration; they "
        f"count as stored, whole on every rank"
    )
    return replace(model, towers=towers, notes=(*model.notes, note))


def _as_stored(module: StoredModule, plain: Storage) -> Iterable[Weight]:
    """Yield a weight for each tensor of a module, as the file has it."""
    for tensor in (*module.weights, *module.tensors.get("bias", ())):
        is_bias = tensor not in module.weights
        elements = tensor.elements if is_bias else module.elements(0) // len(module.weights)
        if elements:
            rows = next((size for size in tensor.shape if elements % size == 0), 1)
            yield Weight(
                name=tensor.name,
                part="tower",
                rows=rows,
                cols=elements // rows,
                storage=plain if is_bias else module.storage(module.elements(0), plain),
            )


def _notes(
    model: ModelSpec, checkpoint: Checkpoint, restored: Restored, comparisons: Iterable[Comparison]
) -> Iterable[str]:
    """Yield what a reader should know of the checkpoint's tensors."""
    yield (
        f"the checkpoint agrees with config.json: {len(checkpoint.tensors)} tensors of "
        f"{checkpoint.data_bytes} bytes in {len(checkpoint.files)} file(s)"
    )
    if restored:
        counts = Counter((name.partition("[")[0], kind.name) for (_, name), kind in restored.items())
        names = [f"{name} as {kind} ({count}x)" for (name, kind), count in counts.items()]
        yield f"weights that lie in the checkpoint otherwise than config.json says count so: {_listed(names)}"
    comparisons = list(comparisons)
    dtypes = Counter(
        weight.dtype
        for found in comparisons
        for _, modules in found.pairs
        for module in modules
        for weight in module.weights
        if weight.dtype in FLOATS and DTYPE_BITS[weight.dtype] != DTYPES[model.dtype].bits
    )
    for dtype, count in dtypes.items():
        yield f"{count} tensors of dtype {dtype} count as {model.dtype}, which engines load them as"
    extra = [module for found in comparisons for module in found.extra]
    if extra:
        yield f"tensors of no known weight are not counted: {_listed([_described(each) for each in extra])}"


def _place_notes(model: ModelSpec, places: Places) -> Iterable[str]:
    """Yield what is in the checkpoint and not in the model, on purpose."""
    if model.tied and ("head", _OUTSIDE) in places:
        yield "the checkpoint holds the head though it is tied to the embedding; engines do not load it"
    drafts = [module for (place, _), found in places.items() if place == "draft" for module in found.values()]
    if drafts:
        size = sum(module.data_bytes for module in drafts)
        counted = "count where tokens are drafted" if model.drafts else "are not counted"
        yield f"draft layers of {size} bytes in the checkpoint {counted}, e.g. {_described(drafts[0])}"
    elif model.drafts:
        yield "the checkpoint lacks the draft layers of config.json; it cannot draft tokens"


def _described(module: StoredModule) -> str:
    return f"{readable(module.first)} ({module.data_bytes} bytes)"


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if items[_SHOWN:] else ""
    return ", ".join(items[:_SHOWN]) + more
