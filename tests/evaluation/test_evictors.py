"""Evictors in the harness: rows, bytes that are left, a gate of their own, budgets scored together, processes that share the work."""

import json

import pytest
import torch
from tests.evaluation.test_evaluate import documents, run  # noqa: F401

from sparsight.errors import BudgetError, ConfigError
from sparsight.evaluation import Chunk, GateError, Scorer, check_gate
from sparsight.evaluation.intervals import paired_difference
from sparsight.evaluation.recall import held_mask
from sparsight.runtime import Rule
from sparsight.tokens import Geometry, create

SPECS = ["oracle", "h2o:every=4", "kvcrush+snapkv:window=8,every=4", "snapkv:window=8,every=4,heads=adaptive", "streaming", "random"]


@pytest.fixture(scope="module")
def result(stories, documents):  # noqa: F811
    return run(stories, documents, specs=SPECS)


def test_rows_say_what_is_read_and_what_is_left(result, stories):
    rows = {(row["method"], row["budget"]): row for row in result["rows"]}
    dense = rows["dense", "48"]
    assert dense["kept_fraction"] == 1.0
    for name in SPECS:
        row = rows[name, "48"]
        if name in ("oracle", "streaming", "random"):
            assert row["kept_fraction"] == 1.0 and row["bytes_kept"] == dense["bytes_kept"] and "gate" not in row
            continue
        assert 43 <= row["tokens"] <= 48 and row["bytes_per_token"] < dense["bytes_per_token"]
        anatomy = stories.anatomy
        held = 4 * anatomy.kv_heads * anatomy.head_dim * (160 + (anatomy.layers - 1) * row["tokens"])
        assert row["bytes_kept"] == pytest.approx(held + row["state_fraction"] * dense["bytes_kept"])
        floor, ceiling = row["gate"]
        assert floor < row["mass_outside"] < ceiling <= 1
        assert ceiling <= rows["oracle", "48"]["mass_outside"] + 0.02 or "adaptive" in name


def test_the_gate_closes_on_an_evictor_by_its_own_bounds(result):
    for wrong in (1.0, 0.0):
        rows = [dict(row, mass_outside=wrong) if row["method"].startswith("h2o") else row for row in result["rows"]]
        with pytest.raises(GateError, match="h2o"):
            check_gate({**result, "rows": rows})
    check_gate(result)


def test_differences_are_paired_by_chunk(result):
    mean, (low, high) = paired_difference(result, "random", "oracle", "48")
    rows = {(row["method"], row["budget"]): row["nll"] for row in result["rows"]}
    assert mean == pytest.approx(rows["random", "48"] - rows["oracle", "48"]) and low < mean < high
    assert paired_difference(result, "oracle", "oracle", "1/4")[0] == 0
    with pytest.raises(ConfigError, match="no losses of 'h2o' at budget 48"):
        paired_difference(result, "h2o", "oracle", "48")


def test_budgets_together_are_budgets_one_by_one(stories):
    ids = torch.randint(3, 500, (129,), generator=torch.Generator().manual_seed(0))
    # Not k-means: two rows that are all but as near to a centre change places by rounding.
    for name, settings in (("h2o", {}), ("kvcrush+snapkv", {"window": 8, "representatives": "random"}), ("kvcrush+tova", {})):
        evictor = create(name, Geometry.of(stories.anatomy), every=4, **settings)
        scorer = Scorer(stories, Chunk(ids, 30), Rule(), evictors=[evictor])
        together = scorer.evicted(evictor, [24, 40, 31])
        for budget, scored in zip((24, 40, 31), together, strict=True):
            alone = scorer.scored(evictor, budget)
            torch.testing.assert_close(scored.nll, alone.nll, atol=1e-4, rtol=1e-4)
            assert (scored.read, scored.held) == (alone.read, alone.held)


def test_held_mask_is_what_was_there_when_the_row_was_computed():
    held = [(6, torch.tensor([[0, 4, 5, -1]])), (8, torch.tensor([[0, 5, 6, 7]]))]
    visible = torch.tril(torch.ones(8, 8, dtype=torch.bool))[None, None, [4, 5, 6, 7]]
    mask = held_mask(held, torch.tensor([4, 5, 6, 7]), visible)
    assert [row.nonzero().flatten().tolist() for row in mask[0, 0]] == [[0, 4], [0, 4, 5], [0, 5, 6], [0, 5, 6, 7]]


def test_settings_are_part_of_the_configuration(stories, documents):  # noqa: F811
    methods = run(stories, documents, specs=["kvcrush+h2o:ratio=0.5,every=4"], length=96, count=1, budgets=["48"])["configuration"]["methods"]
    text = methods["kvcrush+h2o:ratio=0.5,every=4"]
    assert "ratio=0.5" in text and "recent_share=0.5" in text and "every=4" in text


def test_what_evictors_cannot_do_is_one_line(stories, documents):  # noqa: F811
    with pytest.raises(BudgetError, match="at length 160, budget 1/8: .* 'snapkv' needs"):
        run(stories, documents, specs=["snapkv"], budgets=["1/8"])
    with pytest.raises(ConfigError, match="simulate-prefill"):
        run(stories, documents, specs=["h2o"], simulate_prefill=True)


def test_processes_share_chunks_through_a_file(stories, documents, tmp_path):  # noqa: F811
    out = tmp_path / "r.json"
    settings = {"specs": ["h2o:every=4", "random"], "result": out}
    assert run(stories, documents, shard=(1, 2), **settings) is None
    assert (tmp_path / "r.json.partial.1").exists() and not out.exists()
    some = run(stories, documents, partial=True, **settings)
    assert {row["chunks"] for row in some["rows"]} == {2} and not out.exists()
    both = run(stories, documents, shard=(0, 2), **settings)
    assert both["rows"] == run(stories, documents, specs=settings["specs"])["rows"] == json.loads(out.read_text())["rows"]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    for wrong in ((2, 2), (-1, 2)):
        with pytest.raises(ConfigError, match="does not exist"):
            run(stories, documents, shard=wrong, **settings)
    with pytest.raises(ConfigError, match="no chunk of this configuration"):
        run(stories, documents, partial=True, **{**settings, "result": tmp_path / "other.json"})
    with pytest.raises(ConfigError, match="through a result file"):
        run(stories, documents, shard=(0, 2))
