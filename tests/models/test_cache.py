from sparsight.models import cache_root


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSIGHT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "sparsight"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_root() == tmp_path / "x" / "sparsight"
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
