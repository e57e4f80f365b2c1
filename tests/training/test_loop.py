"""Training: repeatable, resumable to the bit, and never touching the language model."""

import dataclasses
import json
from dataclasses import asdict

import pytest
import torch

from sparsight.errors import ArtifactError, ConfigError, StorageError, TextError
from sparsight.models import Anatomy, LoadedModel, fingerprint
from sparsight.training import TrainingConfig, train
from sparsight.training.checkpoint import FILE

CONFIG = TrainingConfig(
    lengths=(64, 128), tokens=1500, calibration_tokens=600, rows=24, learning_rate=1e-2, projection_rate=3e-3, window=8,
    checkpoint_seconds=0.0,
)  # fmt: skip
SETTINGS = {"rank": 4, "width": 8, "stride": 2, "lowrank_layers": 1}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums are then always made in the same order; and for tensors this small it is faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loaded(tiny_llama) -> LoadedModel:
    model = tiny_llama()
    return LoadedModel(model, None, "tiny", fingerprint(model), Anatomy.of(model))


@pytest.fixture(scope="module")
def stream() -> torch.Tensor:
    """A passage of 96 tokens over and over, with some tokens changed."""
    g = torch.Generator().manual_seed(0)
    text = torch.randint(0, 128, (96,), generator=g).repeat(16)
    changed = torch.rand(len(text), generator=g) < 0.1
    return torch.where(changed, torch.randint(0, 128, (len(text),), generator=g), text)


def weights(run) -> dict[str, torch.Tensor]:
    return run.selector.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def run(loaded, stream):
    return train(loaded, "foresight", stream, CONFIG, SETTINGS)


def loss_in(note: str) -> list[float]:
    return [float(note.split("loss ")[1].split(",")[0])] if note.startswith("training") else []


def no_training(done: int, total: int, note: str) -> None:
    assert not note.startswith("training")


def test_loss_falls_and_recall_rises(loaded, stream):
    """Against the start: a rate of zero sees the same chunks and rows with the weights it began with."""
    last = []
    for rate in (0.0, 1e-2):
        config = dataclasses.replace(CONFIG, tokens=6000, learning_rate=rate, projection_rate=rate / 3)
        losses = []
        trained = train(loaded, "foresight", stream, config, SETTINGS | {"rank": 16, "width": 32},
                        progress=lambda step, steps, note, losses=losses: losses.extend(loss_in(note)))  # fmt: skip
        last.append((sum(losses[-8:]), sum(row["recall"] for row in trained.history[-4:])))
    (loss_before, recall_before), (loss_after, recall_after) = last
    assert loss_after < 0.75 * loss_before
    assert recall_after > 1.03 * recall_before


def test_history_holds_steps_losses_and_recalls(run):
    assert [row["step"] for row in run.history] == [1, 6, 11, 16, 18]
    assert all(row["loss"] > 0 and 0 <= row["recall"] <= 1 for row in run.history)
    assert run.seconds > 0


def test_same_seed_gives_the_same_weights_and_another_others(loaded, stream, run):
    assert same(weights(run), weights(train(loaded, "foresight", stream, CONFIG, SETTINGS)))
    other = train(loaded, "foresight", stream, dataclasses.replace(CONFIG, seed=1), SETTINGS)
    assert not same(weights(run), weights(other))


@pytest.mark.parametrize("killed_at", [2, 7, 18])
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(loaded, stream, run, tmp_path, killed_at):
    seen, phases = [], set()

    def kill(step, steps, note):
        if not note.startswith("training"):
            return
        seen.append(step)
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(loaded, "foresight", stream, CONFIG, SETTINGS, work=tmp_path, progress=kill)
    resumed = train(loaded, "foresight", stream, CONFIG, SETTINGS, work=tmp_path, resume=True,
                    progress=lambda step, _, note: seen.append(step) if note.startswith("training") else phases.add(note))  # fmt: skip
    assert seen == [*range(1, killed_at + 1), *range(killed_at, 19)]
    # Killed before the first checkpoint, it starts from calibration again; otherwise not.
    assert phases == ({"int8 scales"} if killed_at > 1 else {"calibration", "int8 scales"})
    assert same(weights(resumed), weights(run))
    assert resumed.history == run.history
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE]


def test_finished_run_resumes_without_a_step(loaded, stream, run, tmp_path):
    train(loaded, "foresight", stream, CONFIG, SETTINGS, work=tmp_path)
    again = train(loaded, "foresight", stream, CONFIG, SETTINGS, work=tmp_path, resume=True, progress=no_training)
    assert same(weights(again), weights(run))


@pytest.fixture
def checkpointed(loaded, stream, tmp_path):
    def kill(step, steps, note):
        if step == 3 and note.startswith("training"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(loaded, "foresight", stream, CONFIG, SETTINGS, work=tmp_path, text_hash="one", progress=kill)
    return tmp_path


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("settings", {"settings": SETTINGS | {"rank": 5}}),
        ("training", {"config": dataclasses.replace(CONFIG, learning_rate=2e-2)}),
        ("training", {"config": dataclasses.replace(CONFIG, seed=2)}),
        ("text", {"text_hash": "other"}),
        ("method", {"method": "butler", "settings": {}}),
    ],
)
def test_resuming_with_other_arguments_is_refused(loaded, stream, checkpointed, what, changes):
    arguments = {"method": "foresight", "stream": stream, "config": CONFIG, "settings": SETTINGS, "text_hash": "one"}
    with pytest.raises(ArtifactError) as error:
        train(loaded, **(arguments | changes), work=checkpointed, resume=True)
    assert what in str(error.value) and str(checkpointed) in str(error.value) and "\n" not in str(error.value)


def test_resuming_with_another_model_is_refused(stream, checkpointed, tiny_llama):
    model = tiny_llama(seed=1)
    other = LoadedModel(model, None, "other", fingerprint(model), Anatomy.of(model))
    with pytest.raises(ArtifactError, match="another model"):
        train(other, "foresight", stream, CONFIG, SETTINGS, work=checkpointed, resume=True, text_hash="one")


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def bit_flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 0x40]) + data[-8:]


def without_progress(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    del header["__metadata__"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize(
    "damage", [truncated, bit_flipped, without_progress, lambda data: b"", lambda data: b"\x80\x04K."]
)
def test_damaged_checkpoint_is_refused(loaded, stream, checkpointed, damage):
    path = checkpointed / FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match="is damaged") as error:
        train(loaded, "foresight", stream, CONFIG, SETTINGS, work=checkpointed, resume=True, text_hash="one")
    assert str(path) in str(error.value)


def test_without_resume_a_checkpoint_is_ignored(loaded, stream, run, checkpointed):
    fresh = train(loaded, "foresight", stream, CONFIG, SETTINGS, work=checkpointed, text_hash="one")
    assert same(weights(fresh), weights(run))


def test_full_disk_ends_the_run_with_one_line(loaded, stream, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        train(loaded, "foresight", stream, CONFIG, SETTINGS, work=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["foresight", "butler", "lowrank"])
def test_language_model_is_not_touched(tiny_llama, stream, method):
    model = tiny_llama()
    loaded = LoadedModel(model, None, "tiny", fingerprint(model), Anatomy.of(model))
    attention = model.config._attn_implementation
    trained = train(loaded, method, stream, dataclasses.replace(CONFIG, tokens=400), {"rank": 4})
    assert fingerprint(model) == loaded.fingerprint
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == attention
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(not p.requires_grad and torch.isfinite(p).all() for p in trained.selector.parameters())
    assert (trained.selector.key_scales > 0).all() and (trained.selector.key_scales != 1).any()


def test_lowrank_has_nothing_to_distil(loaded, stream):
    trained = train(loaded, "lowrank", stream, CONFIG, {"rank": 4}, progress=no_training)
    assert trained.history == []


def test_errors_before_any_work(loaded, stream):
    with pytest.raises(TextError, match="fewer than one chunk of 128"):
        train(loaded, "foresight", stream[:100], CONFIG, SETTINGS)
    with pytest.raises(ConfigError, match="rank"):
        train(loaded, "foresight", stream, CONFIG, {"rank": 999})


def test_config_is_json():
    assert json.loads(json.dumps(asdict(CONFIG)))["lengths"] == [64, 128]
