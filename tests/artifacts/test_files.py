"""Files are written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from sparsight.artifacts import files
from sparsight.artifacts.files import KIND, read_bytes, sha256_bytes, write_atomically, write_folder_atomically
from sparsight.errors import ArtifactError, StorageError

OURS = {"config.json": json.dumps({"kind": KIND}), "model.safetensors": b"weights", "README.md": "card"}


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(params=["os.fsync", "os.replace", "builtins.open"])
def full_disk(request, monkeypatch):
    """A call after which the disk is full, at three different points of writing."""

    def fill():
        if request.param != "builtins.open":
            monkeypatch.setattr(request.param, full)
            return
        plain = open
        monkeypatch.setattr(
            "builtins.open", lambda path, mode="r", *a, **k: full() if "r" not in mode else plain(path, mode)
        )

    yield fill
    monkeypatch.undo()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_writes_bytes_and_text_and_makes_parents(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"\x00\x01")
    assert read_bytes(path) == b"\x00\x01"
    write_atomically(path, "grüß")
    assert read_bytes(path) == "grüß".encode()
    assert os.listdir(path.parent) == ["file"]


def test_full_disk_keeps_the_old_file(tmp_path, full_disk):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    full_disk()
    with pytest.raises(StorageError) as error:
        write_atomically(path, b"new")
    one_line(error, str(path), "No space left")
    assert everything(tmp_path) == {"file": b"old"}


def test_interrupt_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert everything(tmp_path) == {"file": b"old"}


def test_reading_what_is_missing_names_it(tmp_path):
    with pytest.raises(StorageError) as error:
        read_bytes(tmp_path / "missing")
    one_line(error, "missing", "No such file")


def test_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file/below"):
        write_atomically(tmp_path / "file" / "below", b"x")


def test_sha256_is_the_known_one():
    assert sha256_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("before", ["missing", "empty", "checkpoint", "older"])
def test_folder_is_written_where_a_predictor_may_be(tmp_path, before):
    folder = tmp_path / "out"
    if before != "missing":
        folder.mkdir()
    if before == "checkpoint":
        (folder / "checkpoint.safetensors").write_bytes(b"progress")
        (folder / ".checkpoint.safetensors.0123456789ab.tmp").write_bytes(b"killed while writing")
    if before == "older":
        write_folder_atomically(folder, OURS | {"README.md": "older"})
    write_folder_atomically(folder, OURS)
    assert everything(tmp_path) == {
        "out/config.json": OURS["config.json"].encode(),
        "out/model.safetensors": b"weights",
        "out/README.md": b"card",
    }
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "content",
    [
        {"notes.txt": b"mine"},
        {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"a language model"},
        {"config.json": b"[]"},
        {"model.safetensors": b"weights of something"},
        {"config.json": json.dumps({"kind": KIND}).encode(), "notes.txt": b"mine"},
    ],
)
def test_folder_with_foreign_content_is_refused(tmp_path, content):
    folder = tmp_path / "out"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    with pytest.raises(ArtifactError) as error:
        write_folder_atomically(folder, OURS)
    one_line(error, str(folder), "choose a new folder")
    assert everything(folder) == content


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"):
        write_folder_atomically(tmp_path / "out", OURS)


@pytest.mark.parametrize("older", [False, True])
def test_full_disk_keeps_the_old_folder(tmp_path, full_disk, older):
    folder = tmp_path / "out"
    if older:
        write_folder_atomically(folder, OURS)
    before = everything(tmp_path)
    full_disk()
    with pytest.raises(StorageError) as error:
        write_folder_atomically(folder, OURS | {"model.safetensors": b"new"})
    one_line(error, str(folder), "No space left")
    assert everything(tmp_path) == before
    assert os.listdir(tmp_path) == (["out"] if older else [])


def test_failure_between_the_two_renamings_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    write_folder_atomically(folder, OURS)
    plain, calls = os.replace, []

    def second_fails(source, target):
        calls.append(target)
        return full() if len(calls) == 2 else plain(source, target)

    monkeypatch.setattr(files.os, "replace", second_fails)
    with pytest.raises(StorageError):
        write_folder_atomically(folder, OURS | {"model.safetensors": b"new"})
    assert os.listdir(tmp_path) == ["out"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
