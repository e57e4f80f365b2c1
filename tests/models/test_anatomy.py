from types import SimpleNamespace

import pytest
import torch
from tests.families import FAMILY_CONFIGS, ROTARY, SIZES, make_model, perturb
from torch import nn
from transformers import AttentionInterface, MistralConfig, OPTConfig, Phi3Config, Qwen3Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sparsight.errors import ModelError
from sparsight.models import FAMILIES, Anatomy

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMAS = {
    "plain": {},
    "bias": {"attention_bias": True},
    "one head per group": {"num_key_value_heads": 6},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": YARN},
    "tied": {"tie_word_embeddings": True},
}
WINDOWS = Qwen3Config(head_dim=16, use_sliding_window=True, sliding_window=8, max_window_layers=2, **ROTARY)
OTHERS = {
    "qwen3 windows": WINDOWS,
    "phi3 bias": Phi3Config(**ROTARY),
    "opt norm last": OPTConfig(ffn_dim=160, init_std=0.2, do_layer_norm_before=False, word_embed_proj_dim=40, **SIZES),
    "opt no bias": OPTConfig(
        ffn_dim=160, init_std=0.2, enable_bias=False, layer_norm_elementwise_affine=False, **SIZES
    ),
}


@pytest.fixture(params=[*LLAMAS, *FAMILY_CONFIGS, *OTHERS])
def model(request, tiny_llama):
    if request.param in FAMILY_CONFIGS:
        return make_model(request.param)
    if request.param in OTHERS:
        model = make_model(OTHERS[request.param])
    else:
        model = perturb(tiny_llama(**LLAMAS[request.param]), seed=1)
    if request.param == "phi3 bias":
        for i in range(4):
            proj = model.model.layers[i].self_attn.qkv_proj
            proj.bias = nn.Parameter(torch.linspace(-1, 1, proj.out_features), requires_grad=False)
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
        query = anatomy.rotate(i, anatomy.look_ahead_query(i, residuals[i]), positions)
        assert query.shape == (2, anatomy.query_heads, 11, anatomy.head_dim)
        assert torch.equal(query, seen[i].query)
        assert seen[i].key.shape == (2, anatomy.kv_heads, 11, anatomy.head_dim)
        assert seen[i].scaling == anatomy.scaling


def test_one_row_of_positions_serves_a_whole_batch(tiny_llama):
    anatomy = Anatomy.of(tiny_llama())
    states = torch.randn(3, 2, 5, 16)
    positions = torch.tensor([[4, 9, 2, 2, 100]])
    assert torch.equal(anatomy.rotate(0, states, positions), anatomy.rotate(0, states, positions.expand(3, -1)))
    assert torch.equal(anatomy.rotate(0, states, torch.zeros(1, 5, dtype=torch.long)), states)


def test_products_of_rotated_states_depend_on_distance_only(tiny_llama):
    anatomy = Anatomy.of(tiny_llama())
    query, key = torch.randn(2, 1, 6, 1, 16, dtype=torch.float64)
    near = [anatomy.rotate(0, s, torch.tensor([[p]])) for s, p in ((query, 9), (key, 4))]
    far = [anatomy.rotate(0, s, torch.tensor([[p]])) for s, p in ((query, 209), (key, 204))]
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


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_weights_of_every_family(name):
    model = make_model(name)
    counts, config = Anatomy.of(model).weight_elements(), model.config
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    rows = config.hidden_size * (2 if name == "opt" else 1)
    head = 0 if config.tie_word_embeddings else model.lm_head.weight.numel()
    assert counts["head"] == 128 * 96
    assert counts["embedding_row"] == rows
    assert counts["final_norm"] == 96 * (2 if name == "opt" else 1)
    assert counts["layers"] == sum(p.numel() for p in model.parameters()) - tables - head - counts["final_norm"]
    assert counts["total"] == sum(p.numel() for p in model.parameters()) - tables - head + 128 * 96 + rows


def test_weights_of_an_opt_with_narrow_embeddings():
    counts = Anatomy.of(make_model(OTHERS["opt norm last"])).weight_elements()
    assert counts["final_norm"] == 2 * 40 * 96  # the two projections; this kind has no final norm
    assert (counts["head"], counts["embedding_row"]) == (128 * 40, 40 + 96)


def test_every_family_is_tested():
    assert {config.model_type for config in FAMILY_CONFIGS.values()} == set(FAMILIES)


def test_fields_of_gemma3():
    anatomy = Anatomy.of(make_model("gemma3"))
    assert (anatomy.family, anatomy.head_dim, anatomy.group, anatomy.intermediate_size) == ("gemma3_text", 32, 3, 160)
    assert anatomy.scaling == 20**-0.5
    assert anatomy.full_attention == (1, 3, 5)
    assert anatomy.rope_theta == 1e6
    assert anatomy.query_weight_elements(0) == 6 * 32 * 96


def test_gemma3_rotates_layers_with_a_window_by_another_base():
    anatomy = Anatomy.of(make_model("gemma3"))
    states, positions = torch.randn(1, 2, 3, 32), torch.tensor([[5, 6, 300]])
    full, window = (anatomy.rotate(i, states, positions) for i in (1, 0))
    assert torch.equal(full, anatomy.rotate(5, states, positions))
    assert not torch.allclose(full, window)


def test_fields_of_phi3():
    anatomy = Anatomy.of(make_model("phi3-partial"))
    assert (anatomy.family, anatomy.kv_heads, anatomy.head_dim, anatomy.rope_theta) == ("phi3", 2, 16, 500.0)
    assert anatomy.query_weight_elements(1) == 96 * 96
    states = torch.randn(1, 2, 3, 16)
    turned = anatomy.rotate(0, states, torch.tensor([[5, 6, 7]]))
    assert torch.equal(turned[..., 8:], states[..., 8:])
    assert not torch.isclose(turned[..., :8], states[..., :8]).any()


def test_fields_of_opt():
    anatomy = Anatomy.of(make_model("opt"))
    assert (anatomy.family, anatomy.kv_heads, anatomy.group, anatomy.intermediate_size) == ("opt", 6, 1, 160)
    assert (anatomy.context_length, anatomy.rope_theta, anatomy.scaling) == (512, None, 1.0)
    states = torch.randn(1, 6, 3, 16)
    assert torch.equal(anatomy.rotate(0, states, torch.tensor([[5, 6, 7]])), states)


@pytest.mark.parametrize(
    ("config", "full"),
    [
        (WINDOWS, (0, 1)),
        (MistralConfig(head_dim=16, sliding_window=100, **ROTARY), ()),
        (MistralConfig(head_dim=16, sliding_window=512, **ROTARY), (0, 1, 2, 3)),
        (Phi3Config(sliding_window=100, **ROTARY), ()),
        (FAMILY_CONFIGS["qwen2"], (0, 1, 2, 3)),
    ],
)
def test_layers_with_a_window_are_not_full_attention(config, full):
    assert Anatomy.of(make_model(config)).full_attention == full


def refuses(model, *words):
    with pytest.raises(ModelError) as caught:
        Anatomy.of(model)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_unknown_architecture_is_named_with_the_supported_ones(tiny_llama):
    model = tiny_llama()
    model.config.model_type = "gptj"
    refuses(model, "'gptj'", "gemma3_text, llama, mistral, opt, phi3, qwen2, qwen3")


def test_a_model_without_a_head_is_refused(tiny_llama):
    refuses(tiny_llama().model, "without 'lm_head'")
    refuses(make_model("opt").model, "without 'lm_head'")


def test_a_rotation_that_depends_on_the_length_is_refused(tiny_llama):
    refuses(tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}), "'dynamic'")


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_gemma3_may_not_have_such_a_rotation_in_either_type_of_layer(kind):
    model = make_model("gemma3")
    model.config.rope_parameters[kind]["rope_type"] = "longrope"
    refuses(model, "'longrope'", "yarn")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "qwen3",
            {"layer_types": ["full_attention"] * 2 + ["linear_attention"] * 2},
            ["'linear_attention'", "layer 2"],
        ),
        ("llama", {"layer_types": ["chunked_attention"] * 4}, ["'chunked_attention'", "full_attention"]),
        ("gemma3", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping = 50.0"]),
        ("gemma3", {"use_bidirectional_attention": True}, ["use_bidirectional_attention", "causal"]),
    ],
)
def test_attention_that_cannot_be_selected_from_is_refused(name, changes, words):
    model = make_model(name)
    for key, value in changes.items():
        setattr(model.config, key, value)
    refuses(model, *words)


def test_mixed_devices_are_refused(tiny_llama):
    model = tiny_llama()
    model.model.layers[2].to("meta")
    refuses(model, "mixed devices (cpu, meta)", "without device_map")
