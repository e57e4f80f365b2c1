import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from sparsight import machine
from sparsight.errors import ConfigError
from sparsight.models import Anatomy, LoadedModel
from sparsight.runtime import Budget, Plan, generate, memory
from sparsight.runtime.cache import held_bytes
from sparsight.runtime.memory import available_bytes, cache_bytes, check_memory
from sparsight.tokens import Geometry, create

PROMPTS = ["Once upon a time there was a little girl named Lily. " * 5, "Tom had a dog."]


@pytest.mark.parametrize("name", [None, "lowrank", "foresight", "streaming"])
def test_bytes_are_those_that_generation_holds_in_the_end(stories, ready_selector, name):
    plan = None if name is None else Plan(ready_selector(name, stories), Budget.parse(48))
    made = generate(stories, PROMPTS, plan, max_new_tokens=30, runtime="hf")
    assert {one.finish_reason for one in made} == {"length"}
    computed = cache_bytes(stories, plan, 2, made[0].prompt_tokens + 29)
    assert sum(one.kv_bytes for one in made) == computed.kv > 0
    assert sum(one.index_bytes for one in made) == computed.index
    assert (computed.index > 0) == (name in ("lowrank", "foresight"))
    assert computed.total == (computed.kv if plan is None else (computed.kv + computed.index) * 3 // 2)


@pytest.mark.parametrize("name", [None, "lowrank", "streaming"])
def test_the_native_decoder_holds_no_padding(stories, ready_selector, name):
    plan = None if name is None else Plan(ready_selector(name, stories), Budget.parse(36 + 1))
    for one in generate(stories, [PROMPTS[0], PROMPTS[0][:150]], plan, max_new_tokens=30, runtime="native"):
        computed = cache_bytes(stories, plan, 1, one.prompt_tokens + 29)
        assert one.kv_bytes == computed.kv > 0
        # Importance keys are kept in blocks of 16 tokens.
        spare = 15 * computed.index / (one.prompt_tokens + 29)
        assert computed.index <= one.index_bytes <= computed.index + spare


def test_a_sliding_window_layer_is_counted_with_its_window(stories):
    config = MistralConfig(
        num_hidden_layers=3, hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, vocab_size=512,
        head_dim=16, max_position_embeddings=256, sliding_window=20,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    loaded = LoadedModel(model, stories.tokenizer, "sliding", "0" * 64, Anatomy.of(model))
    for tokens in (10, 40):
        ids = torch.arange(tokens)[None]
        cache = model(ids, use_cache=True).past_key_values
        assert cache_bytes(loaded, None, 1, tokens).kv == held_bytes(cache) == 3 * min(tokens, 19) * 2 * 16 * 4


def test_too_much_is_refused_in_one_line_before_anything_runs(stories, ready_selector, monkeypatch):
    plan = Plan(ready_selector("lowrank", stories), Budget.parse(48))
    needed = cache_bytes(stories, plan, 8, 400 + 5).total
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed - 1)
    monkeypatch.setattr(type(stories.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    with pytest.raises(ConfigError) as caught:
        generate(stories, ["Once", "upon"], plan, beams=4, max_new_tokens=400 + 3)
    line = str(caught.value)
    assert "\n" not in line and "8 sequences of 405 tokens" in line and "importance keys" in line
    assert f"{needed / 1e9:.3g} GB" in line and "fewer prompts" in line and "cpu" in line
    with pytest.raises(ConfigError, match="^1 sequence of 405 tokens .* lower max-new-tokens"):
        monkeypatch.setattr(memory, "available_bytes", lambda device: 0)
        generate(stories, "Once", max_new_tokens=403)


def test_exactly_enough_is_enough_and_what_is_held_counts(stories, monkeypatch):
    needed = cache_bytes(stories, None, 1, 100).total
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed)
    check_memory(stories, None, 1, 100)
    with pytest.raises(ConfigError):
        check_memory(stories, None, 1, 101)
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed // 2)
    check_memory(stories, None, 1, 100, held=needed // 2)


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes a control group's files and says that this process is in `pods/mine`."""
    (tmp_path / "self").write_text("9:name=systemd:/\n0::/pods/mine\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "self")

    def write(name: str, limit: str, used: int, inactive: int = 0) -> None:
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")

    return write


def test_the_tightest_control_group_limits_what_is_free(groups):
    cpu = torch.device("cpu")
    unlimited = available_bytes(cpu)
    groups("pods/mine", "max", 10)
    assert available_bytes(cpu) > unlimited / 2
    groups("pods", "5000", 3000, inactive=500)
    assert available_bytes(cpu) == 2500
    groups("pods/mine", "4000", 3900)
    assert available_bytes(cpu) == 100
    groups("pods/mine", "4000", 4100)
    assert available_bytes(cpu) == 0


def test_without_control_groups_it_is_what_the_system_has(groups, monkeypatch, tmp_path):
    assert available_bytes(torch.device("cpu")) > 10**6
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "missing")
    assert available_bytes(torch.device("cpu")) > 10**6


def test_on_cuda_reserved_memory_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert available_bytes(torch.device("cuda", 0)) == 1300


@pytest.mark.parametrize("name", ["h2o", "kvcrush+snapkv", "pyramidkv"])
def test_an_evictor_is_counted_with_what_it_keeps(stories, name):
    """Its caches hold at most what is counted, and much less than a cache of everything."""
    small = {} if name == "h2o" else {"window": 8}
    plan = Plan(create(name, Geometry.of(stories.anatomy), every=4, **small), Budget.parse(48))
    made = generate(stories, PROMPTS, plan, max_new_tokens=30)
    computed = cache_bytes(stories, plan, 2, made[0].prompt_tokens + 29)
    held = sum(one.kv_bytes for one in made)
    assert held <= computed.kv <= 1.35 * held and computed.kv < 0.7 * cache_bytes(stories, None, 2, made[0].prompt_tokens + 29).kv
    assert 0 < sum(one.index_bytes for one in made) <= 2 * computed.index
