import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sparsight.errors import ModelError
from sparsight.models import Anatomy

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LLAMAS = {
    "plain": {},
    "bias": {"attention_bias": True},
    "one head per group": {"num_key_value_heads": 6},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": YARN},
    "tied": {"tie_word_embeddings": True},
}
OTHERS = {
    "mistral": MistralConfig(head_dim=16, sliding_window=None, **SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(head_dim=16, **SIZES),
    "qwen3 windows": Qwen3Config(head_dim=16, use_sliding_window=True, sliding_window=8, max_window_layers=2, **SIZES),
}


@pytest.fixture(params=[*LLAMAS, *OTHERS])
def model(request, tiny_llama):
    if request.param in LLAMAS:
        model = tiny_llama(**LLAMAS[request.param])
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(copy.deepcopy(OTHERS[request.param])).eval().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # else zeros and ones, which would hide a forgotten one
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture
def spy():
    """Name of an attention that keeps the queries, keys and scaling each layer gave it, and the list of them."""
    seen = []

    def attend(module, query, key, value, mask, scaling=None, **kwargs):
        seen.append(SimpleNamespace(query=query, key=key, scaling=scaling))
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)

    AttentionInterface.register("spy", attend)
    yield "spy", seen
    AttentionInterface._global_mapping.pop("spy")


def residuals_of(model, anatomy, **inputs):
    kept, hooks = {}, []
    for i in range(anatomy.layers):

        def keep(module, args, kwargs, i=i):
            kept[i] = args[0] if args else kwargs["hidden_states"]

        hooks.append(anatomy.layer(i).register_forward_pre_hook(keep, with_kwargs=True))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return kept


def test_look_ahead_query_and_rotate_give_what_the_attention_receives(model, spy):
    name, seen = spy
    anatomy = Anatomy.of(model)
    model.set_attn_implementation(name)
    ids = torch.randint(128, (2, 11), generator=torch.Generator().manual_seed(0))
    positions = torch.stack((torch.arange(11), torch.arange(300, 311)))
    residuals = residuals_of(model, anatomy, input_ids=ids, position_ids=positions)
    for i in range(anatomy.layers):
        query = anatomy.rotate(anatomy.look_ahead_query(i, residuals[i]), positions)
        assert query.shape == (2, anatomy.query_heads, 11, anatomy.head_dim)
        assert torch.equal(query, seen[i].query)
        assert seen[i].key.shape == (2, anatomy.kv_heads, 11, anatomy.head_dim)
        assert seen[i].scaling == anatomy.scaling


def test_one_row_of_positions_serves_a_whole_batch(tiny_llama):
    anatomy = Anatomy.of(tiny_llama())
    states = torch.randn(3, 2, 5, 16)
    positions = torch.tensor([[4, 9, 2, 2, 100]])
    assert torch.equal(anatomy.rotate(states, positions), anatomy.rotate(states, positions.expand(3, -1)))
    assert torch.equal(anatomy.rotate(states, torch.zeros(1, 5, dtype=torch.long)), states)


def test_products_of_rotated_states_depend_on_distance_only(tiny_llama):
    anatomy = Anatomy.of(tiny_llama())
    query, key = torch.randn(2, 1, 6, 1, 16, dtype=torch.float64)
    near = [anatomy.rotate(s, torch.tensor([[p]])) for s, p in ((query, 9), (key, 4))]
    far = [anatomy.rotate(s, torch.tensor([[p]])) for s, p in ((query, 209), (key, 204))]
    torch.testing.assert_close((near[0] * near[1]).sum(-1), (far[0] * far[1]).sum(-1), rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_the_look_ahead_query(tiny_llama):
    residual = torch.randn(1, 3, 48, requires_grad=True)
    Anatomy.of(tiny_llama()).look_ahead_query(2, residual).sum().backward()
    assert residual.grad.abs().sum() > 0


def test_fields(tiny_llama):
    anatomy = Anatomy.of(tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 12345.0}))
    assert (anatomy.family, anatomy.layers, anatomy.query_heads, anatomy.kv_heads) == ("llama", 4, 6, 2)
    assert (anatomy.group, anatomy.head_dim, anatomy.hidden_size, anatomy.intermediate_size) == (3, 16, 48, 96)
    assert (anatomy.vocab_size, anatomy.context_length, anatomy.rope_theta) == (128, 512, 12345.0)
    assert anatomy.scaling == 0.25
    assert anatomy.full_attention == (0, 1, 2, 3)
    assert anatomy.query_weight_elements(1) == 48 * 96


def test_a_missing_head_dim_is_computed(tiny_llama):
    assert Anatomy.of(tiny_llama(head_dim=None)).head_dim == 8


@pytest.mark.parametrize("tied", [True, False])
def test_weight_elements(tiny_llama, tied):
    model = tiny_llama(tie_word_embeddings=tied)
    counts = Anatomy.of(model).weight_elements()
    assert counts["head"] == 128 * 48
    assert counts["layers"] == 4 * (48 * 16 * (6 + 2 + 2 + 6) + 3 * 48 * 96 + 2 * 48)
    table = 0 if tied else 128 * 48
    assert counts["total"] == sum(p.numel() for p in model.parameters()) - table + 48
    assert counts["total"] == counts["layers"] + counts["final_norm"] + counts["head"] + counts["embedding_row"]


@pytest.mark.parametrize(
    ("config", "full"),
    [
        (OTHERS["qwen3 windows"], (0, 1)),
        (MistralConfig(head_dim=16, sliding_window=100, **SIZES), ()),
        (MistralConfig(head_dim=16, sliding_window=512, **SIZES), (0, 1, 2, 3)),
        (OTHERS["qwen2"], (0, 1, 2, 3)),
    ],
)
def test_layers_with_a_window_are_not_full_attention(config, full):
    assert Anatomy.of(AutoModelForCausalLM.from_config(copy.deepcopy(config))).full_attention == full


def test_an_unknown_architecture_is_named_with_the_supported_ones(tiny_llama):
    model = tiny_llama()
    model.config.model_type = "gptj"
    with pytest.raises(ModelError, match="'gptj'.*llama, mistral, qwen2, qwen3"):
        Anatomy.of(model)


def test_a_model_without_a_head_is_refused(tiny_llama):
    with pytest.raises(ModelError, match="without 'lm_head'"):
        Anatomy.of(tiny_llama().model)


def test_a_rotation_that_depends_on_the_length_is_refused(tiny_llama):
    model = tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0})
    with pytest.raises(ModelError, match="'dynamic'"):
        Anatomy.of(model)
