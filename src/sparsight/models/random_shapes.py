"""Models of known shapes with random weights, to measure speed where there are no weights at hand."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ..errors import ModelError
from .anatomy import Anatomy
from .fingerprint import fingerprint
from .load import LoadedModel

PREFIX = "random:"

SHAPES: dict[str, dict[str, Any]] = {
    # As Llama-3.2-1B, 1.24B parameters, but for the stretching of its rotary frequencies, which costs no time.
    "1b": {
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}
"""Settings of a Llama by the name that stands behind `random:`."""

_CHUNK = 1 << 22
_SPREAD = 0.02


def is_random_shape(name: str) -> bool:
    """Whether a model's name asks for random weights."""
    return name.startswith(PREFIX)


def random_model(name: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> LoadedModel:
    """A Llama of a shape in `SHAPES` with random weights, in memory and without a tokenizer.

    Parameters
    ----------
    name : str
        `random:` and a key of `SHAPES`.
    dtype : torch.dtype
    seed : int
        The same gives the same weights, and so the same fingerprint.

    Raises
    ------
    ModelError
        If there is no such shape.
    """
    shape = SHAPES.get(name.removeprefix(PREFIX)) if is_random_shape(name) else None
    if shape is None:
        known = ", ".join(PREFIX + key for key in SHAPES)
        raise ModelError(f"no shape '{name}' to fill with random weights; choose {known}")
    config = LlamaConfig(**deepcopy(shape), attn_implementation="sdpa", dtype=dtype)
    # On no device first: the model's own initialisation takes several times as long, and in float32 twice the memory.
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(dtype).to_empty(device="cpu")
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    _fill(model, seed)
    model.eval().requires_grad_(False)
    return LoadedModel(model, None, name, fingerprint(model), Anatomy.of(model))


@torch.no_grad()
def _fill(model: nn.Module, seed: int) -> None:
    """Norms become 1; all else is normal with the spread that Llamas begin their training with."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(_CHUNK)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        for chunk in parameter.view(-1).split(_CHUNK):
            chunk.copy_(drawn.normal_(0.0, _SPREAD, generator=generator)[: len(chunk)])
