"""A model folder small enough to load at each call, and predictors for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsight.cli.main import main
from sparsight.models import LoadedModel, load
from sparsight.tokens import Geometry, create
from sparsight.tokens.pretrained import save_pretrained

CONTEXT = 512


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory, tiny_llama) -> Path:
    """Folder of a random Llama whose tokens are bytes, with a context of 512 and no chat template."""
    return _save(tmp_path_factory.mktemp("models") / "bytes", tiny_llama)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory, tiny_llama) -> Path:
    """The same with other weights."""
    return _save(tmp_path_factory.mktemp("models") / "other", tiny_llama, seed=1)


@pytest.fixture(scope="session")
def nan_model(tmp_path_factory, tiny_llama) -> Path:
    """The same with one weight that is NaN."""
    return _save(tmp_path_factory.mktemp("models") / "nan", tiny_llama, spoil=True)


def _save(folder: Path, tiny_llama, seed: int = 0, spoil: bool = False) -> Path:
    model = tiny_llama(seed, vocab_size=264, max_position_embeddings=CONTEXT, eos_token_id=256, bos_token_id=256)
    if spoil:
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<eos>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(byte_model) -> LoadedModel:
    return load(byte_model, dtype=torch.float32)


@pytest.fixture
def predictor(tmp_path, loaded) -> Path:
    """Folder of an untrained `lowrank` predictor of the byte model, with a recall table."""
    selector = create("lowrank", Geometry.of(loaded.anatomy), rank=4)
    with torch.no_grad():
        for weight in selector.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "predictor"
    save_pretrained(
        folder,
        selector,
        loaded,
        training={"tokens": 4096, "seconds": 1.5, "config": {"seed": 7}},
        data={"hash": "0" * 64, "documents": [{"name": "a [bold]letter[/bold].txt"}]},
        recall=[{"length": 64, "1/8": 0.75}],
    )
    return folder


@pytest.fixture
def sparsight(capsys):
    """Runs the command line in this process: `code, out, err = sparsight("generate", ...)`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(sparsight):
    """Runs a command line that has to end with code 2 and exactly one line on standard error; gives that line."""

    def run(*arguments: object) -> str:
        code, out, err = sparsight(*arguments)
        assert (code, out) == (2, ""), (code, out, err)
        assert err.endswith("\n") and err.count("\n") == 1, err
        assert err.startswith("sparsight: error: ") and "Traceback" not in err
        return err.removeprefix("sparsight: error: ").rstrip("\n")

    return run
