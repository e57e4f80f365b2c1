"""A tiny random model of every supported architecture, for tests that must hold for all of them."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 96,
    "num_attention_heads": 6,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROTARY = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 160, "initializer_range": 0.2}

FAMILY_CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(head_dim=16, attention_bias=True, **ROTARY),
    "mistral": MistralConfig(head_dim=16, sliding_window=None, **ROTARY),
    "qwen2": Qwen2Config(**ROTARY),
    "qwen3": Qwen3Config(head_dim=24, **ROTARY),
    "gemma3": Gemma3TextConfig(
        **{**ROTARY, "num_hidden_layers": 6},
        head_dim=32,
        query_pre_attn_scalar=20,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"] * 3,
    ),
    "phi3": Phi3Config(**ROTARY),
    "phi3-partial": Phi3Config(
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}, **ROTARY
    ),
    "opt": OPTConfig(ffn_dim=160, init_std=0.2, **SIZES),
}
"""Configurations by name: 16 channels a head unless more, context 512, and at least three layers with full attention."""


def make_model(name: str | PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """The model of `FAMILY_CONFIGS[name]`, or of a configuration, in float32, frozen, with `sdpa` attention.

    Norms and biases, which begin as ones and zeros, are perturbed, so that a forgotten one shows.
    """
    config = copy.deepcopy(FAMILY_CONFIGS[name] if isinstance(name, str) else name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return perturb(model.eval().requires_grad_(False), seed + 1)


def perturb(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Add noise to all norms and biases of a frozen model."""
    generator = torch.Generator().manual_seed(seed)
    for part, parameter in model.named_parameters():
        if part.endswith("bias") or "norm" in part:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model
