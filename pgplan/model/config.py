"""Read a model's configuration key by key; whatever is wrong is told with the key and its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from reprlib import repr as shown

from pgplan.errors import ModelError

# No decoder is near this deep; a slip of the keyboard must not fill the memory.
MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class Config:
    """Wrap one JSON object of a configuration.

    Args:
        data: The object, with the keys that transformers gives them.
        where: What to call it in messages, e.g. a path.
        defaults: Values of keys that the architecture's own class fills in.
    """

    data: Mapping[str, object]
    where: str
    defaults: Mapping[str, object] = field(default_factory=dict)

    def with_defaults(self, defaults: Mapping[str, object]) -> Config:
        """Return the same configuration with values for keys that it leaves out; earlier defaults win."""
        return replace(self, defaults={**defaults, **self.defaults})

    def get(self, *keys: str) -> object:
        """Return the value of the first of ``keys`` that is there and not null, else ``None``.

        Defaults fill in for keys that are missing, not for keys that the file says are null.
        """
        source = self.data if any(key in self.data for key in keys) else self.defaults
        return next((source[key] for key in keys if source.get(key) is not None), None)

    def require(self, *keys: str) -> None:
        """Raise a ``ModelError`` that names every one of ``keys`` that is missing."""
        missing = [key for key in keys if self.get(key) is None]
        if missing:
            raise ModelError(
                f"{self.where} lacks {', '.join(missing)}; take it from the model's own config.json"
            )

    def size(self, *keys: str, default: int | None = None) -> int:
        """Read a whole number of at least 1 under the first of ``keys`` that is there."""
        value = self.optional_size(*keys)
        if value is not None:
            return value
        if default is None:
            self.require(keys[0])
        return default or 0

    def optional_size(self, *keys: str) -> int | None:
        """Read a whole number of at least 1, or ``None`` where it is missing or null."""
        value = self.get(*keys)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            key = next(key for key in keys if self.get(key) is not None)
            raise ModelError(
                f"{key} must be a whole number of at least 1, got {shown(value)} in {self.where}; "
                f"take it from the model's own config.json"
            )
        return value

    def count(self, *keys: str) -> int:
        """Read a whole number of at least 0; missing or null counts as 0."""
        value = self.get(*keys)
        return 0 if value == 0 and not isinstance(value, bool) else self.optional_size(*keys) or 0

    def number(self, key: str, *, default: float = 0.0) -> float:
        """Read a number of at least 0."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ModelError(
                f"{key} must be a number of at least 0, got {shown(value)} in {self.where}; "
                f"take it from the model's own config.json"
            )
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Read true or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(
                f"{key} must be true or false, got {shown(value)} in {self.where}; write it as JSON does"
            )
        return value

    def items(self, key: str) -> tuple[object, ...] | None:
        """Read a list, or ``None`` where it is missing or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)):
            raise ModelError(
                f"{key} must be a list, got {shown(value)} in {self.where}; write it as [..., ...]"
            )
        return tuple(value)

    def section(self, key: str) -> Config | None:
        """Return the object under ``key``, or ``None`` where there is none."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ModelError(
                f"{key} must be an object, got {shown(value)} in {self.where}; write it as {{...}}"
            )
        return Config(value, f"{key} of {self.where}")

    @property
    def text(self) -> Config:
        """Return the language model's part: ``text_config`` where there is one."""
        return self.section("text_config") or self

    @property
    def num_layers(self) -> int:
        """Read the number of decoder layers."""
        layers = self.size("num_hidden_layers", "num_layers", "n_layer")
        if layers > MAX_LAYERS:
            raise ModelError(
                f"num_hidden_layers must be at most {MAX_LAYERS}, got {layers} in {self.where}; "
                f"take it from the model's own config.json"
            )
        return layers

    def windows(
        self,
        *,
        is_windowed: Callable[[int], bool],
        layer_type: str = "sliding_attention",
        key: str = "sliding_window",
    ) -> tuple[int | None, ...]:
        """Return each layer's attention window in tokens, ``None`` for full attention.

        Args:
            is_windowed: The architecture's own pattern by layer index, for files without ``layer_types``.
            layer_type: What ``layer_types`` calls a layer with a window.
            key: Where the window's size stands.
        """
        types = self.items("layer_types")
        if types is None:
            layers = range(self.num_layers)
            types = tuple(layer_type if is_windowed(index) else "full_attention" for index in layers)
        if len(types) != self.num_layers:
            raise ModelError(
                f"layer_types must name every layer, got {len(types)} for {self.num_layers} layers in "
                f"{self.where}; leave layer_types out or correct num_hidden_layers"
            )
        unknown = sorted({shown(kind) for kind in types if kind not in (layer_type, "full_attention")})
        if unknown:
            raise ModelError(
                f"layer_types may hold full_attention and {layer_type}, got {', '.join(unknown)} in "
                f"{self.where}; this architecture is known with those two only"
            )
        if layer_type not in types:
            return (None,) * len(types)
        window = self.size(key)
        return tuple(window if kind == layer_type else None for kind in types)
