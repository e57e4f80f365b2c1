"""The picture of which tokens were read."""

import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import sparsight
from sparsight.errors import ConfigError, StorageError
from sparsight.report import ReadingRecorder, draw_reading_map
from sparsight.report.reading_map import popular_places
from sparsight.runtime import Budget, Plan
from sparsight.tokens import Geometry, create

LAYERS, HEADS, PROMPT, STEPS, BUDGET = 3, 2, 60, 5, 20


@pytest.fixture
def recorder() -> ReadingRecorder:
    """Each head reads the first and last tokens, and head 1 of layer 2 tokens 20..29 in place of 5..14."""
    recorder = ReadingRecorder()
    for length in range(PROMPT + 1, PROMPT + 1 + STEPS):
        for layer in range(1, LAYERS + 1):
            rows = [[*range(5, 15), *range(length - 10, length)] for _ in range(HEADS)]
            if layer == 2:
                rows[1][:10] = range(20, 30)
            recorder(length, layer, torch.tensor(rows)[None, :, None, :])
    return recorder


def test_shares_a_step(recorder):
    shares = recorder.by_step()
    assert shares.shape == (STEPS, PROMPT + STEPS)
    assert recorder.lengths == [61, 62, 63, 64, 65]
    assert np.isnan(shares[0, 61:]).all() and np.isfinite(shares[4]).all()
    assert (shares[:, 20:30] == 1 / 6).all() and (shares[:, 5:15] == 5 / 6).all() and (shares[:, :5] == 0).all()
    assert np.allclose(np.nansum(shares, axis=1), BUDGET)


def test_shares_a_layer(recorder):
    shares = recorder.by_layer()
    assert recorder.layers == [1, 2, 3] and shares.shape == (LAYERS, PROMPT + STEPS)
    assert (shares[1, 20:30] == 0.5).all() and (shares[[0, 2], 20:30] == 0).all()
    assert shares[0, 64] == 1.0  # there for the last step alone, and read in it


def test_records_a_real_generation(tiny_llama):
    model = tiny_llama()
    from sparsight.models import Anatomy

    geometry = Geometry.of(Anatomy.of(model))
    recorder = ReadingRecorder()
    with sparsight.apply(model, Plan(create("quest", geometry), Budget(48)), recorder) as run:
        model.generate(torch.arange(1, 101)[None], max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    assert recorder.lengths == [101, 102, 103, 104, 105] and recorder.layers == [1, 2, 3]
    assert np.allclose(np.nansum(recorder.by_step(), axis=1), 48)
    assert run.tokens_read == 5 * 3 * geometry.kv_heads * 48


@pytest.mark.parametrize("words", [[], [f" w{i}$" if i % 7 else "\n\x00é漢" for i in range(PROMPT + STEPS)]])
def test_picture_is_drawn_and_not_blank(recorder, tmp_path, words):
    path = draw_reading_map(recorder, tmp_path / "new" / "map.png", "What was read for $5 [bold]?", words)
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = imread(path)
    assert pixels.shape[0] > 500 and pixels.shape[1] > 500
    assert pixels[..., :3].std() > 0.1
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]


def test_picture_shows_what_was_read(recorder, tmp_path):
    other = ReadingRecorder()
    for length in recorder.lengths:
        for layer in recorder.layers:
            other(length, layer, torch.arange(BUDGET).expand(1, HEADS, 1, BUDGET))
    first, second = (imread(draw_reading_map(r, tmp_path / "map.png", "")) for r in (recorder, other))
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_nothing_skipped_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="nothing was skipped"):
        draw_reading_map(ReadingRecorder(), tmp_path / "map.png", "")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_says_what_to_install(recorder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'sparsight\[report\]'"):
        draw_reading_map(recorder, tmp_path / "map.png", "")


def test_where_no_picture_can_be_written(recorder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        draw_reading_map(recorder, tmp_path / "file" / "map.png", "")


def test_popular_places_are_apart_and_pass_over_sinks():
    shares = np.zeros(200)
    shares[:4], shares[50:60], shares[58:66], shares[150:155] = 1.0, 0.9, 0.8, 0.5
    places = popular_places(shares, count=2, apart=40)
    assert len(places) == 2 and 45 <= places[0] <= 66 and 140 <= places[1] <= 165
    assert popular_places(shares[:5], 3, 10) == []
