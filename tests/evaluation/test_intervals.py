import numpy as np
import pytest
from scipy import stats

from sparsight.evaluation import clustered_mean


def test_one_value_a_cluster_is_the_ordinary_t_interval():
    x = np.random.default_rng(0).normal(size=12)
    mean, (low, high) = clustered_mean(x, [str(i) for i in range(12)])
    half = stats.t.ppf(0.975, 11) * x.std(ddof=1) / np.sqrt(12)
    assert (mean, low, high) == pytest.approx((x.mean(), x.mean() - half, x.mean() + half))


def test_repeating_values_within_clusters_does_not_narrow_the_interval():
    x = np.random.default_rng(1).normal(size=8)
    alone = clustered_mean(x, list("abcdefgh"))
    repeated = clustered_mean(np.repeat(x, 5), list(np.repeat(list("abcdefgh"), 5)))
    assert repeated[1] == pytest.approx(alone[1])
    pretended = clustered_mean(np.repeat(x, 5), [str(i) for i in range(40)])
    assert pretended[1][1] - pretended[1][0] < 0.5 * (alone[1][1] - alone[1][0])


def test_one_document_falls_back_to_chunks_and_one_value_has_no_interval():
    x = [1.0, 2.0, 3.0]
    assert clustered_mean(x, ["a"] * 3)[1] == pytest.approx(clustered_mean(x, ["a", "b", "c"])[1])
    assert clustered_mean([1.0], ["a"]) == (1.0, None)
