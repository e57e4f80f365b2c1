import hashlib
import sys

import pytest
import torch
from torch import nn

from sparsight.errors import StorageError
from sparsight.models import file_sha256, fingerprint


def test_it_hashes_names_shapes_and_bfloat16_bytes_in_order_of_name():
    model = nn.Module()
    model.b = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 1.0009765625]]))
    model.a = nn.Parameter(torch.tensor([-1.0]))
    expected = hashlib.sha256(b"a\0(1,)\0" + b"\x80\xbf" + b"b\0(2, 2)\0" + bytes.fromhex("803f00404040803f"))
    assert fingerprint(model) == expected.hexdigest()


def test_dtype_and_chunking_do_not_matter(tiny_llama, monkeypatch):
    model = tiny_llama()
    whole = fingerprint(model)
    monkeypatch.setattr(sys.modules["sparsight.models.fingerprint"], "_CHUNK_ELEMENTS", 7)
    assert fingerprint(model) == whole
    assert fingerprint(tiny_llama().to(torch.bfloat16)) == whole


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.3.self_attn.v_proj.weight"])
def test_one_changed_value_changes_it(tiny_llama, name):
    model, before = tiny_llama(), fingerprint(tiny_llama())
    model.get_parameter(name).view(-1)[-1] += 0.5
    assert fingerprint(model) != before


def test_shape_and_name_count():
    flat, square, other = nn.Module(), nn.Module(), nn.Module()
    flat.w, square.w, other.v = (nn.Parameter(torch.ones(s)) for s in ((4,), (2, 2), (4,)))
    assert len({fingerprint(model) for model in (flat, square, other)}) == 3


def test_a_shared_parameter_counts_once():
    tied = nn.Module()
    tied.a = tied.b = nn.Parameter(torch.ones(3))
    alone = nn.Module()
    alone.a = nn.Parameter(torch.ones(3))
    assert fingerprint(tied) == fingerprint(alone)


def test_a_transposed_view_is_hashed_by_its_values():
    values = torch.arange(6.0).reshape(2, 3)
    view, copy = nn.Module(), nn.Module()
    view.w, copy.w = nn.Parameter(values.T), nn.Parameter(values.T.contiguous())
    assert fingerprint(view) == fingerprint(copy)


def test_file_sha256(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    with pytest.raises(StorageError, match="nothing"):
        file_sha256(tmp_path / "nothing")
