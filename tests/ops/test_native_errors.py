"""The border to the C++ code: what does not fit together is a ValueError there, whatever Python hands over, and never a crash."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from sparsight.errors import ConfigError
from sparsight.ops import native
from sparsight.ops.packing import FORMATS, pack, panel_bytes

lib = native.library()
if lib is None:
    pytest.skip("the native library is not built", allow_module_level=True)

LAYERS, HIDDEN, HEADS, KV_HEADS, WIDTH, INTERMEDIATE, VOCAB = 3, 20, 4, 2, 8, 24, 37
RANK, PAGE = 6, 4
RECENCY, KEYS, PAGES = range(3)
TRUE, FORESEEN, EMITTED = range(3)
SIZES = {
    "level": "portable",
    "layers": LAYERS,
    "hidden": HIDDEN,
    "query_heads": HEADS,
    "kv_heads": KV_HEADS,
    "head_dim": WIDTH,
    "intermediate": INTERMEDIATE,
    "vocab": VOCAB,
    "kv_format": 0,
    "activation": 0,
    "eps": 1e-5,
    "scaling": 0.3,
    "embedding_scale": 1.0,
}


def matrix(rows, cols, format="fp32"):
    packed = pack(torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows + cols)) * 0.2, format)
    return lib.Matrix(FORMATS[format], packed.rows, packed.cols, packed.data)


def ones(n):
    return torch.ones(n)


def moved(array, offset=1):
    """A copy that stands at an address that cannot be divided by two."""
    room = np.zeros(array.nbytes + 16, np.uint8)
    start = -room.ctypes.data % 16 + offset
    view = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def new_model(**changes):
    return lib.Model(**{**SIZES, **changes})


MATRICES = {
    "query": (HEADS * WIDTH, HIDDEN),
    "key": (KV_HEADS * WIDTH, HIDDEN),
    "value": (KV_HEADS * WIDTH, HIDDEN),
    "attention": (HIDDEN, HEADS * WIDTH),
    "gate_up": (64, HIDDEN),
    "down": (HIDDEN, INTERMEDIATE),
}
VECTORS = {
    "input_norm": HIDDEN,
    "attention_norm": HIDDEN,
    "ffn_norm": HIDDEN,
    "output_norm": HIDDEN,
    "query_norm": WIDTH,
    "key_norm": WIDTH,
    "query_bias": HEADS * WIDTH,
    "key_bias": KV_HEADS * WIDTH,
    "value_bias": KV_HEADS * WIDTH,
    "attention_bias": HIDDEN,
    "gate_up_bias": 64,
    "down_bias": HIDDEN,
}


def filled(without=None, tables=True, positions=12, **changes):
    """A model with everything but one thing, not sealed."""
    model = new_model(**changes)
    layers = changes.get("layers", LAYERS)
    for i in range(layers):
        for name, shape in MATRICES.items():
            if without != name or i < layers - 1:
                model.set_matrix(i, name, matrix(*shape))
        for name in ("input_norm", "ffn_norm"):
            if without != name:
                model.set_vector(i, name, ones(HIDDEN))
    if tables:
        model.set_table(0, torch.ones(positions, 4), torch.zeros(positions, 4))
    if without != "ends":
        model.set_ends(matrix(VOCAB, HIDDEN), matrix(VOCAB, HIDDEN), ones(HIDDEN))
    return model


def complete(**changes):
    model = filled(**changes)
    model.seal()
    return model


MODEL = complete()
POOL = native.pool(1)


def rows(capacity=10, heads=KV_HEADS, size=4 * WIDTH):
    return torch.zeros(heads, capacity, size, dtype=torch.uint8)


def new_sequence(model=MODEL, capacity=10, layers=LAYERS):
    sequence = lib.Sequence(model)
    for i in range(layers):
        sequence.bind(i, rows(capacity), rows(capacity))
    return sequence


def set_layer(selection, layer, key=KEYS, query=TRUE, producer=-1, **changes):
    arguments = {
        "scale": 1.0,
        "query_projection": matrix(KV_HEADS * 16, WIDTH),
        "projections": KV_HEADS,
        "key_projection": matrix(KV_HEADS * 16, WIDTH),
        "key_scales": ones(KV_HEADS * RANK),
        "up": None,
    }
    selection.set_layer(layer, key, query, producer, **{**arguments, **changes})


def new_selection(key=KEYS, model=MODEL, rank=RANK, page=PAGE, layers=(0, 1, 2)):
    selection = lib.Selection(model, rank, page, 0)
    for i in layers:
        set_layer(selection, i, key, key_scales=ones(KV_HEADS * rank))
    return selection


def with_producer(width=40, hidden=HIDDEN):
    selection = lib.Selection(MODEL, RANK, PAGE, 0)
    selection.set_producer(0, ones(HIDDEN), ones(HIDDEN), matrix(width, hidden))
    return selection


def index(capacity=16, size=2 * 3, heads=KV_HEADS):
    return torch.zeros(heads, capacity * size, dtype=torch.uint8)


def indexed(selection, model=MODEL, capacity=16):
    """A sequence of eight tokens with a place in every index."""
    sequence = new_sequence(model)
    for i in range(LAYERS):
        sequence.bind_index(i, index(capacity), capacity, selection)
    sequence.length = 8
    return sequence


def step(
    model=MODEL, sequences=None, tokens=(1,), vocab=VOCAB, selection=None, budgets=(), rule=(1, 2, 1, 0, 0.25), record=None,
    logits=None, queries=None,
):  # fmt: skip
    sequences = [new_sequence()] if sequences is None else sequences
    if logits is None:
        logits = np.zeros(4 * vocab * len({id(s) for s in sequences}), np.uint8)
    return lib.step(model, POOL, sequences, list(tokens), logits, selection, list(budgets), *rule, record, queries=queries)


def selecting(budget=4, rule=(1, 2, 1, 0, 0.25), **changes):
    selection = new_selection()
    return step(**{"sequences": [indexed(selection)], "selection": selection, "budgets": [budget], "rule": rule, **changes})


def after(object, method, *arguments):
    """The object, when one of its methods was called."""
    getattr(object, method)(*arguments)
    return object


def sequence_of_length(length, **changes):
    sequence = new_sequence(**changes)
    sequence.length = length
    return sequence


def windowed(window, offset, length, selecting=False):
    """A step of a model whose layers have a window, of a sequence that has let go of its first tokens."""
    model = complete()
    sequence = lib.Sequence(model)
    for i in range(LAYERS):
        model.set_window(i, window)
        sequence.bind(i, rows(), rows(), offset)
    sequence.length = length
    return step(model, [sequence], selection=new_selection(RECENCY) if selecting else None, budgets=[4])


def no_rotary_kind():
    model = filled(tables=False)
    model.set_rotary(1, 3)
    model.seal()
    model.set_table(0, torch.ones(12, 4), torch.zeros(12, 4))
    return step(model, [new_sequence(model)])


def index_of_another_selection(key=KEYS, **changes):
    own, other = new_selection(), new_selection(key, **changes)
    sequence = indexed(own)
    size, capacity = 2 * ((changes.get("rank", RANK) + 1) // 2), 16
    sequence.bind_index(1, index(capacity, size if key == KEYS else 2 * WIDTH * 4 // PAGE), capacity, other)
    return step(sequences=[sequence], selection=own, budgets=[4])


def page_bounds(pages=16, size=2 * 2 * 3, heads=KV_HEADS):
    return torch.zeros(heads, pages * size, dtype=torch.uint8)


def paged(pages=16, size=2 * 2 * 3, selection=None, rule=(1, 32, 1, 16, 0.5), tokens=40, indexed=64):
    """A step that scores pages of 16 tokens first."""
    model, own = complete(positions=300), new_selection()
    sequence = new_sequence(model, 300)
    for i in range(LAYERS):
        sequence.bind_index(i, index(indexed), indexed, own)
        if pages is not None:
            sequence.bind_pages(i, page_bounds(pages, size), pages, selection or own)
    sequence.length = tokens
    return step(model, [sequence], selection=own, budgets=[36], rule=rule)


SELECTION = new_selection()
F64 = torch.float64
BAD = {
    # Matrix
    "unknown format": ("format must be 0 to 3", lambda: lib.Matrix(4, 16, 32, np.zeros(512, np.uint8))),
    "negative format": ("format must be 0 to 3", lambda: lib.Matrix(-1, 16, 32, np.zeros(512, np.uint8))),
    "no rows": ("a matrix needs rows", lambda: lib.Matrix(0, 0, 32, np.zeros(0, np.uint8))),
    "no columns": ("a matrix needs rows", lambda: lib.Matrix(0, 16, 0, np.zeros(0, np.uint8))),
    "odd columns": ("multiples of 32", lambda: lib.Matrix(0, 16, 33, np.zeros(33 * 64, np.uint8))),
    "rows beyond an int": ("a matrix needs rows", lambda: lib.Matrix(0, 2**31 - 1, 32, np.zeros(2048, np.uint8))),
    "columns beyond an int": ("a matrix needs rows", lambda: lib.Matrix(0, 16, 2**31 - 32, np.zeros(2048, np.uint8))),
    **{
        f"{format} {more:+} bytes": (
            f"needs {panel_bytes(format, 64) * 2} bytes",
            lambda f=format, more=more: lib.Matrix(FORMATS[f], 17, 64, np.zeros(panel_bytes(f, 64) * 2 + more, np.uint8)),
        )
        for format in FORMATS
        for more in (-1, 1)
    },
    # Pool
    "no threads": ("1 to 1024 threads", lambda: lib.Pool(0)),
    "negative threads": ("1 to 1024 threads", lambda: lib.Pool(-3)),
    "too many threads": ("1 to 1024 threads", lambda: lib.Pool(1025)),
    # Model
    "unknown level": ("no instruction set level 'sse9'", lambda: new_model(level="sse9")),
    **{
        f"{name} {value}": ("sizes must be positive", lambda n=name, v=value: new_model(**{n: v}))
        for name in ("layers", "hidden", "intermediate", "vocab", "kv_heads")
        for value in (0, -1)
    },
    "too many layers": ("out of range", lambda: new_model(layers=2**31 - 1)),
    "too many heads": ("out of range", lambda: new_model(query_heads=2**30, kv_heads=2)),
    "too wide": ("out of range", lambda: new_model(intermediate=2**31 - 1)),
    "no query heads": ("multiple of the KV heads", lambda: new_model(query_heads=0)),
    "odd query heads": ("multiple of the KV heads", lambda: new_model(query_heads=3)),
    "no head_dim": ("head_dim must be 1 to 512", lambda: new_model(head_dim=0)),
    "large head_dim": ("head_dim must be 1 to 512", lambda: new_model(head_dim=513)),
    "keys in int8": ("float32 or bfloat16", lambda: new_model(kv_format=2)),
    "unknown activation": ("unknown activation", lambda: new_model(activation=2)),
    "vector of layer 3": ("no layer 3", lambda: new_model().set_vector(3, "input_norm", ones(HIDDEN))),
    "vector of layer -1": ("no layer -1", lambda: new_model().set_vector(-1, "input_norm", ones(HIDDEN))),
    "unknown vector": ("no vector 'norm'", lambda: new_model().set_vector(0, "norm", ones(HIDDEN))),
    **{
        f"short {name}": (f"{name} must have {n} values", lambda name=name, n=n: new_model().set_vector(0, name, ones(n - 1)))
        for name, n in VECTORS.items()
    },
    "float64 vector": ("right dtype", lambda: new_model().set_vector(0, "input_norm", ones(HIDDEN).to(F64))),
    "strided vector": ("contiguous", lambda: new_model().set_vector(0, "input_norm", ones(2 * HIDDEN)[::2])),
    "column vector": ("dimensions", lambda: new_model().set_vector(0, "input_norm", ones(HIDDEN)[:, None])),
    "list for a vector": ("input_norm must be", lambda: new_model().set_vector(0, "input_norm", [1.0] * HIDDEN)),
    "unaligned vector": ("aligned", lambda: new_model().set_vector(0, "input_norm", moved(np.ones(HIDDEN, np.float32)))),
    "matrix of layer 3": ("no layer 3", lambda: new_model().set_matrix(3, "query", matrix(32, 32))),
    "unknown matrix": ("no matrix 'qkv'", lambda: new_model().set_matrix(0, "qkv", matrix(32, 32))),
    **{
        f"{name} {change}": (f"{name} must be {r} x ", lambda n=name, r=r + dr, c=c + dc: new_model().set_matrix(0, n, matrix(r, c)))
        for name, (r, c) in MATRICES.items()
        for change, dr, dc in (("too low", -1, 0), ("too high", 1, 0), ("too wide", 0, 32))
    },
    "tensor for a matrix": ("query must be a Matrix", lambda: new_model().set_matrix(0, "query", torch.zeros(32, 20))),
    "negative window": ("not negative", lambda: new_model().set_window(0, -1)),
    "window of layer 3": ("no layer 3", lambda: new_model().set_window(3, 1)),
    "rotary 16": ("at most 16 rotary", lambda: new_model().set_rotary(0, 16)),
    "rotary -1": ("at most 16 rotary", lambda: new_model().set_rotary(0, -1)),
    "rotary of layer 3": ("no layer 3", lambda: new_model().set_rotary(3, 0)),
    "table 16": ("at most 16 rotary", lambda: new_model().set_table(16, torch.ones(2, 4), torch.ones(2, 4))),
    "table -1": ("at most 16 rotary", lambda: new_model().set_table(-1, torch.ones(2, 4), torch.ones(2, 4))),
    "table too short": ("the same shape", lambda: new_model().set_table(0, torch.ones(3, 4), torch.ones(2, 4))),
    "table too narrow": ("the same shape", lambda: new_model().set_table(0, torch.ones(2, 4), torch.ones(2, 3))),
    "table too wide": ("at most head_dim", lambda: new_model().set_table(0, torch.ones(2, 5), torch.ones(2, 5))),
    "table in float64": ("right dtype", lambda: new_model().set_table(0, torch.ones(2, 4), torch.ones(2, 4, dtype=F64))),
    "table turned": ("contiguous", lambda: new_model().set_table(0, torch.ones(4, 2).T, torch.ones(2, 4))),
    "cosines unaligned": ("aligned", lambda: new_model().set_table(0, moved(np.ones((2, 4), np.float32)), torch.ones(2, 4))),
    "sines unaligned": ("aligned", lambda: new_model().set_table(0, torch.ones(2, 4), moved(np.ones((2, 4), np.float32)))),
    "endless table": ("not that long", lambda: new_model().set_table(0, torch.ones(2**30, 0), torch.ones(2**30, 0))),
    "embedding": ("embedding must be 37 x", lambda: new_model().set_ends(matrix(36, HIDDEN), matrix(VOCAB, HIDDEN), ones(HIDDEN))),
    "head": ("head must be 37 x", lambda: new_model().set_ends(matrix(VOCAB, HIDDEN), matrix(38, HIDDEN), ones(HIDDEN))),
    "final norm": ("final_norm must have 20", lambda: new_model().set_ends(matrix(VOCAB, HIDDEN), matrix(VOCAB, HIDDEN), ones(21))),
    "sealed without ends": ("no embedding, head and final norm", lambda: filled(without="ends").seal()),
    **{f"sealed without {name}": ("layer 2 lacks a matrix", lambda n=name: filled(without=n).seal()) for name in MATRICES},
    "sealed without input_norm": ("lacks a norm", lambda: filled(without="input_norm").seal()),
    "sealed without ffn_norm": ("lacks a norm", lambda: filled(without="ffn_norm").seal()),
    "sealed without a table": ("layer 1 has no rotary table", lambda: after(filled(), "set_rotary", 1, 1).seal()),
    # Selection
    "rank -1": ("rank must be at most 512", lambda: lib.Selection(MODEL, -1, 0, 0)),
    "rank 513": ("rank must be at most 512", lambda: lib.Selection(MODEL, 513, 0, 0)),
    "negative page": ("page_size is out of range", lambda: lib.Selection(MODEL, 0, -1, 0)),
    "endless page": ("page_size is out of range", lambda: lib.Selection(MODEL, 0, 2**20 + 1, 0)),
    "reduction 3": ("unknown reduction", lambda: lib.Selection(MODEL, 0, 0, 3)),
    "reduction -1": ("unknown reduction", lambda: lib.Selection(MODEL, 0, 0, -1)),
    "pieces of layer 3": ("no layer 3", lambda: new_selection(layers=[3])),
    "pieces of layer -1": ("no layer -1", lambda: new_selection(layers=[-1])),
    "key 3": ("unknown pieces", lambda: new_selection(3)),
    "key -1": ("unknown pieces", lambda: new_selection(-1)),
    "query 3": ("unknown pieces", lambda: set_layer(new_selection(), 1, query=3)),
    "query -1": ("unknown pieces", lambda: set_layer(new_selection(), 1, query=-1)),
    "pages of nothing": ("pages are scored", lambda: new_selection(PAGES, page=0)),
    "pages foreseen": ("pages are scored", lambda: set_layer(with_producer(), 1, PAGES, FORESEEN, 0)),
    "keys without rank": ("importance keys have a rank", lambda: new_selection(rank=0)),
    "low key projection": ("key_projection must be 32 x", lambda: set_layer(new_selection(), 0, key_projection=matrix(31, WIDTH))),
    "no key projection": ("key_projection must be", lambda: set_layer(new_selection(), 0, key_projection=None)),
    "int8 key projection": ("float32 or bfl", lambda: set_layer(new_selection(), 0, key_projection=matrix(32, WIDTH, "int8"))),
    "few key scales": ("key_scales must have 12", lambda: set_layer(new_selection(), 0, key_scales=ones(11))),
    "no key scales": ("key_scales must be", lambda: set_layer(new_selection(), 0, key_scales=None)),
    "key scale zero": ("must be positive", lambda: set_layer(new_selection(), 0, key_scales=torch.arange(12.0))),
    "key scale NaN": ("must be positive", lambda: set_layer(new_selection(), 0, key_scales=ones(12) * torch.nan)),
    "three projections": ("a query projection a KV head", lambda: set_layer(new_selection(), 0, projections=3)),
    "no query projection": ("query_projection must be", lambda: set_layer(new_selection(), 0, query_projection=None)),
    "low query projection": ("query_projection must be 64 x", lambda: set_layer(new_selection(), 0, projections=HEADS)),
    "int4 query projection": ("float32 or bf", lambda: set_layer(new_selection(), 0, query_projection=matrix(32, WIDTH, "int4"))),
    "emitted by nothing": ("up must be a Matrix", lambda: set_layer(with_producer(), 1, query=EMITTED, producer=0)),
    "emitted too few": ("up must be 12 x", lambda: set_layer(with_producer(), 1, query=EMITTED, producer=0, up=matrix(11, 40))),
    "foreseen by nothing": ("up must be a Matrix", lambda: set_layer(with_producer(), 1, query=FORESEEN, producer=0)),
    "foreseen too few": ("up must be 32 x", lambda: set_layer(with_producer(), 1, query=FORESEEN, producer=0, up=matrix(31, 40))),
    "recency foreseen": ("only importance keys", lambda: set_layer(with_producer(), 1, RECENCY, FORESEEN, 0)),
    "no producer": ("producer comes before", lambda: set_layer(new_selection(), 1, query=EMITTED, up=matrix(12, 40))),
    "producer not set": ("producer comes before", lambda: set_layer(new_selection(), 1, query=EMITTED, producer=0, up=matrix(12, 40))),
    "producer of itself": ("comes before", lambda: set_layer(with_producer(), 0, query=EMITTED, producer=0, up=matrix(12, 40))),
    "producer behind": ("comes before", lambda: set_layer(with_producer(), 1, query=EMITTED, producer=7, up=matrix(12, 40))),
    "producer too wide": ("width must fit", lambda: set_layer(with_producer(65), 1, query=EMITTED, producer=0, up=matrix(12, 40))),
    "producer too narrow": ("width must fit", lambda: set_layer(with_producer(9), 1, query=EMITTED, producer=0, up=matrix(12, 900))),
    "producer twice": ("set once", lambda: with_producer().set_producer(0, ones(HIDDEN), ones(HIDDEN), matrix(99, HIDDEN))),
    "producer of layer 3": ("no layer 3", lambda: with_producer().set_producer(3, ones(HIDDEN), ones(HIDDEN), matrix(9, HIDDEN))),
    "producer's weight": ("norm_weight must have", lambda: with_producer().set_producer(1, ones(3), ones(HIDDEN), matrix(9, HIDDEN))),
    "producer's bias": ("norm_bias must have", lambda: with_producer().set_producer(1, ones(HIDDEN), ones(3), matrix(9, HIDDEN))),
    "producer's matrix": ("down must be 40 x 32", lambda: with_producer(hidden=33)),
    "producer's tensor": ("down must be a Matrix", lambda: with_producer().set_producer(1, ones(HIDDEN), ones(HIDDEN), ones(9))),
    # Sequence
    "keys of layer 3": ("no layer 3", lambda: new_sequence(layers=4)),
    "keys of layer -1": ("no layer -1", lambda: new_sequence().bind(-1, rows(), rows())),
    "deep keys": ("(kv_heads, capacity, 32) bytes", lambda: new_sequence().bind(0, rows()[..., None], rows())),
    "few heads": ("(kv_heads, capacity, 32) bytes", lambda: new_sequence().bind(0, rows(heads=1), rows())),
    "narrow rows": ("(kv_heads, capacity, 32) bytes", lambda: new_sequence().bind(0, rows(), rows(size=31))),
    "fewer values": ("(kv_heads, capacity, 32) bytes", lambda: new_sequence().bind(0, rows(), rows(9))),
    "float keys": ("right dtype", lambda: new_sequence().bind(0, torch.zeros(KV_HEADS, 10, 32), rows())),
    "turned values": ("contiguous", lambda: new_sequence().bind(0, rows(), rows()[:, :, ::2].repeat(1, 1, 2)[:, ::2])),
    "unaligned keys": ("must be aligned", lambda: new_sequence().bind(0, moved(rows().numpy()), rows())),
    "unaligned values": ("must be aligned", lambda: new_sequence().bind(0, rows(), moved(rows().numpy(), 2))),
    "negative offset": ("offset is not negative", lambda: new_sequence().bind(0, rows(), rows(), -1)),
    "large offset": ("not that large", lambda: new_sequence().bind(0, rows(), rows(), 2**31 - 1)),
    "negative length": ("length is not negative", lambda: sequence_of_length(-1)),
    "large length": ("not that large", lambda: sequence_of_length(2**31 - 1)),
    "index of layer 3": ("no layer 3", lambda: new_sequence().bind_index(3, index(), 16, SELECTION)),
    "index of a layer without": ("keeps no index", lambda: new_sequence().bind_index(0, index(), 16, new_selection(layers=[1]))),
    "index of recency": ("keeps no index", lambda: new_sequence().bind_index(0, index(), 16, new_selection(RECENCY))),
    "index of another model": (
        "the selection is of another model",
        lambda: new_sequence().bind_index(2, index(), 16, new_selection(model=complete(layers=1), layers=[0])),
    ),
    **{
        f"index of a model of another {name}": (
            "the selection is of another model",
            lambda c={name: value}: new_sequence().bind_index(0, index(), 16, new_selection(model=new_model(**c))),
        )
        for name, value in {"kv_format": 1, "head_dim": 16}.items()
    },
    "half a block": ("multiple of 16", lambda: new_sequence().bind_index(0, index(17), 17, SELECTION)),
    "half a page": ("multiple of 4", lambda: new_sequence().bind_index(0, index(6, 16), 6, new_selection(PAGES))),
    "negative capacity": ("multiple of 16", lambda: new_sequence().bind_index(0, index(), -16, SELECTION)),
    "short index": ("(kv_heads, 96) bytes", lambda: new_sequence().bind_index(0, index()[:, :-1].contiguous(), 16, SELECTION)),
    "short bounds": ("(kv_heads, 256) bytes", lambda: new_sequence().bind_index(0, index(), 16, new_selection(PAGES))),
    "index of one head": ("(kv_heads, 96) bytes", lambda: new_sequence().bind_index(0, index(heads=1), 16, SELECTION)),
    "deep index": ("(kv_heads, 96) bytes", lambda: new_sequence().bind_index(0, index()[..., None], 16, SELECTION)),
    "float index": ("right dtype", lambda: new_sequence().bind_index(0, index().float(), 16, SELECTION)),
    "unaligned bounds": (
        "index must be aligned",
        lambda: new_sequence().bind_index(0, moved(index(16, 16).numpy()), 16, new_selection(PAGES)),
    ),
    # step
    "not sealed": ("not complete", lambda: step(filled())),
    "no rows of a step": ("one token a row", lambda: step(sequences=[], tokens=[])),
    "a token too few": ("one token a row", lambda: step(sequences=[new_sequence(), new_sequence()])),
    "a token too many": ("one token a row", lambda: step(tokens=(1, 2))),
    "no sequence": ("a row needs a sequence", lambda: step(sequences=[None])),
    "sequences apart": ("stand together", lambda: (lambda a, b: step(sequences=[a, b, a], tokens=(1, 2, 3)))(new_sequence(), new_sequence())),
    "few logits": ("logits must be", lambda: step(logits=np.zeros(4 * VOCAB - 1, np.uint8))),
    "many logits": ("logits must be", lambda: step(logits=np.zeros(4 * VOCAB + 4, np.uint8))),
    "unaligned logits": ("logits must be", lambda: step(logits=moved(np.zeros(4 * VOCAB, np.uint8)))),
    "logits of one sequence": ("logits must be", lambda: step(sequences=[new_sequence()] * 2, tokens=(1, 2), vocab=2 * VOCAB)),
    "few queries": ("queries must be", lambda: step(queries=np.zeros(4 * LAYERS * HEADS * WIDTH - 4, np.uint8))),
    "unaligned queries": ("queries must be", lambda: step(queries=moved(np.zeros(4 * LAYERS * HEADS * WIDTH, np.uint8)))),
    "queries of one of two rows": (
        "queries must be",
        lambda: step(sequences=[new_sequence()] * 2, tokens=(1, 2), queries=np.zeros(4 * LAYERS * HEADS * WIDTH, np.uint8)),
    ),
    "record of reads": ("recorded in a list", lambda: step(record=())),
    "token -1": ("token -1 is not in the vocabulary of 37", lambda: step(tokens=[-1])),
    "token 37": ("token 37 is not in the vocabulary of 37", lambda: step(tokens=[VOCAB])),
    "sequence of fewer layers": ("sequence is of another model", lambda: step(sequences=[new_sequence(complete(layers=1), layers=1)])),
    "sequence of bfloat16": ("sequence is of another model", lambda: step(sequences=[lib.Sequence(new_model(kv_format=1))])),
    "sequence of more heads": ("sequence is of another model", lambda: step(sequences=[lib.Sequence(new_model(kv_heads=4))])),
    "sequence of wider heads": ("sequence is of another model", lambda: step(sequences=[lib.Sequence(new_model(head_dim=16))])),
    "nothing bound": ("layer 2 has no room", lambda: step(sequences=[new_sequence(layers=2)])),
    "no room": ("layer 0 has no room", lambda: step(sequences=[sequence_of_length(10)])),
    "no room for two": ("has no room", lambda: step(sequences=[sequence_of_length(9)] * 2, tokens=(1, 2))),
    "no room at all": ("has no room", lambda: step(sequences=[sequence_of_length(0, capacity=0)])),
    "before the offset": ("has no room", lambda: windowed(8, 3, 2)),
    "rotary too short": ("ends before position 12", lambda: step(sequences=[sequence_of_length(12, capacity=20)])),
    "rotary of another kind": ("layer 1 has no rotary table", no_rotary_kind),
    "offset without a window": ("only layers with a window", lambda: windowed(0, 3, 8)),
    "window cut short": ("lacks tokens of its window", lambda: windowed(6, 4, 8)),
    # step with a selection
    "several selecting rows": (
        "are read densely",
        lambda: step(sequences=[indexed(SELECTION)] * 2, tokens=(1, 2), selection=SELECTION, budgets=(9, 9)),
    ),
    "no budget": ("one budget a row", lambda: selecting(budgets=[])),
    "two budgets": ("one budget a row", lambda: selecting(budgets=[4, 4])),
    "negative sinks": ("out of range", lambda: selecting(rule=(-1, 2, 1, 0, 0.25))),
    "negative recent window": ("out of range", lambda: selecting(rule=(1, -2, 1, 0, 0.25))),
    "interval 0": ("out of range", lambda: selecting(rule=(1, 2, 0, 0, 0.25))),
    "budget of sinks and window": ("a budget must hold", lambda: selecting(3)),
    "budget 0": ("a budget must hold", lambda: selecting(0)),
    "negative budget": ("a budget must hold", lambda: selecting(-5)),
    "endless sinks": ("a budget must hold", lambda: selecting(4, rule=(2**31 - 1, 1, 1, 0, 0.25))),
    **{
        f"selection of another {name}": (
            "selection is of another model",
            lambda c={name: value}: selecting(selection=lib.Selection(new_model(**c), RANK, PAGE, 0)),
        )
        for name, value in {"layers": 2, "head_dim": 16, "hidden": 40, "kv_heads": 4, "query_heads": 8}.items()
    },
    "no index": ("no room in its index", lambda: selecting(sequences=[sequence_of_length(8)])),
    "forgotten index": ("no room in its index", lambda: selecting(sequences=[after(indexed(SELECTION), "forget_index")])),
    "full index": ("no room in its index", lambda: selecting(sequences=[after(indexed(SELECTION), "bind_index", 1, index(0), 0, SELECTION)])),
    "index behind": ("no room in its index", lambda: paged(None, tokens=70, rule=(1, 32, 1, 0, 0.5))),
    "window that selects": ("a layer with a window does not select", lambda: windowed(6, 0, 8, selecting=True)),
    "index of another rank": ("of another selection", lambda: index_of_another_selection(rank=2)),
    "index of pages": ("of another selection", lambda: index_of_another_selection(PAGES)),
    # step with pages
    "pages of layer 3": ("no layer 3", lambda: new_sequence().bind_pages(3, page_bounds(), 16, SELECTION)),
    "pages of recency": ("no importance keys", lambda: new_sequence().bind_pages(0, page_bounds(), 16, new_selection(RECENCY))),
    "pages of a layer without": ("no importance keys", lambda: new_sequence().bind_pages(0, page_bounds(), 16, new_selection(layers=[1]))),
    "pages of another model": (
        "the selection is of another model",
        lambda: new_sequence().bind_pages(2, page_bounds(), 16, new_selection(model=complete(layers=1), layers=[0])),
    ),
    "float pages": ("right dtype", lambda: new_sequence().bind_pages(0, page_bounds().float(), 16, SELECTION)),
    "17 pages": ("pages is a multiple of 16", lambda: new_sequence().bind_pages(0, page_bounds(17), 17, SELECTION)),
    "minus 16 pages": ("pages is a multiple of 16", lambda: new_sequence().bind_pages(0, page_bounds(), -16, SELECTION)),
    "pages cut short": ("(kv_heads, 192) bytes", lambda: new_sequence().bind_pages(0, page_bounds(15), 16, SELECTION)),
    "pages of one head": ("(kv_heads, 192) bytes", lambda: new_sequence().bind_pages(0, page_bounds(heads=1), 16, SELECTION)),
    "deep pages": ("(kv_heads, 192) bytes", lambda: new_sequence().bind_pages(0, page_bounds()[..., None], 16, SELECTION)),
    "negative pages": ("pages must be a multiple", lambda: paged(rule=(1, 32, 1, -16, 0.5))),
    "pages of 8 tokens": ("pages must be a multiple", lambda: paged(rule=(1, 32, 1, 8, 0.5))),
    "pages beyond the window": ("at most the window", lambda: paged(rule=(1, 32, 1, 48, 0.5))),
    "no page": ("pages must be a multiple", lambda: paged(rule=(1, 32, 1, 16, 0.0))),
    "more than all pages": ("pages must be a multiple", lambda: paged(rule=(1, 32, 1, 16, 1.5))),
    "NaN pages": ("pages must be a multiple", lambda: paged(rule=(1, 32, 1, 16, float("nan")))),
    "nowhere for pages": ("layer 0 has no room for its pages", lambda: paged(None)),
    "no room for pages": ("layer 0 has no room for its pages", lambda: paged(tokens=256, indexed=304)),
    "pages of another rank": ("pages are of another", lambda: paged(size=4, selection=new_selection(rank=2))),
    # tests of kernels
    "level of a product": ("no instruction set level", lambda: lib.test_matvec("sse9", matrix(3, 3), np.zeros((1, 3), np.float32))),
    "columns of a product": ("more columns", lambda: lib.test_matvec("portable", matrix(3, 3), np.zeros((1, 33), np.float32))),
    "what is no vector's kernel": ("no kernel 'relu'", lambda: lib.test_vector("portable", "relu", ones(2), ones(2), ones(2))),
    "vectors of two lengths": ("of one length", lambda: lib.test_vector("portable", "silu", ones(2), ones(3), ones(2))),
    "a short third vector": ("of one length", lambda: lib.test_vector("portable", "silu", ones(2), ones(2), ones(1))),
    "softmax of no heads": ("no scores", lambda: lib.test_sum_softmax2("portable", np.zeros((0, 3), np.float32))),
    "softmax of no tokens": ("no scores", lambda: lib.test_sum_softmax2("portable", np.zeros((3, 0), np.float32))),
    "little bandwidth": ("out of range", lambda: lib.read_bandwidth("portable", POOL, 1000, 1)),
    "endless bandwidth": ("out of range", lambda: lib.read_bandwidth("portable", POOL, 2**36 + 1, 0)),
    "no repeats": ("out of range", lambda: lib.read_bandwidth("portable", POOL, 1 << 20, 0)),
    **{
        f"keys of shape {shape}": (
            "keys must be",
            lambda s=shape: lib.test_score_keys("portable", np.zeros(s, np.uint8), np.zeros((1, 4), np.float32), ones(1), None),
        )
        for shape in ((2, 2, 16), (1, 2, 15, 2), (1, 2, 16, 3), (1, 2, 16, 2, 1))
    },
    **{
        f"{heads} queries of {width}, {scales} scales": (
            "queries must be",
            lambda h=heads, w=width, s=scales: lib.test_score_keys(
                "portable", np.zeros((1, 2, 16, 2), np.uint8), np.zeros((h, w), np.float32), ones(s), None
            ),
        )
        for heads, width, scales in ((1, 3, 1), (1, 5, 1), (2, 4, 1))
    },
    **{
        f"block {block}": (
            "a block is out of range",
            lambda b=block: lib.test_score_keys(
                "portable", np.zeros((3, 2, 16, 2), np.uint8), np.zeros((1, 4), np.float32), ones(1), np.array([0, b], np.int32)
            ),
        )
        for block in (-1, 3)
    },
    **{
        f"bounds of shape {shape}, {width} channels": (
            "bounds must be",
            lambda s=shape, w=width: lib.test_score_pages("portable", np.zeros(s, np.uint8), 0, ones(w)),
        )
        for shape, width in (((3, 2, 4), 2), ((3, 1, 8), 2), ((3, 2, 8, 1), 2), ((6, 8), 2), ((3, 2, 0), 0), ((3, 2, 2052), 513))
    },
    "bounds in int8": ("bounds are kept", lambda: lib.test_score_pages("portable", np.zeros((3, 2, 4), np.uint8), 2, ones(2))),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_a_value_error(what):
    message, call = BAD[what]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("kept in float32 or bfloat16", {"format": 3}),
        ("keys and values must be (tokens, 32) bytes", {"keys": np.zeros((5, 31), np.uint8)}),
        ("keys and values must be (tokens, 32) bytes", {"values": np.zeros((4, 32), np.uint8)}),
        ("keys and values must be (tokens, 32) bytes", {"values": np.zeros(5 * 32, np.uint8)}),
        ("keys and values must be (tokens, 16) bytes", {"format": 1}),
        ("keys and values must be (tokens, 32) bytes", {"keys": np.zeros((5, 32, 1), np.uint8)}),
        ("keys and values must be (tokens, 32) bytes", {"values": np.zeros((5, 32, 1), np.uint8)}),
        ("keys and values must be (tokens, 32) bytes", {"values": np.zeros((5, 36), np.uint8)}),
        *(
            (
                f"keys and values must be (tokens, {4 * width}) bytes",
                {
                    "queries": np.zeros((3, width), np.float32),
                    "keys": np.zeros((5, 4 * width), np.uint8),
                    "values": np.zeros((5, 4 * width), np.uint8),
                },
            )
            for width in (0, 513)
        ),
        ("no token to attend to", {"indices": np.zeros(0, np.int32)}),
        ("no token to attend to", {"keys": np.zeros((0, 32), np.uint8), "values": np.zeros((0, 32), np.uint8)}),
        ("an index is out of range", {"indices": np.array([0, 5], np.int32)}),
        ("an index is out of range", {"indices": np.array([-1, 3], np.int32)}),
        ("no instruction set level ''", {"level": ""}),
    ],
)
def test_attention_over_what_does_not_fit(message, changes):
    arguments = {
        "level": "portable",
        "queries": np.zeros((3, 8), np.float32),
        "keys": np.zeros((5, 32), np.uint8),
        "values": np.zeros((5, 32), np.uint8),
        "format": 0,
        "scaling": 1.0,
        "indices": None,
    }
    assert lib.test_attend(**arguments).shape == (3, 8)
    with pytest.raises(ValueError, match=re.escape(message)):
        lib.test_attend(**{**arguments, **changes})


def test_what_fits_is_taken():
    assert len(step()) == 1
    assert len(selecting()) == 1
    assert len(paged()) == 1
    assert len(windowed(6, 3, 8)) == 1
    for name, n in VECTORS.items():
        new_model().set_vector(0, name, ones(n))
    for query, outputs in ((EMITTED, KV_HEADS * RANK), (FORESEEN, HEADS * WIDTH)):
        set_layer(with_producer(), 1, query=query, producer=0, up=matrix(outputs, 40))


def test_a_step_that_is_refused_changes_nothing():
    sequence, other = sequence_of_length(3), sequence_of_length(10)
    logits = np.full(8 * VOCAB, 7, np.uint8)
    with pytest.raises(ValueError, match="no room"):
        step(sequences=[sequence, other], tokens=(1, 2), logits=logits)
    assert (sequence.length, other.length) == (3, 10)
    assert (logits == 7).all()


def test_arrays_are_not_copied_behind_the_back():
    for data in (torch.zeros(64 * 32), torch.zeros(2 * 64 * 32, dtype=torch.uint8)[::2]):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            lib.Matrix(0, 16, 32, data)
    for logits in (np.zeros(4 * VOCAB, np.float32), np.zeros(8 * VOCAB, np.uint8)[::2]):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            step(logits=logits)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_number_of_threads(threads):
    with pytest.raises(ConfigError, match=f"threads must be from 1 to 1024, got {threads}"):
        native.pool(threads)


NO_ROOM_FOR_THREADS = """
import importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("_native", sys.argv[1])
lib = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lib)
resource.setrlimit(resource.RLIMIT_AS, (200 << 20,) * 2)
try:
    lib.Pool(1024)
except RuntimeError as error:
    print("refused:", error)
print(lib.Pool(2).threads)
"""


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer needs address space without end")
def test_threads_that_cannot_be_started_are_an_error():
    done = subprocess.run([sys.executable, "-c", NO_ROOM_FOR_THREADS, lib.__file__], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused:") and done.stdout.endswith("2\n")
