"""A trace: what is in it, that it goes on where it stopped, and every reason not to read it."""

import json
import shutil

import pytest
import torch

from sparsight.errors import ArtifactError, ConfigError, StorageError, TextError
from sparsight.training import unit_trace
from sparsight.training.text import Document
from sparsight.training.unit_capture import capture
from sparsight.training.unit_trace import Trace, TraceConfig, write_trace
from sparsight.units.criteria import criterion

CONFIG = TraceConfig(("l2", "plainact"), length=24, prompt=10, examples=7)
STORY = "Once upon a time there was a little girl named Lily. She had a {} and loved to play with it in the park. "


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(unit_trace, "SHARD", 3)


@pytest.fixture(scope="module")
def documents():
    return [Document(name, "".join(STORY.format(f"{name} {i}") for i in range(6))) for name in ("ball", "kite", "frog")]


@pytest.fixture
def trace(stories, documents, tmp_path):
    return write_trace(stories, documents, tmp_path / "trace", CONFIG)


def test_scores_are_those_of_the_windows(stories, documents, trace):
    assert len(trace) == 7 and trace.ids.shape == (7, 24) and trace.document.tolist() == sorted(trace.document.tolist())
    assert trace.ids[0, : len(stories.start_tokens)].tolist() == list(stories.start_tokens)
    for name, gradients in (("l2", False), ("plainact", True)):
        found = {}
        capture(stories, trace.ids[4:5], gradients, lambda layer, kind, a, g, found=found: found.__setitem__((layer, kind), (a, g)))
        for part, rows in (("prompt", slice(10)), ("rest", slice(10, None))):
            for kind in ("heads", "neurons"):
                scores = trace.scores(name, part, kind)
                assert scores.dtype == torch.bfloat16
                a, g = found[3, kind]
                expected = criterion(name).over_rows(a[:, rows], g[:, rows] if gradients else None)[0]
                assert torch.allclose(scores[4, 3].float(), expected, rtol=1e-2)


def test_an_interrupted_trace_goes_on_to_the_same_bytes(stories, documents, trace, tmp_path, monkeypatch):
    other = tmp_path / "other"

    def interrupted(done, total, note):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_trace(stories, documents, other, CONFIG, progress=interrupted)
    with pytest.raises(ArtifactError, match="was interrupted after 3 of 7 examples; go on with --resume"):
        Trace.open(other)
    with pytest.raises(ArtifactError, match="was interrupted; go on with --resume, or delete it"):
        write_trace(stories, documents, other, CONFIG)
    seen = []
    write_trace(stories, documents, other, CONFIG, resume=True, progress=lambda done, total, note: seen.append(done))
    assert seen == [3, 4, 5, 6]
    for file in trace.folder.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes()


def test_a_kill_before_the_first_shard_leaves_a_trace_that_goes_on(stories, documents, trace, tmp_path):
    def interrupted(done, total, note):
        raise KeyboardInterrupt

    other = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        write_trace(stories, documents, other, CONFIG, progress=interrupted)
    (other / "examples-00000.safetensors").write_bytes(b"not in the index yet")
    (other / ".examples-00000.safetensors.0123456789ab.tmp").write_bytes(b"torn")
    write_trace(stories, documents, other, CONFIG, resume=True)
    assert {f.name: f.read_bytes() for f in other.iterdir()} == {f.name: f.read_bytes() for f in trace.folder.iterdir()}


def test_a_kill_while_the_first_index_is_written_leaves_a_folder_that_can_be_used(stories, documents, tmp_path):
    (tmp_path / ".trace.json.0123456789ab.tmp").write_bytes(b"{")
    assert len(write_trace(stories, documents, tmp_path, CONFIG)) == 7


def test_a_damaged_shard_of_an_interrupted_trace_is_made_again(stories, documents, trace):
    before = {f.name: f.read_bytes() for f in trace.folder.iterdir()}
    edit(trace.folder, complete=False)
    (trace.folder / "examples-00001.safetensors").write_bytes(b"torn")
    seen = []
    write_trace(stories, documents, trace.folder, CONFIG, resume=True, progress=lambda done, total, note: seen.append(done))
    assert seen == [3, 4, 5, 6] and {f.name: f.read_bytes() for f in trace.folder.iterdir()} == before


def test_other_versions_go_on_with_nothing_but_read_what_is_finished(stories, documents, trace):
    assert set(trace.stated["versions"]) == {"python", "sparsight", "torch", "transformers"}
    edit(trace.folder, versions={"torch": "1.0"})
    assert len(write_trace(stories, documents, trace.folder, CONFIG)) == 7
    edit(trace.folder, complete=False)
    with pytest.raises(ArtifactError, match="made with another versions"):
        write_trace(stories, documents, trace.folder, CONFIG, resume=True)


def test_windows_lie_in_one_document_each_if_so_many_fit(stories, documents, tmp_path):
    def windows(length, examples, seed=0):
        config = TraceConfig(("l2",), length, 8, examples, seed)
        ids, owners = unit_trace._windows(stories, documents, config)
        assert ids.shape == (examples, length)
        return ids, owners.tolist()

    own = [stories.tokenizer(d.text, add_special_tokens=False)["input_ids"] for d in documents]
    first = len(stories.start_tokens)
    most = sum(len(d) // (40 - first) for d in own)
    for examples in (1, 7, most):
        ids, owners = windows(40, examples)
        places = []
        for row, owner in zip(ids.tolist(), owners, strict=True):
            assert row[:first] == list(stories.start_tokens)
            found = [i for i in range(len(own[owner])) if own[owner][i : i + 40 - first] == row[first:]]
            assert len(found) == 1
            places.append((owner, found[0]))
        assert all(o < p or i + 40 - first <= j for (o, i), (p, j) in zip(places, places[1:], strict=False))
    assert owners == sorted(owners) and set(owners) == {0, 1, 2}
    assert not torch.equal(windows(40, 7)[0], windows(40, 7, seed=1)[0])
    length = max(map(len, own)) + first + 1
    assert len(windows(length, 1)[0]) == 1  # longer than each, so of the whole stream


def test_a_finished_trace_is_taken_as_it_is(stories, documents, trace):
    def never(*args):
        raise AssertionError("traced again")

    assert len(write_trace(stories, documents, trace.folder, CONFIG, progress=never)) == 7
    with pytest.raises(ArtifactError, match="made with another criteria, prompt"):
        write_trace(stories, documents, trace.folder, TraceConfig(("l2",), 24, 9, 7))


def test_a_full_disk_leaves_what_was_finished(stories, documents, tmp_path, monkeypatch):
    out, write = tmp_path / "trace", unit_trace.write_atomically

    def full(path, data):
        if path.name == "examples-00001.safetensors":
            raise StorageError(f"cannot write '{path}': No space left on device; free space or choose another place")
        write(path, data)

    monkeypatch.setattr(unit_trace, "write_atomically", full)
    with pytest.raises(StorageError, match="No space left"):
        write_trace(stories, documents, out, CONFIG)
    monkeypatch.setattr(unit_trace, "write_atomically", write)
    assert len(write_trace(stories, documents, out, CONFIG, resume=True)) == 7


def test_too_little_room_is_said_before_anything_is_run(stories, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(StorageError, match=r"7 examples take .* GB, but .* has 0 GB free; lower --examples"):
        write_trace(stories, documents, tmp_path / "trace", CONFIG)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: (t / "examples-00001.safetensors").unlink(), "missing, truncated or altered"),
        (lambda t: (t / "examples-00002.safetensors").write_bytes(b"\x80\x05"), "missing, truncated or altered"),
        (lambda t: (t / "trace.json").unlink(), "expected a folder that 'sparsight trace' wrote"),
        (lambda t: (t / "trace.json").write_text("{"), "not valid JSON"),
        (lambda t: (t / "trace.json").write_text("[]"), "does not describe a trace"),
        (lambda t: edit(t, format=9), "newer than 1; upgrade sparsight"),
        (lambda t: edit(t, shards=[]), "is empty"),
        (lambda t: edit(t, prompt="x"), "expected 'prompt' to be a int"),
        (lambda t: edit(t, model_fingerprint="ab" * 32), "is of the model"),
    ],
)
def test_what_cannot_be_read(stories, trace, change, text):
    change(trace.folder)
    with pytest.raises(ArtifactError, match=text) as error:
        Trace.open(trace.folder, stories).scores("l2", "rest", "heads")
    assert "\n" not in str(error.value)


def edit(folder, **fields):
    path = folder / "trace.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_criterion_that_was_not_traced(trace):
    with pytest.raises(ConfigError, match="has no criterion 'snip', but l2, plainact"):
        trace.scores("snip", "rest", "heads")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"criteria": ()}, "at least one criterion"),
        ({"criteria": ("l3",)}, "unknown criterion"),
        ({"criteria": ("l2", "l2")}, "more than once"),
        ({"criteria": ("l2",), "prompt": 256}, "prompt must be from 1 to 255"),
        ({"criteria": ("l2",), "examples": 0}, "at least one example"),
        ({"criteria": ("l2",), "seed": -1}, "seed must be at least 0"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(ConfigError, match=text):
        TraceConfig(**settings)


def test_text_that_is_too_short_or_a_window_too_long(stories, documents, tmp_path):
    with pytest.raises(TextError, match="give more text"):
        write_trace(stories, documents, tmp_path / "t", TraceConfig(("l2",), 100, 50, 500))
    with pytest.raises(TextError, match="over the context"):
        write_trace(stories, documents, tmp_path / "t", TraceConfig(("l2",), 1000, 50, 1))


def test_a_folder_of_something_else(stories, documents, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ArtifactError, match="holds something other than a trace"):
        write_trace(stories, documents, tmp_path, CONFIG)
