"""Scoring with cut matrices by several processes: the same figures as by one."""

import pytest
import torch

from sparsight.activations import ActivationGeometry, Cut, create
from sparsight.errors import ConfigError
from sparsight.evaluation.activations import evaluate_activations
from sparsight.evaluation.units import UnitProtocol
from sparsight.report.points import Source
from sparsight.report.text_results import read_text_result
from sparsight.training.text import Document

STORY = "Once upon a time there was a {} named Tim. He went to the {} and saw a {}. His mom said it was a good day. "
DOCUMENTS = [Document(f"story {d}", "".join(STORY.format("dog", "park", f"bird {d} {i}") for i in range(12))) for d in range(4)]
PROTOCOL = UnitProtocol(64, 4)


@pytest.fixture(scope="module")
def methods(stories):
    made = create("teal", ActivationGeometry.of(stories.anatomy))
    for i in range(stories.anatomy.layers):
        for part in made.parts:
            wide = getattr(made, f"{part}_centre").shape[1]
            made.set_cut(i, part, Cut(torch.zeros(wide), torch.full((wide,), 0.2)))
    return {"teal": made}


def test_processes_share_chunks_through_a_file(stories, methods, tmp_path):
    whole = evaluate_activations(stories, methods, DOCUMENTS, PROTOCOL)
    out = tmp_path / "r.json"
    assert evaluate_activations(stories, methods, DOCUMENTS, PROTOCOL, result=out, shard=(1, 2)) is None and not out.exists()
    shared = evaluate_activations(stories, methods, DOCUMENTS, PROTOCOL, result=out, shard=(0, 2))
    assert shared["losses"] == whole["losses"] and shared["rows"] == whole["rows"] and list(tmp_path.iterdir()) == [out]
    assert 0.05 < shared["rows"][0]["sparsity"] < 0.95


def test_a_run_that_cannot_go_on_is_written_as_it_is(stories, methods, tmp_path):
    """From the chunks that are done, and it says how many; with none there is nothing to write."""
    out = tmp_path / "r.json"
    with pytest.raises(ConfigError, match="no chunk of this configuration"):
        evaluate_activations(stories, methods, DOCUMENTS, PROTOCOL, result=out, as_it_is=True)
    evaluate_activations(stories, methods, DOCUMENTS, PROTOCOL, result=out, shard=(1, 2))
    part, whole = (evaluate_activations(stories, methods, DOCUMENTS, PROTOCOL, result=r, as_it_is=r is not None) for r in (out, None))
    assert part["chunks_done"] == part["rows"][0]["chunks"] == len(part["clusters"]) == len(whole["clusters"]) // 2
    assert "chunks_done" not in whole
    (told,) = read_text_result("activations", part, Source("r.json", "x", part["configuration"]))
    assert told.state == f"{part['chunks_done']} of {PROTOCOL.count} chunks"
    assert part["losses"] == {name: each[1::2] for name, each in whole["losses"].items()} and part["configuration"]["chunks"] == PROTOCOL.count


def test_a_shard_needs_a_file_and_must_exist(stories, methods, tmp_path):
    with pytest.raises(ConfigError, match="through a result file"):
        evaluate_activations(stories, methods, DOCUMENTS, PROTOCOL, shard=(0, 2))
    with pytest.raises(ConfigError, match="does not exist"):
        evaluate_activations(stories, methods, DOCUMENTS, PROTOCOL, result=tmp_path / "r.json", shard=(2, 2))
