"""Fixtures shared by all tests. Nothing here or in a test may reach the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.browser import chromium
from transformers import LlamaConfig, LlamaForCausalLM

from sparsight.models import ALIASES, Anatomy, LoadedModel, load
from sparsight.tokens import Geometry, Selector, create
from sparsight.training.statistics import gather_statistics
from sparsight.training.teacher import teach

# Two threads on a busy machine of two cores wait for each other most of the time, and round differently from run to run.
torch.set_num_threads(1)

METHOD_SETTINGS = {
    "lowrank": {"rank": 8},
    "butler": {"rank": 8, "width": 8, "stride": 2},
    "foresight": {"rank": 8, "width": 8, "stride": 2, "lowrank_layers": 1},
    "butler-v1": {"rank": 8, "width": 8, "reduce": 4},
    "quest": {"page_size": 4},
}
"""Settings that suit the tiny models of the tests."""

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: needs a real model of 135M parameters; deselect with -m 'not slow'")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    # The commands of the pages take a minute in one test, and would be waited for at the end.
    items.sort(key=lambda item: item.path.name != "test_documents.py")


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of pages."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real texts and tasks beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no folder with test data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> LoadedModel:
    """A trained Llama of 260,032 parameters in float32: 5 layers, 8 heads, 4 KV heads, context 512."""
    folder = shared_data / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no trained tiny model at {folder}")
    return load(folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """SmolLM2-135M-Instruct in float32; tests that use it are marked slow."""
    packaged = ALIASES["smollm2-135m"]
    if importlib.util.find_spec(packaged.package) is None:
        pytest.skip(f"{packaged.package} is not installed; run: {packaged.install}")
    return load("smollm2-135m", dtype=torch.float32)


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    """Factory of a random float32 Llama, always the same for the same settings; keywords change its config."""

    def make(seed: int = 0, **settings) -> LlamaForCausalLM:
        config = LlamaConfig(
            **{
                "num_hidden_layers": 4,
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "vocab_size": 128,
                "max_position_embeddings": 512,
                "initializer_range": 0.2,
                "attn_implementation": "sdpa",
                **settings,
            }
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).to(torch.float32).eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def tiny(tiny_llama) -> LoadedModel:
    """The random Llama as a `LoadedModel` without a tokenizer."""
    model = tiny_llama()
    return LoadedModel(model, None, "tiny", "0" * 64, Anatomy.of(model))


@pytest.fixture(scope="session")
def ready_selector() -> Callable[..., Selector]:
    """Factory of a selector that can be used: learned methods start from statistics of random tokens, untrained."""

    def make(name: str, loaded: LoadedModel, **settings) -> Selector:
        selector = create(name, Geometry.of(loaded.anatomy), **{**METHOD_SETTINGS.get(name, {}), **settings})
        if selector.learned:
            generator = torch.Generator().manual_seed(5)
            ids = torch.randint(0, loaded.anatomy.vocab_size, (200,), generator=generator)
            selector.initialise(gather_statistics(loaded, [ids], sinks=2, window=4, seed=3))
            lesson = teach(loaded, ids, torch.tensor([199]), selector.layers, selector.producers)
            with torch.no_grad():
                largest = {i: selector.importance_keys(lesson.every_row(i))[0].abs().amax(1) for i in selector.layers}
            selector.set_key_scales(largest)
        return selector.requires_grad_(False).eval()

    return make
