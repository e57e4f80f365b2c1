"""Every kernel, at every level of instruction sets that this machine has, against NumPy and PyTorch in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.ops import native
from sparsight.ops.packing import FORMATS, GROUP, pack, unpack

lib = native.library()
if lib is None:
    pytest.skip("the native library is not built", allow_module_level=True)

LEVELS = native.levels()
at_every_level = pytest.mark.parametrize("level", LEVELS)
few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 999)
F32, BF16 = FORMATS["fp32"], FORMATS["bf16"]


def handle(packed):
    return lib.Matrix(FORMATS[packed.format], packed.rows, packed.cols, packed.data)


def quantised(x):
    """Rows of activations as the kernels round them for weights of integers: int8 in groups of 32, in float64."""
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP))).reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(groups * inverse).reshape(len(x), -1).astype(np.float64), (largest / np.float32(127)).astype(np.float64)


def expected_product(packed, x):
    """y, and the sum of the absolute values of what is added up."""
    weight = unpack(packed).double().numpy()
    if packed.format in ("int8", "int4"):
        codes, scales = quantised(x)
        x = (codes.reshape(len(x), -1, GROUP) * scales).reshape(len(x), -1)
    else:
        x = np.pad(x, ((0, 0), (0, packed.cols - x.shape[1]))).astype(np.float64)
    return x @ weight.T, np.abs(x) @ np.abs(weight).T


def unaligned(array, offset):
    """A copy of an array's bytes that begins `offset` bytes behind an address that can be divided by 64."""
    room = np.zeros(array.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    view = room[start : start + array.nbytes].reshape(*array.shape[:-1], -1)
    view[...] = np.ascontiguousarray(array).view(np.uint8)
    assert view.ctypes.data % 64 == offset % 64
    return view


# ---- matrix times vector ----


@at_every_level
@pytest.mark.parametrize("format", FORMATS)
@given(batch=st.integers(1, 9), rows=st.integers(1, 100), cols=st.integers(1, 150), seed=seeds)
@few
def test_matvec(level, format, batch, rows, cols, seed):
    g = torch.Generator().manual_seed(seed)
    packed = pack(torch.randn(rows, cols, generator=g), format)
    x = (torch.randn(batch, cols, generator=g) * 10 ** (4 * torch.rand(batch, 1, generator=g) - 2)).numpy()
    y = lib.test_matvec(level, handle(packed), x)
    expected, size = expected_product(packed, x)
    assert y.shape == expected.shape
    assert (np.abs(y - expected) <= 2e-6 * size).all()
    for row, alone in zip(y, x, strict=True):
        assert np.array_equal(row, lib.test_matvec(level, handle(packed), alone[None])[0])


@pytest.mark.parametrize("format", FORMATS)
def test_levels_agree_on_a_product(format):
    g = torch.Generator().manual_seed(0)
    packed, x = pack(torch.randn(333, 1030, generator=g), format), torch.randn(3, 1030, generator=g).numpy()
    size = expected_product(packed, x)[1]
    products = [lib.test_matvec(level, handle(packed), x) for level in LEVELS]
    for other in products[1:]:
        assert (np.abs(other - products[0]) <= 2e-6 * size).all()


@at_every_level
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_extreme_integers_do_not_saturate(level, format):
    # All codes of weights and activations as large as they can be, of either sign; int8 may hold -128, as Q8_0 blocks do.
    packed = pack(torch.ones(16, 96), format)
    size = packed.data.shape[1] // 3
    groups = packed.data.view(1, 3, size)
    groups[:, 1, : size - 32] = groups[:, 2, : size - 32] = 0x80 if format == "int8" else 0xFF
    scales = torch.tensor([1.0] * 16).half().view(torch.uint8)
    groups[..., 512:544] = scales if format == "int8" else groups[..., 512:544]
    if format == "int4":
        groups[..., 256:288] = scales
    for sign in (1.0, -1.0):
        x = np.full((5, 96), sign, np.float32)
        expected, scale = expected_product(packed, x)
        assert (np.abs(lib.test_matvec(level, handle(packed), x) - expected) <= 1e-6 * scale).all()


@at_every_level
@pytest.mark.parametrize("format", FORMATS)
def test_products_of_nothing(level, format):
    packed = pack(torch.randn(20, 40, generator=torch.Generator().manual_seed(1)), format)
    assert not lib.test_matvec(level, handle(packed), np.zeros((2, 40), np.float32)).any()
    assert not lib.test_matvec(level, handle(packed), np.zeros((2, 0), np.float32)).any()
    assert lib.test_matvec(level, handle(packed), np.zeros((0, 40), np.float32)).shape == (0, 20)


@at_every_level
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("offset", [1, 2, 36])
def test_weights_stand_at_any_address(level, format, offset):
    packed = pack(torch.randn(50, 70, generator=torch.Generator().manual_seed(2)), format)
    moved = lib.Matrix(FORMATS[format], packed.rows, packed.cols, unaligned(packed.data.numpy(), offset))
    x = torch.randn(3, 70, generator=torch.Generator().manual_seed(3)).numpy()
    assert np.array_equal(lib.test_matvec(level, moved, x), lib.test_matvec(level, handle(packed), x))


# ---- attention ----


def kept(states, format):
    """Keys or values as they are kept, and what they stand for in float64."""
    if format == F32:
        return states.numpy().view(np.uint8), states.double()
    rounded = states.to(torch.bfloat16)
    return rounded.view(torch.uint8).numpy(), rounded.double()


def attend(level, q, k, v, format=F32, scaling=0.3, indices=None, offset=0):
    """Of the kernel, and of PyTorch in float64."""
    (keys, k), (values, v) = kept(k, format), kept(v, format)
    if offset:
        keys, values = unaligned(keys, offset), unaligned(values, offset + 1)
    chosen = slice(None) if indices is None else indices
    found = lib.test_attend(level, q.numpy(), keys, values, format, scaling, None if indices is None else indices.int().numpy())
    expected = torch.softmax(q.double() @ k[chosen].T * scaling, dim=-1) @ v[chosen]
    return torch.from_numpy(found).double(), expected


def states(heads, tokens, width, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(heads, width, generator=g), torch.randn(tokens, width, generator=g), torch.randn(tokens, width, generator=g), g


@at_every_level
@pytest.mark.parametrize("format", [F32, BF16])
@pytest.mark.parametrize("width", [64, 80, 96, 128, 256, 1, 7, 20, 24, 33, 512])
@given(heads=st.integers(1, 9), tokens=st.integers(1, 700), seed=seeds, choice=st.sampled_from(["all", "some", "few"]))
@settings(deadline=None, max_examples=8)
def test_attention(level, format, width, heads, tokens, seed, choice):
    q, k, v, g = states(heads, tokens, width, seed)
    count = {"all": tokens, "some": tokens // 2 + 1, "few": min(tokens, 9)}[choice]
    indices = None if choice == "all" else torch.randperm(tokens, generator=g)[:count].sort().values
    found, expected = attend(level, q, k, v, format, width**-0.5, indices)
    # Queries are not rounded, and sums are in float32: both formats are as exact.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@at_every_level
@pytest.mark.parametrize("format", [F32, BF16])
@pytest.mark.parametrize("offset", [1, 2, 3, 7, 20, 62])
def test_keys_and_values_stand_at_any_address(level, format, offset):
    for width in (64, 33):
        q, k, v, _ = states(5, 150, width, offset)
        found, expected = attend(level, q, k, v, format, 0.1, offset=offset)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@at_every_level
@pytest.mark.parametrize("tokens", [1, 3, 64, 65, 255, 256, 257, 513])
def test_equal_scores_give_the_mean(level, tokens):
    _, _, v, _ = states(1, tokens, 20, tokens)
    for q, k in ((torch.zeros(3, 20), torch.randn(tokens, 20)), (torch.ones(3, 20), torch.full((tokens, 20), 2.0))):
        found, _ = attend(level, q, k, v)
        torch.testing.assert_close(found, v.double().mean(0).expand(3, 20), rtol=1e-5, atol=1e-6)


@at_every_level
@pytest.mark.parametrize("format", [F32, BF16])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e18])
def test_huge_scores_choose_the_largest(level, format, size):
    q, k, v, _ = states(5, 300, 64, 1)
    found, expected = attend(level, q * size, k * size, v, format)
    torch.testing.assert_close(found, expected, rtol=1e-3 * (size < 1e4) + 1e-5, atol=1e-3)


@at_every_level
def test_denormal_keys_and_values(level):
    q, k, v, _ = states(5, 300, 80, 2)
    found, expected = attend(level, q, k * 1e-40, v * 1e-39)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=3e-43)
    found, expected = attend(level, q * 1e-30, k * 1e-40, v, BF16)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@at_every_level
@pytest.mark.parametrize("hidden", [slice(0, 1), slice(0, 64), slice(0, 300), slice(290, 600), slice(1, 600), slice(0, 599)])
def test_impossible_tokens_weigh_nothing(level, hidden):
    q, k, v, _ = states(5, 600, 24, 3)
    q[:, 5] = q[:, 5].abs() + 0.1
    k[hidden, 5] = -torch.inf
    v[hidden] *= 1e6
    found, expected = attend(level, q, k, v)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@at_every_level
def test_an_order_of_indices_is_an_order_of_rows(level):
    q, k, v, g = states(4, 500, 64, 4)
    indices = torch.randperm(500, generator=g)[:300]
    found, expected = attend(level, q, k, v, indices=indices)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    same, _ = attend(level, q, k[indices], v[indices])
    assert torch.equal(found, same)


# ---- choice ----


def ordered(n, kind, seed):
    g = np.random.default_rng(seed)
    values = {
        "normal": lambda: g.normal(size=n),
        "rising": lambda: np.sort(g.normal(size=n)),
        "falling": lambda: -np.sort(g.normal(size=n)),
        "equal": lambda: np.full(n, -2.5),
        "outlier": lambda: np.where(np.arange(n) == seed % max(n, 1), 3.0, 1.0),
        "two values": lambda: g.integers(0, 2, n) * 1.0,
        "few values": lambda: g.integers(-3, 3, n) * 0.5 + 0.25,
        "denormal": lambda: g.normal(size=n) * 1e-42,
        "infinite": lambda: g.choice([-np.inf, -1.0, 2.0, np.inf], n),
        "periodic": lambda: np.where(np.arange(n) % max(n // 256, 1) == 0, 9.0, g.normal(size=n)),
    }[kind]().astype(np.float32)
    return np.where(values == 0, np.float32(0), values)  # no minus zero, which stands below zero here


KINDS = ["normal", "rising", "falling", "equal", "outlier", "two values", "few values", "denormal", "infinite", "periodic"]


def check_top(level, values, take):
    found = np.array(lib.test_top(level, values, take), dtype=np.int64)
    assert np.array_equal(found, np.sort(np.argsort(-values, kind="stable")[: max(take, 0)]))


@at_every_level
@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(0, 300), part=st.floats(0, 1), seed=seeds)
@few
def test_top(level, kind, n, part, seed):
    values = ordered(n, kind, seed)
    largest = int((values == values.max(initial=-np.inf)).sum())
    for take in (-1, 0, 1, largest - 1, largest, largest + 1, int(part * n), n - 1, n, n + 5):
        check_top(level, values, take)


@at_every_level
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2048, 2049, 5003, 20_000])
def test_top_of_many(level, kind, n):
    for seed, take in enumerate((1, 2, 17, n // 32, n // 8, n // 2, n - 300, n - 1)):
        check_top(level, ordered(n, kind, seed), take)


# ---- importance ----


@at_every_level
@given(heads=st.integers(1, 9), tokens=st.integers(1, 300), spread=st.sampled_from([0.0, 1.0, 20.0, 1e4]), seed=seeds)
@few
def test_sum_softmax2(level, heads, tokens, spread, seed):
    g = np.random.default_rng(seed)
    scores = (g.normal(size=(heads, tokens)) * spread + g.normal(size=(heads, 1)) * 100).astype(np.float32)
    found = lib.test_sum_softmax2(level, scores)[0]
    weights = np.exp2(scores - scores.max(1, keepdims=True).astype(np.float64))
    expected = (weights / weights.sum(1, keepdims=True)).sum(0)
    assert (found >= 0).all() and np.isfinite(found).all()
    # No probability is taken for less than 2^-126.
    np.testing.assert_allclose(found, expected, rtol=3e-5, atol=heads * 2.0**-126)


@at_every_level
def test_softmax2_of_impossible_tokens(level):
    scores = np.random.default_rng(0).normal(size=(3, 37)).astype(np.float32)
    scores[:, 5:9] = -np.inf
    found = lib.test_sum_softmax2(level, scores)[0]
    assert (found[5:9] < 1e-36).all()
    np.testing.assert_allclose(found.sum(), 3, rtol=1e-5)


@at_every_level
@given(heads=st.integers(1, 9), blocks=st.integers(1, 7), pairs=st.integers(1, 40), seed=seeds)
@few
def test_score_keys(level, heads, blocks, pairs, seed):
    g = np.random.default_rng(seed)
    keys = g.integers(-127, 128, (blocks, pairs, 16, 2))
    queries = g.integers(-(2**24) // (2 * pairs), 2**24 // (2 * pairs), (heads, 2 * pairs)).clip(-32767, 32767)
    scales = g.random(heads).astype(np.float32)
    data = keys.astype(np.int8).view(np.uint8)
    found = lib.test_score_keys(level, data, queries.astype(np.float32), scales, None)
    expected = np.einsum("bpti,hpi->hbt", keys, queries.reshape(heads, pairs, 2)).reshape(heads, -1)
    expected = expected.astype(np.float32) * scales[:, None]
    np.testing.assert_array_equal(found, expected)
    some = g.integers(0, blocks, blocks + 1).astype(np.int32)
    found = lib.test_score_keys(level, data, queries.astype(np.float32), scales, some)
    np.testing.assert_array_equal(found, expected.reshape(heads, blocks, 16)[:, some].reshape(heads, -1))


@at_every_level
@pytest.mark.parametrize("format", [F32, BF16])
@given(pages=st.integers(1, 20), width=st.integers(1, 140), seed=seeds)
@few
def test_score_pages(level, format, pages, width, seed):
    g = torch.Generator().manual_seed(seed)
    low, high = torch.randn(2, pages, width, generator=g).sort(0).values
    data, bounds = kept(torch.stack([low, high], 1), format)
    query = torch.randn(width, generator=g)
    found = lib.test_score_pages(level, data, format, query.numpy())[0]
    terms = (bounds * query.double()).amax(1)
    assert (np.abs(found - terms.sum(-1).numpy()) <= 1e-6 * terms.abs().sum(-1).numpy() + 1e-12).all()


# ---- vectors ----

VECTORS = {
    "rms_norm": lambda x, w, b: torch.nn.functional.rms_norm(x, x.shape, w, 1e-5),
    "layer_norm": lambda x, w, b: torch.nn.functional.layer_norm(x, x.shape, w, b, 1e-5),
    "silu": lambda x, w, b: torch.nn.functional.silu(x) * w,
    "gelu": lambda x, w, b: torch.nn.functional.gelu(x, approximate="tanh") * w,
}


@at_every_level
@pytest.mark.parametrize("name", VECTORS)
@given(n=st.integers(1, 200), exponent=st.floats(-3, 3), seed=seeds)
@few
def test_vectors(level, name, n, exponent, seed):
    g = torch.Generator().manual_seed(seed)
    x, w, b = torch.randn(3, n, generator=g) * torch.tensor([[10.0**exponent], [1.0], [1.0]])
    found = torch.from_numpy(lib.test_vector(level, name, x.numpy(), w.numpy(), b.numpy())[0])
    torch.testing.assert_close(found.double(), VECTORS[name](x.double(), w.double(), b.double()), rtol=2e-5, atol=2e-6)


@at_every_level
@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_gates_near_zero_are_exact_to_the_last_bits(level, name):
    x, one = torch.linspace(-2, 2, 4003), torch.ones(4003)
    found = torch.from_numpy(lib.test_vector(level, name, x.numpy(), one.numpy(), one.numpy())[0])
    torch.testing.assert_close(found.double(), VECTORS[name](x.double(), 1.0, 0.0), rtol=8e-7, atol=1e-20)


@at_every_level
@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_gates_far_out(level, name):
    x = torch.tensor([-1e30, -200.0, -88.0, -1e-42, 0.0, 1e-42, 88.0, 200.0, 1e30])
    one = torch.ones(9)
    found = torch.from_numpy(lib.test_vector(level, name, x.numpy(), one.numpy(), one.numpy())[0])
    torch.testing.assert_close(found[1:8], VECTORS[name](x, one, one)[1:8], rtol=1e-6, atol=1e-30)
    assert found[8] == x[8] and 0 >= found[0] > -1e-6


@at_every_level
def test_memory_is_read(level):
    assert lib.read_bandwidth(level, native.pool(2), 1 << 20, 2) > 1e6
