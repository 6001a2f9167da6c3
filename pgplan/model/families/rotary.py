"""Tell how much of each head rotates, where a model turns only a part of it, or none."""

from __future__ import annotations

from dataclasses import replace

from pgplan.errors import ModelError
from pgplan.model.config import Config
from pgplan.model.families.blocks import Heads
from pgplan.model.spec import AttentionSpec


def partly_rotating(
    config: Config, heads: Heads, *, share: float = 1.0, key: str = "partial_rotary_factor"
) -> AttentionSpec:
    """Return full attention whose heads rotate with a share of their elements.

    Args:
        config: The language model's configuration.
        heads: Sizes.
        share: What the architecture's class takes where the file leaves it out.
        key: Where the share stands, beside the other rotary settings or among them.

    Raises:
        ModelError: If the share is not above 0 and at most 1.
    """
    rope = config.section("rope_parameters") or config.section("rope_scaling")
    owner = rope if rope is not None and rope.get(key) is not None else config
    stated = owner.number(key, default=share)
    if not 0 < stated <= 1:
        raise ModelError(
            f"{key} must be above 0 and at most 1, got {stated} in {owner.where}; take it from the model's "
            f"own config.json"
        )
    return replace(heads.spec(), rope_dim=0 if stated == 1 else int(heads.dim * stated))


def without_rotation(heads: Heads) -> AttentionSpec:
    """Return full attention of a model whose positions are learned, or biases of the scores."""
    return replace(heads.spec(), rotary=False)
