"""Second moments and the bases that follow from them."""

import pytest
import torch

from sparsight.models import Anatomy, LoadedModel, fingerprint
from sparsight.ops import attention_weights
from sparsight.tokens import Geometry, Rows
from sparsight.training.statistics import Statistics, gather_statistics, joint_bases
from sparsight.training.teacher import sample_positions, teach

GEOMETRY = Geometry(layers=2, query_heads=4, kv_heads=2, head_dim=8, hidden_size=16, full_attention=(0, 1))


def samples(seed: int, rows: int = 400, heads: int = 2, width: int = 8) -> torch.Tensor:
    """`(heads, rows, width)` float64 with a strong preference for some directions."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(heads, width, width, generator=g, dtype=torch.float64)
    mixing = mixing * torch.logspace(0, -1.5, width, dtype=torch.float64)[:, None]
    return torch.randn(heads, rows, width, generator=g, dtype=torch.float64) @ mixing


def moments(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2) @ x / x.shape[1]


def test_all_columns_give_the_exact_product():
    q, k = samples(1), samples(2)
    w_q, w_k = joint_bases(moments(q), moments(k))
    torch.testing.assert_close((q @ w_q) @ (k @ w_k).transpose(1, 2), q @ k.transpose(1, 2), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_truncated_basis_is_the_best_of_its_rank(rank):
    q, k = samples(1), samples(2)
    w_q, w_k = joint_bases(moments(q), moments(k))
    true = q @ k.transpose(1, 2)

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(((q @ a) @ (k @ b).transpose(1, 2) - true).square().mean())

    ours = error(w_q[..., :rank], w_k[..., :rank])
    # Eckart and Young: no matrix of this rank is nearer to the true products than the truncated SVD.
    s = torch.linalg.svdvals(true)
    bound = float((s[:, rank:] ** 2).sum() / true.numel())
    assert bound == pytest.approx(ours, rel=1e-6, abs=1e-12)
    for seed in range(5):
        basis = torch.linalg.qr(
            torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        )[0]
        assert ours < error(basis[..., :rank], basis[..., :rank])
    of_keys = torch.linalg.eigh(moments(k))[1].flip(-1)[..., :rank]
    assert ours < error(of_keys, of_keys)


def test_directions_without_data_give_no_infinities():
    q, k = samples(1), samples(2)
    k[..., 5:] = 0.0
    w_q, w_k = joint_bases(moments(q), moments(k))
    assert torch.isfinite(w_q).all() and torch.isfinite(w_k).all()
    torch.testing.assert_close((q @ w_q) @ (k @ w_k).transpose(1, 2), q @ k.transpose(1, 2), atol=1e-3, rtol=1e-3)
    for basis in joint_bases(moments(q), torch.zeros(2, 8, 8, dtype=torch.float64)):
        assert torch.isfinite(basis).all()


def rows_of(layer: int, q, k, positions) -> Rows:
    """`Rows` of one chunk: queries (heads, rows, width), keys (kv_heads, tokens, width)."""
    nothing = dict.fromkeys(("residual", "model_norm", "model_query", "rotate"))
    first = torch.zeros(1, dtype=torch.long)
    return Rows(layer=layer, queries=q[None].float(), keys=k[None].float(), index=None, positions=positions, first=first,
                scaling=0.35, choosers=len(k), **nothing)


def test_statistics_weigh_queries_and_keys_by_the_attention_that_is_there_to_be_chosen():
    sinks, window = 2, 3
    q, k = samples(1, heads=4)[:, :6], samples(2)
    tokens = k.shape[1]
    positions = torch.arange(tokens - 6, tokens)
    statistics = Statistics(GEOMETRY, sinks=sinks, window=window, seed=0)
    statistics.add(rows_of(1, q, k, positions))
    query_moments, key_moments = torch.zeros(2, 8, 8).double(), torch.zeros(2, 8, 8).double()
    for head in range(2):
        attracted = torch.zeros(tokens).double()
        for h in (2 * head, 2 * head + 1):
            for r, p in enumerate(positions.tolist()):
                attention = torch.softmax(q[h, r] @ k[head, : p + 1].T * 0.35, dim=-1)
                chosen = attention[sinks : p + 1 - window]
                attracted[sinks : p + 1 - window] += chosen / 12
                query_moments[head] += torch.outer(q[h, r], q[h, r]) * chosen.sum() / 12
        even = (torch.arange(tokens) >= sinks).double()
        weight = 0.9 * attracted / attracted.sum() + 0.1 * even / even.sum()
        centred = k[head] - weight @ k[head]
        key_moments[head] = centred.T @ (centred * weight[:, None])
    w_q, w_k = joint_bases(query_moments, key_moments)
    for ours, rank in ((statistics.query_basis(1, 8), 8), (statistics.key_basis(1, 3), 3)):
        assert ours.dtype == torch.float32 and ours.shape == (2, 8, rank)
    product = statistics.query_basis(1, 3) @ statistics.key_basis(1, 3).transpose(1, 2)
    # Compared as a product: each column is known up to its sign.
    torch.testing.assert_close(product.double(), w_q[..., :3] @ w_k[..., :3].transpose(1, 2), atol=1e-3, rtol=1e-3)


def test_a_constant_added_to_all_keys_changes_nothing():
    q, k = samples(1, heads=4)[:, :6], samples(2)
    positions = torch.arange(k.shape[1] - 6, k.shape[1])
    plain, shifted = (Statistics(GEOMETRY, sinks=2, window=3, seed=0) for _ in range(2))
    plain.add(rows_of(0, q, k, positions))
    shifted.add(rows_of(0, q, k + 3.0, positions))
    products = [s.query_basis(0, 4) @ s.key_basis(0, 4).transpose(1, 2) for s in (plain, shifted)]
    torch.testing.assert_close(*products, atol=1e-3, rtol=1e-3)


def test_chunks_count_alike_and_a_new_chunk_changes_the_basis():
    q, k, other = samples(1, heads=4)[:, :6], samples(2), samples(5)
    positions = torch.arange(k.shape[1] - 6, k.shape[1])
    once, twice = (Statistics(GEOMETRY, sinks=2, window=3, seed=0) for _ in range(2))
    for statistics, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            statistics.add(rows_of(0, q, k, positions))
    product, expected = (s.query_basis(0, 8) @ s.key_basis(0, 8).transpose(1, 2) for s in (twice, once))
    torch.testing.assert_close(product, expected, atol=1e-3, rtol=1e-3)
    before = once.query_basis(0, 4)
    once.add(rows_of(0, q * 3, other, positions))
    assert not torch.equal(before, once.query_basis(0, 4))


@pytest.fixture(scope="module")
def loaded(tiny_llama) -> LoadedModel:
    model = tiny_llama()
    return LoadedModel(model, None, "tiny", fingerprint(model), Anatomy.of(model))


def test_teacher_sees_what_the_model_computes(loaded):
    ids = torch.randint(0, 128, (40,), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([3, 17, 39])
    lesson = teach(loaded, ids, positions, (1, 3), (0, 2))
    loaded.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = loaded.model(ids[None], output_attentions=True, output_hidden_states=True)
    finally:
        loaded.model.set_attn_implementation("sdpa")
    for layer in (1, 3):
        rows = lesson.rows(layer)
        weights = attention_weights(rows.queries, rows.keys, rows.visible, rows.scaling)
        torch.testing.assert_close(weights, out.attentions[layer][:, :, positions], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(rows.residual(2), out.hidden_states[2][:, positions], atol=1e-5, rtol=1e-4)
        foreseen = rows.rotate(rows.model_query(layer, out.hidden_states[layer][:, positions]))
        torch.testing.assert_close(foreseen, rows.queries, atol=1e-4, rtol=1e-4)


def test_gathered_bases_approximate_the_models_own_scores(loaded):
    g = torch.Generator().manual_seed(0)
    statistics = gather_statistics(
        loaded, [torch.randint(0, 128, (n,), generator=g) for n in (64, 96)], sinks=4, window=8, seed=0
    )
    rows = teach(loaded, torch.randint(0, 128, (80,), generator=g), torch.tensor([70, 79]), (2,), ()).rows(2)
    q, k = rows.queries[0].unflatten(0, (2, 3)).flatten(1, 2), rows.keys[0, :, 4:]
    k = k - k.mean(dim=1, keepdim=True)
    true = q @ k.transpose(1, 2)
    errors = []
    for rank in (2, 6, 10, 16):
        low = (q @ statistics.query_basis(2, rank)) @ (k @ statistics.key_basis(2, rank)).transpose(1, 2)
        errors.append(float((low - true).square().mean() / true.square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.5 and errors[3] < 1e-6


def test_sampled_positions_are_distinct_sorted_and_late_enough():
    positions = sample_positions(50, 20, 10, torch.Generator().manual_seed(0))
    assert len(positions) == 20 and (positions.diff() > 0).all() and 10 <= positions[0] and positions[-1] < 50
    assert sample_positions(50, 99, 45, torch.Generator()).tolist() == [45, 46, 47, 48, 49]
