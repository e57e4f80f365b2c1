"""Heads and neurons left out by the native decoder, against masks put into the Hugging Face graph: the same units, the same logits."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsight.errors import ConfigError
from sparsight.models import Anatomy, LoadedModel
from sparsight.models.weights import decoder_weights
from sparsight.ops.native import library
from sparsight.runtime import Budget, Plan, Rule, apply
from sparsight.runtime.decoder import Decoder, NativeUnits
from sparsight.tokens import Geometry, create
from sparsight.units.pieces import Foreseen, Gated, LayerUnits, UnitPieces, UnitProducer

from ..families import FAMILY_CONFIGS, make_model

pytestmark = pytest.mark.skipif(library() is None, reason="the native library is not built")
FAMILIES = ["llama", "qwen3", "gemma3", "phi3"]
KINDS = ["given", "foreseen", "gated-up", "gated-up-look", "gated-gate", "gated-gate-look"]
FORMATS = ["fp32", "bf16"]
LENGTH, PROMPT, WIDTH, RANK = 12, 8, 5, 3
NEURONS = 152  # the last panel of 16 is half full


def make(family, heads=6, kv_heads=2):
    """A family's model of 32 channels a head. Its weights are whole in bfloat16 too: both formats compute the same numbers."""
    config = copy.deepcopy(FAMILY_CONFIGS[family])
    config.num_attention_heads, config.num_key_value_heads, config.hidden_size = heads, kv_heads, 32 * heads
    config.head_dim, config.intermediate_size, config.initializer_range = 32, NEURONS, 0.1
    if family == "llama":
        config.mlp_bias = True
    model = make_model(config)
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16().float())
    return LoadedModel(model, None, family, "0" * 64, Anatomy.of(model))


@pytest.fixture(scope="module")
def families():
    made = {}
    return lambda *sizes: made[sizes] if sizes in made else made.setdefault(sizes, make(*sizes))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 128, (3, LENGTH), generator=torch.Generator().manual_seed(5))


def noise(generator, *shape):
    return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).bfloat16().float()


def pieces_of(loaded, kind, heads=True, neurons=True, cut=None):
    """Random pieces of one kind for all layers but the first."""
    anatomy, generator = loaded.anatomy, torch.Generator().manual_seed(7)
    hidden, query_heads, size = anatomy.hidden_size, anatomy.query_heads, anatomy.intermediate_size
    layers, producers = {}, {}
    for i in range(1, anatomy.layers):
        # Some layers rank heads within KV groups, the others over the layer.
        pool = anatomy.group if anatomy.group > 1 and i % 2 else query_heads
        kept = anatomy.group - 1 if pool == anatomy.group else query_heads // 2
        if kind == "foreseen":
            # Every producer serves two layers, the later one from further away.
            p = (i - 1) // 2 * 2
            if p not in producers:
                producers[p] = UnitProducer(4 * noise(generator, WIDTH, hidden), noise(generator, WIDTH))
            some_heads = Foreseen(p, noise(generator, query_heads, WIDTH), noise(generator, query_heads))
            some = Foreseen(p, noise(generator, size, WIDTH), noise(generator, size))
            level = 0.02
        else:
            if pool == anatomy.group > 1:
                chosen = [torch.randperm(anatomy.group, generator=generator)[:kept] + start for start in range(0, query_heads, anatomy.group)]
                some_heads = torch.cat(chosen).sort().values
            else:
                some_heads = torch.randperm(query_heads, generator=generator)[:kept].sort().values
            some = torch.randperm(size, generator=generator)[: size // 2].sort().values
            level = 0.0
            if kind != "given":
                first, look = kind.split("-")[1], [None, None, None]
                if kind.endswith("look"):
                    look = [noise(generator, size, RANK), noise(generator, RANK, hidden), torch.rand(size, generator=generator)]
                some, level = Gated(first, torch.rand(size, generator=generator) + 0.5, *look), 0.4
        layers[i] = LayerUnits(some_heads if heads else None, kept, pool, some if neurons else None, level if cut is None else cut)
    return UnitPieces(layers, producers)


def best_heads(scores, kept, pool):
    order = scores.view(-1, pool).sort(dim=1, descending=True, stable=True).indices[:, :kept]
    return (order + torch.arange(0, len(scores), pool)[:, None]).flatten().sort().values


def gated_scores(found, x, layer, activation):
    """As `Gated` says, straight from the weights."""
    f = {"silu": F.silu, "gelu_tanh": lambda v: F.gelu(v, approximate="tanh")}[activation]
    gate, up = (F.linear(x, part.weight, part.bias) for part in (layer.gate, layer.up))
    first = f(gate) if found.first == "gate" else up
    guess = 1.0
    if found.left is not None:
        look, g = found.left @ (found.right @ x), f if found.first == "up" else (lambda v: v)
        guess = ((g(look + found.spread) ** 2 + g(look - found.spread) ** 2) / 2).sqrt()
    return first.abs() * guess * found.scale


class Masked:
    """The graph with the units of some pieces set to zero while decoding, and which were not."""

    def __init__(self, loaded, pieces):
        self.loaded, self.pieces, self.decoding = loaded, pieces, False
        self.weights, self.hidden, self.heads, self.neurons, self.handles = decoder_weights(loaded), {}, {}, {}, []
        anatomy = loaded.anatomy
        for i in range(anatomy.layers):
            self._before(anatomy.layer(i), self._enter, i)
            if i in pieces.layers:
                self._before(anatomy.neuron_input(i), self._choose_neurons, i)
                self._before(anatomy.head_output(i), self._mask_heads, i)
                self._before(anatomy.neuron_output(i), self._mask_neurons, i)

    def _before(self, module, call, layer):
        def hook(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            if not self.decoding or (changed := call(layer, x)) is None:
                return None
            return (changed, *args[1:]), kwargs

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _enter(self, i, residual):
        if (p := self.pieces.producers.get(i)) is not None:
            self.hidden[i] = F.silu(F.linear(self.loaded.anatomy.input_norm(i, residual)[0, 0], p.weight, p.bias))
        layer = self.pieces.layers.get(i)
        if layer is None or layer.heads is None:
            return
        heads = layer.heads
        if isinstance(heads, Foreseen):
            heads = best_heads(heads.weight @ self.hidden[heads.producer] + heads.bias, layer.heads_kept, layer.head_pool)
        self.heads[i] = heads

    def _choose_neurons(self, i, x):
        layer = self.pieces.layers[i]
        found = layer.neurons
        if isinstance(found, Foreseen):
            found = (found.weight @ self.hidden[found.producer] + found.bias >= layer.cut).nonzero()[:, 0]
        elif isinstance(found, Gated):
            found = (gated_scores(found, x[0, 0], self.weights.layers[i], self.weights.activation) >= layer.cut).nonzero()[:, 0]
        if found is not None:
            self.neurons[i] = found

    def _mask_heads(self, i, x):
        if i in self.heads:
            keep = torch.zeros(self.loaded.anatomy.query_heads).index_fill(0, self.heads[i], 1.0)
            return x * keep.repeat_interleave(self.loaded.anatomy.head_dim)

    def _mask_neurons(self, i, x):
        if i in self.neurons:
            return x * torch.zeros(x.shape[-1]).index_fill(0, self.neurons[i], 1.0)

    @torch.no_grad()
    def run(self, ids):
        """Logits of each step behind the prompt, `(steps, vocab)`, and the heads and neurons of each by layer."""
        logits, which = [], []
        try:
            past = self.loaded.model(ids[None, :PROMPT], use_cache=True).past_key_values
            self.decoding = True
            for token in ids[PROMPT:]:
                self.heads, self.neurons = {}, {}
                out = self.loaded.model(token[None, None], past_key_values=past, use_cache=True)
                logits.append(out.logits[0, -1].numpy())
                rows = [{i: one.tolist() for i, one in found.items()} for found in (self.heads, self.neurons)]
                which.append(rows)
        finally:
            for handle in self.handles:
                handle.remove()
        return np.stack(logits), which


def decoded(loaded, pieces, ids, format="fp32", threads=1, plan=None, record=True):
    """The same of the native decoder for some sequences, `(sequences, steps, vocab)`, and its steps. `pieces` may be None: dense."""
    decoder = Decoder(loaded, format, threads)
    sequences = [decoder.new_sequence() for _ in ids]
    prompt = PROMPT if plan is None else ids.shape[1] - 4
    for sequence, row in zip(sequences, ids.tolist(), strict=True):
        decoder.prefill(sequence, row[:prompt])
    units = () if pieces is None else [NativeUnits(decoder, pieces)] * len(sequences)
    steps = [decoder.step(sequences, tokens.tolist(), plan, record, units) for tokens in ids[:, prompt:].T]
    return np.stack([step.logits.copy() for step in steps], axis=1), steps


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_units_and_logits_as_masks_in_the_graph(family, kind, format, families, ids):
    loaded = families(family)
    pieces = pieces_of(loaded, kind)
    expected, which = Masked(loaded, pieces).run(ids[0])
    found, steps = decoded(loaded, pieces, ids[:1], format)
    for (heads, neurons), step in zip(which, steps, strict=True):
        heads_computed, neurons_computed, by_heads, by_neurons = step.units[0]
        assert {i: one for i, one in enumerate(by_heads) if i in pieces.layers} == heads
        assert {i: one for i, one in enumerate(by_neurons) if i in pieces.layers} == neurons
        assert heads_computed == sum(map(len, heads.values())) and neurons_computed == sum(map(len, neurons.values()))
        assert 0 < neurons_computed < len(pieces.layers) * NEURONS
    assert_close(found[0], expected)
    dense, _ = decoded(loaded, None, ids[:1], format)
    assert np.abs(dense - found).max() > 1e-2 * np.abs(dense).max()


@pytest.mark.parametrize("part", ["heads", "neurons"])
@pytest.mark.parametrize("kind", ["given", "foreseen", "gated-up-look"])
def test_heads_alone_and_neurons_alone(kind, part, families, ids):
    loaded = families("llama")
    pieces = pieces_of(loaded, kind, heads=part == "heads", neurons=part == "neurons")
    expected, _ = Masked(loaded, pieces).run(ids[0])
    found, steps = decoded(loaded, pieces, ids[:1])
    assert_close(found[0], expected)
    heads, neurons, *_ = steps[0].units[0]
    assert (heads > 0, neurons > 0) == (part == "heads", part == "neurons")


@pytest.mark.parametrize("kind", ["given", "foreseen"])
@pytest.mark.parametrize("kv_heads", [1, 6])
def test_groups_of_all_heads_and_of_one(kind, kv_heads, families, ids):
    """With six KV heads the best heads of all stay, and some KV heads have none: they attend to nothing."""
    loaded = families("llama", 6, kv_heads)
    pieces = pieces_of(loaded, kind)
    expected, which = Masked(loaded, pieces).run(ids[0])
    found, steps = decoded(loaded, pieces, ids[:1])
    assert [step.units[0][2][1] for step in steps] == [heads[1] for heads, _ in which]
    assert_close(found[0], expected)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_kept_is_dense(family, format, families, ids):
    loaded = families(family)
    anatomy = loaded.anatomy
    every = LayerUnits(torch.arange(anatomy.query_heads), neurons=torch.arange(NEURONS))
    dense, _ = decoded(loaded, None, ids[:1], format)
    found, steps = decoded(loaded, UnitPieces(dict.fromkeys(range(anatomy.layers), every)), ids[:1], format)
    assert_close(found, dense)
    assert steps[0].units[0][:2] == (anatomy.layers * anatomy.query_heads, anatomy.layers * NEURONS)
    for kind in KINDS[1:]:
        pieces = pieces_of(loaded, kind, heads=False, cut=-1e30)
        found, steps = decoded(loaded, pieces, ids[:1], format)
        assert_close(found, dense)
        assert steps[0].units[0][1] == len(pieces.layers) * NEURONS


@pytest.mark.parametrize("kind", KINDS[1:])
def test_no_neuron_kept_is_what_the_mask_gives(kind, families, ids):
    loaded = families("llama")
    pieces = pieces_of(loaded, kind, heads=False, cut=1e30)
    expected, _ = Masked(loaded, pieces).run(ids[0])
    found, steps = decoded(loaded, pieces, ids[:1])
    assert steps[0].units[0][1] == 0
    assert_close(found[0], expected)
    assert np.abs(decoded(loaded, None, ids[:1])[0] - found).max() > 0.1


def test_no_given_neuron_is_what_the_mask_gives(families, ids):
    loaded = families("gemma3")
    pieces = UnitPieces({i: LayerUnits(neurons=torch.arange(0)) for i in range(loaded.anatomy.layers)})
    expected, _ = Masked(loaded, pieces).run(ids[0])
    found, _ = decoded(loaded, pieces, ids[:1])
    assert_close(found[0], expected)


@pytest.mark.parametrize("kind", ["foreseen", "gated-up", "gated-gate", "gated-gate-look"])
def test_a_score_that_is_the_cut_is_computed(kind, families, ids):
    """Scores that are equal whatever the input: half of them are the cut, the others the next number below."""
    loaded = families("llama")
    hidden = loaded.anatomy.hidden_size
    above = torch.arange(NEURONS) % 2 == 0
    producers = {}
    if kind == "foreseen":
        cut = torch.tensor(0.7)
        bias = torch.where(above, cut, torch.nextafter(cut, torch.tensor(0.0)))
        producers[0] = UnitProducer(torch.ones(WIDTH, hidden), torch.ones(WIDTH))
        found = Foreseen(0, torch.zeros(NEURONS, WIDTH), bias)
        cut = float(cut)
    else:
        look = [torch.ones(NEURONS, RANK), torch.ones(RANK, hidden), torch.ones(NEURONS)] if kind.endswith("look") else [None, None, None]
        found, cut = Gated(kind.split("-")[1], torch.where(above, 0.0, -1.0), *look), 0.0
    pieces = UnitPieces({1: LayerUnits(neurons=found, cut=cut)}, producers)
    _, steps = decoded(loaded, pieces, ids[:1])
    assert all(step.units[0][3][1] == above.nonzero()[:, 0].tolist() for step in steps)


@pytest.mark.parametrize(("pool", "kept", "expected"), [(3, 2, [0, 1, 3, 5]), (6, 3, [0, 1, 5])])
def test_of_equal_scores_the_lower_head_is_kept(pool, kept, expected, families, ids):
    loaded = families("llama", 6, 2)
    producer = UnitProducer(torch.ones(WIDTH, loaded.anatomy.hidden_size), torch.ones(WIDTH))
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    heads = Foreseen(0, torch.zeros(6, WIDTH), bias)
    _, steps = decoded(loaded, UnitPieces({1: LayerUnits(heads, kept, pool)}, {0: producer}), ids[:1])
    assert all(step.units[0][2][1] == expected for step in steps)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_bits_with_any_threads_and_in_a_batch(kind, format, families, ids):
    loaded = families("llama")
    pieces = pieces_of(loaded, kind)
    alone = np.concatenate([decoded(loaded, pieces, ids[i : i + 1], format)[0] for i in range(3)])
    for threads in (1, 2, 3):
        assert np.array_equal(decoded(loaded, pieces, ids, format, threads, record=threads != 2)[0], alone)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("method", ["streaming", "quest", "lowrank", "butler", "foresight"])
@pytest.mark.parametrize("threads", [1, 3])
def test_tokens_selected_at_the_same_time(method, family, threads, families):
    """A head that is left out counts for zero where importance is by true queries; where it is foreseen, the choice does not see units."""
    loaded = families(family)
    ids = torch.randint(3, 128, (2, 60), generator=torch.Generator().manual_seed(3))
    plan = token_plan(method, loaded.anatomy)
    pieces = pieces_of(loaded, "gated-up-look")
    found, steps = decoded(loaded, pieces, ids, plan=plan, threads=threads)
    assert {step.budgets[0] for step in steps} == {16}
    alone, _ = decoded(loaded, pieces, ids[1:], plan=plan)
    assert np.array_equal(found[1:], alone)
    assert_close(found, expected_with_tokens(loaded, pieces, plan, ids, steps))


def token_plan(method, anatomy):
    """A plan that reads 16 tokens; foresight looks ahead in layers 2 and 3."""
    settings = {"quest": {"page_size": 4}, "lowrank": {"rank": 6}, "butler": {"rank": 6}, "foresight": {"rank": 6, "lowrank_layers": 1}}
    selector = create(method, Geometry.of(anatomy), **settings.get(method, {}))
    generator = torch.Generator().manual_seed(2)
    for parameter in selector.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    if method == "foresight":
        assert [i for i, found in selector.pieces().layers.items() if found.query == "foreseen"] == [2, 3]
    return Plan(selector, Budget.parse("16"), Rule(sinks=2, window=4))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_importance_takes_heads_left_out_for_zero(family, families):
    """Against the graph that chooses by itself, with the queries set to zero in front of its attention."""
    loaded = families(family)
    anatomy, plan = loaded.anatomy, token_plan("quest", loaded.anatomy)
    ids = torch.randint(3, 128, (1, 60), generator=torch.Generator().manual_seed(3))
    pieces = pieces_of(loaded, "given", neurons=False)
    found, steps = decoded(loaded, pieces, ids, plan=plan)
    seen, logits = [], []
    with torch.no_grad(), apply(loaded, plan, observer=lambda length, layer, indices: seen.append(indices[0, :, 0].tolist())):
        past = loaded.model(ids[:, :56], use_cache=True).past_key_values
        handles = [_zeroed_queries(anatomy, i, layer.heads) for i, layer in pieces.layers.items()]
        try:
            for token in ids[0, 56:]:
                logits.append(loaded.model(token[None, None], past_key_values=past, use_cache=True).logits[0, -1].numpy())
        finally:
            for one, other in handles:
                one.remove(), other.remove()
    reads = [step.reads[i] for step in steps for i in plan.selector.layers]
    assert [[sorted(head) for head in layer] for layer in reads] == [[sorted(head) for head in layer] for layer in seen]
    assert_close(found[0], np.stack(logits))
    assert decoded(loaded, None, ids, plan=plan)[1][0].reads[1] != steps[0].reads[1]


def _zeroed_queries(anatomy, i, heads):
    """Hooks that set the queries of the other heads, and what they give, to zero."""
    keep = torch.zeros(anatomy.query_heads).index_fill(0, heads, 1.0).repeat_interleave(anatomy.head_dim)
    query = anatomy.projections(i)["query"][0].register_forward_hook(lambda module, args, out: out * keep)
    return query, anatomy.head_output(i).register_forward_pre_hook(lambda module, args: (args[0] * keep,))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_look_ahead_does_not_see_heads_left_out(batch, family, families):
    """A layer that looks ahead from one that computes everything reads what it would without units; by true queries it would not."""
    loaded = families(family)
    ids = torch.randint(3, 128, (batch, 60), generator=torch.Generator().manual_seed(3))
    pieces = pieces_of(loaded, "given", neurons=False)
    pieces.layers.pop(1)
    for method, same in (("foresight", True), ("lowrank", False)):
        plan = token_plan(method, loaded.anatomy)
        with_units, without = (decoded(loaded, some, ids, plan=plan)[1][0].reads[2] for some in (pieces, None))
        assert (with_units == without) is same


@torch.no_grad()
def expected_with_tokens(loaded, pieces, plan, ids, steps):
    """Logits of the graph that attends to what the steps read, and masks the units."""
    anatomy = loaded.anatomy
    found = []
    for row in range(len(ids)):
        masked = Masked(loaded, pieces)
        prompt, logits = ids.shape[1] - len(steps), []
        try:
            past = loaded.model(ids[row : row + 1, :prompt], use_cache=True).past_key_values
            masked.decoding = True
            for n, step in enumerate(steps):
                handles = [
                    anatomy.attention(i).register_forward_pre_hook(_reads_only(anatomy, step.reads[i], row, prompt + n + 1), with_kwargs=True)
                    for i in range(anatomy.layers)
                ]
                try:
                    masked.heads, masked.neurons = {}, {}
                    out = loaded.model(ids[row, prompt + n][None, None], past_key_values=past, use_cache=True)
                finally:
                    for handle in handles:
                        handle.remove()
                logits.append(out.logits[0, -1].numpy())
        finally:
            for handle in masked.handles:
                handle.remove()
        found.append(np.stack(logits))
    return np.stack(found)


def _reads_only(anatomy, reads, row, length):
    """A hook that hides the other tokens from each query head of a KV head."""
    mask = torch.full((1, anatomy.query_heads, 1, length), -torch.inf)
    for h in range(anatomy.kv_heads):
        read = reads[row * anatomy.kv_heads + h]
        mask[:, h * anatomy.group : (h + 1) * anatomy.group, :, slice(None) if read is None else read] = 0

    def hook(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    return hook


def test_bytes_of_a_token_count_what_is_left_out(families):
    loaded = families("llama")
    decoder = Decoder(loaded, "bf16", 1)
    anatomy = loaded.anatomy
    dense, layers = decoder.bytes_per_token(10), anatomy.layers - 1
    given = NativeUnits(decoder, pieces_of(loaded, "given"))
    assert decoder.bytes_per_token(10, units=given) == dense
    heads, column = 2 * anatomy.hidden_size * anatomy.query_heads * anatomy.head_dim * 2, NEURONS * anatomy.hidden_size * 2
    assert decoder.bytes_per_token(10, units=given, skipped=(1 / 3, 0.5)) == pytest.approx(dense - layers * (heads / 3 + 3 * column / 2))
    gated = NativeUnits(decoder, pieces_of(loaded, "gated-up-look", heads=False))
    assert decoder.bytes_per_token(10, units=gated, skipped=(0.0, 0.5)) == pytest.approx(dense + gated.predictor_bytes - layers * column)


def test_a_look_ahead_reads_all_of_the_query_projection(families):
    """So a head that is left out spares only its columns of W_O there, as long as there are tokens to choose from."""
    loaded = families("llama")
    decoder, anatomy = Decoder(loaded, "bf16", 1), loaded.anatomy
    units = NativeUnits(decoder, pieces_of(loaded, "given", neurons=False))
    query = anatomy.hidden_size * anatomy.query_heads * anatomy.head_dim * 2
    for method, length, matrices in (("lowrank", 60, 6), ("foresight", 60, 4), ("foresight", 10, 6)):
        plan = token_plan(method, anatomy)
        spared = decoder.bytes_per_token(length, plan) - decoder.bytes_per_token(length, plan, units, (1 / 3, 0.0))
        assert spared == pytest.approx(matrices * query / 3)


def test_pieces_that_do_not_fit_are_refused(families):
    """Each of them would be read beyond its end, or silently computed as something else."""
    loaded = families("llama")
    decoder = Decoder(loaded, "fp32", 1)
    anatomy = loaded.anatomy
    hidden, good = anatomy.hidden_size, torch.ones(NEURONS)

    def build(producers=None, **layer):
        at = layer.pop("at", 1)
        return lambda: NativeUnits(decoder, UnitPieces({at: LayerUnits(**layer)}, producers or {}))

    producer = UnitProducer(torch.ones(WIDTH, hidden), torch.ones(WIDTH))
    foreseen = Foreseen(0, torch.ones(NEURONS, WIDTH), good)
    wrong = [
        (build(heads=torch.tensor([1, 0, 3, 4])), "ascending"),
        (build(heads=torch.tensor([0, 0, 3, 4])), "ascending"),
        (build(heads=torch.tensor([0, 6])), "below 6"),
        (build(heads=torch.tensor([-1, 4])), "ascending"),
        (build(heads=torch.arange(0)), "at least one"),
        (build(neurons=torch.tensor([5, 4])), "ascending"),
        (build(neurons=torch.tensor([5, NEURONS])), f"below {NEURONS}"),
        (build(neurons=torch.tensor([1]), at=anatomy.layers), "no layer"),
        (build(neurons=foreseen), "producer"),
        (build({1: producer}, neurons=Foreseen(1, foreseen.weight, good)), "producer comes before"),
        (build({0: producer}, neurons=Foreseen(0, torch.ones(NEURONS, WIDTH + 40), good)), "weight must be"),
        (build({0: producer}, neurons=Foreseen(0, torch.ones(NEURONS - 1, WIDTH), good)), "weight must be"),
        (build({0: producer}, neurons=Foreseen(0, foreseen.weight, good[1:])), "bias must have"),
        (build({0: producer}, neurons=Foreseen(0, foreseen.weight, good * torch.nan)), "bias must be finite"),
        (build({0: producer}, neurons=foreseen, cut=float("nan")), "not a number"),
        (build({0: UnitProducer(torch.ones(WIDTH, hidden + 40), torch.ones(WIDTH))}, neurons=foreseen), "weight must be"),
        (build({0: producer}, heads=Foreseen(0, torch.ones(6, WIDTH), torch.ones(6)), heads_kept=4, head_pool=3), "out of range"),
        (build({0: producer}, heads=Foreseen(0, torch.ones(6, WIDTH), torch.ones(6)), heads_kept=0, head_pool=6), "out of range"),
        (build({0: producer}, heads=Foreseen(0, torch.ones(6, WIDTH), torch.ones(6)), heads_kept=2, head_pool=4), "pools of the same size"),
        (build(neurons=Gated("up", good[1:])), "scale must have"),
        (build(neurons=Gated("up", good * torch.inf)), "scale must be finite"),
        (build(neurons=Gated("up", good, torch.ones(NEURONS, 3), torch.ones(70, hidden), good)), "left must be"),
        (build(neurons=Gated("up", good, torch.ones(NEURONS, 3), torch.ones(3, hidden), good[1:])), "spread must have"),
    ]
    for call, match in wrong:
        with pytest.raises(ValueError, match=match):
            call()


def test_units_of_another_decoder_are_refused(families, ids):
    loaded = families("llama")
    one, other = Decoder(loaded, "fp32", 1), Decoder(loaded, "fp32", 1)
    units = NativeUnits(other, pieces_of(loaded, "given"))
    sequence = one.new_sequence()
    one.prefill(sequence, ids[0].tolist())
    with pytest.raises(ValueError, match="another model"):
        one.step([sequence], [5], units=[units])
    with pytest.raises(ValueError, match="each row"):
        one.step([sequence], [5], units=[None, None])
    mine = NativeUnits(one, pieces_of(loaded, "given"))
    with pytest.raises(ValueError, match="densely"):
        one.step([sequence, sequence], [5, 6], units=[mine, mine])


def test_a_decoder_that_cannot_leave_units_out_says_why(families, monkeypatch):
    loaded = families("llama")
    with pytest.raises(ConfigError, match="int8"):
        NativeUnits(Decoder(loaded, "int8", 1), pieces_of(loaded, "given"))
    monkeypatch.setattr("sparsight.runtime.decoder.units.available_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match="GB are free"):
        NativeUnits(Decoder(loaded, "fp32", 1), pieces_of(loaded, "given"))
    NativeUnits(Decoder(loaded, "fp32", 1), pieces_of(loaded, "given", neurons=False))
