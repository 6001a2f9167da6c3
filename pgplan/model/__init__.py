"""What is to be split: a model's layers, weight by weight, read from its configuration.

``load_model`` takes a catalogue name, a ``config.json`` or a dict. The families (``families/``) list the
weights as the architecture's own code builds them; ``quantization.py`` says how they lie in memory.
"""

from pgplan.model.catalogue import CatalogueEntry, catalogue_entry, catalogue_names
from pgplan.model.flops import attention_flops, layer_flops, matmul_flops, state_flops
from pgplan.model.loading import load_model
from pgplan.model.spec import AttentionSpec, LayerSpec, ModelSpec, StateSpec, Storage, Weight

__all__ = [
    "AttentionSpec",
    "CatalogueEntry",
    "LayerSpec",
    "ModelSpec",
    "StateSpec",
    "Storage",
    "Weight",
    "attention_flops",
    "catalogue_entry",
    "catalogue_names",
    "layer_flops",
    "load_model",
    "matmul_flops",
    "state_flops",
]
