"""Read which layer of a hybrid model is what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from reprlib import repr as shown

from pgplan.errors import ModelError
from pgplan.model.config import MAX_LAYERS, Config


def read_layer_types(
    config: Config,
    *,
    names: Mapping[str, str],
    default: Callable[[int], str] | None = None,
    keys: tuple[str, ...] = ("layer_types",),
) -> tuple[str, ...]:
    """Return what each layer is.

    Args:
        config: The language model's configuration.
        names: What the configuration calls a kind of layer, and what to call it here.
        default: The architecture's own pattern by layer index, for files without a list.
        keys: Where the list may stand.

    Raises:
        ModelError: If the list is missing, holds other names, or is not as long as the model is deep.
    """
    given = next(((key, config.items(key)) for key in keys if config.get(key) is not None), None)
    if given is None:
        if default is None:
            config.require(keys[0])
            return ()
        return tuple(default(index) for index in range(config.num_layers))
    key, types = given[0], given[1] or ()
    unknown = sorted({shown(kind) for kind in types if str(kind) not in names})
    if unknown:
        raise ModelError(
            f"{key} may hold {', '.join(names)}, got {', '.join(unknown)} in {config.where}; "
            f"this architecture is known with those only"
        )
    depth = config.num_layers if config.get("num_hidden_layers") is not None else len(types)
    if len(types) != depth or not 1 <= depth <= MAX_LAYERS:
        raise ModelError(
            f"{key} must name every layer, got {len(types)} for {depth} layers in {config.where}; "
            f"correct num_hidden_layers or {key}"
        )
    return tuple(names[str(kind)] for kind in types)


def read_layer_flags(config: Config, key: str, *, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Return for each layer whether it is what a list of zeros and ones, or of true and false, marks.

    Args:
        config: The language model's configuration.
        key: Where the list stands.
        default: The architecture's own pattern by layer index, for files without the list.

    Raises:
        ModelError: If the list is not as long as the model is deep, or holds something else.
    """
    given = config.items(key)
    if given is None:
        return tuple(default(index) for index in range(config.num_layers))
    if len(given) != config.num_layers or any(flag not in (0, 1) for flag in given):
        raise ModelError(
            f"{key} must mark each of {config.num_layers} layers with 0 or 1, got {shown(list(given))} in "
            f"{config.where}; correct num_hidden_layers or {key}"
        )
    return tuple(bool(flag) for flag in given)
