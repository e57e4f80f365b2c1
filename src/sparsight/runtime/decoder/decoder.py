"""The native CPU decoder of one model: its weights packed once, then one native call a token.

What the step computes is the model's own graph: norm, QKV, rotary embedding, cache append, importance and selection, gathered attention,
output, gated feed-forward, logits. Activations are in float32 throughout (int8 where weights are integers), keys and values in the model's
dtype. Prefill goes through the same kernels, many tokens at a time, or, where PyTorch is faster, through the Hugging Face graph into the same
cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers.cache_utils import Cache

from ...activations import ActivationMethod
from ...errors import ConfigError, ModelError, SparsightError, TextError
from ...models import LoadedModel
from ...models.weights import DecoderWeights, decoder_weights
from ...ops.native import level, library, need_library, pool
from ...ops.packing import FORMATS, Packed
from ...tokens import Selector
from ..apply import check_fits
from ..memory import available_bytes
from ..plan import Plan
from ..rule import Rule
from .activations import NativeActivations, native_columns
from .packed import pack_decoder, packed_bytes
from .selection import NativeSelection, native_matrix, why_not_native, why_not_native_rule
from .sequence import DecoderSequence
from .units import NativeUnits, neuron_records

_FEWEST_POSITIONS = 1024
_PREFILL_ROWS = 64
_DENSE = Rule(sinks=0, window=0)
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
_KV_FORMATS = {torch.float32: 0, torch.bfloat16: 1}


@dataclass
class Step:
    """One decode step.

    Attributes
    ----------
    logits : (sequences, vocab) float32
    best : list of int
        Token of the largest logit of each.
    budgets : list of int
        Tokens that each read in selecting layers.
    lengths : list of int
        Tokens that each held, the new one among them.
    reads : list or None
        If recorded, a layer a list of `sequences * kv_heads` lists of indices, or None where everything was read.
    units : list of tuple or None
        With units left out, a sequence: query heads and neurons computed, summed over the layers that leave some out, and, if recorded, two
        lists by layer of which they were.
    inputs : list of list or None
        With matrices cut by their inputs, a sequence: inputs read for, summed over layers, of each of `activations.PARTS`.
    queries : (layers, sequences, query_heads, head_dim) float32, or None
        If asked for, the queries as attention saw them, after norm and rotary embedding; of heads left out, zeros.
    """

    logits: np.ndarray
    best: list[int]
    budgets: list[int]
    lengths: list[int]
    reads: list[list[list[int] | None]] | None = field(default=None, repr=False)
    units: list[tuple[int, int, list[list[int]], list[list[int]]]] | None = field(default=None, repr=False)
    inputs: list[list[int]] | None = field(default=None, repr=False)
    queries: np.ndarray | None = field(default=None, repr=False)


def why_not_native_model(loaded: LoadedModel, format: str | None = None) -> str | None:
    """Why the native decoder cannot run a model, in a few words; None if it can."""
    if library() is None:
        return "the native library is not built; install sparsight again where a C++ compiler is found"
    if loaded.model.device.type != "cpu":
        return f"it runs on the CPU, and the model is on {loaded.model.device}"
    if loaded.model.dtype not in _KV_FORMATS:
        return f"it runs models loaded in bfloat16 or float32, not in {str(loaded.model.dtype).removeprefix('torch.')}"
    if loaded.anatomy.head_dim > 512:
        return f"its heads have at most 512 channels, those of the model {loaded.anatomy.head_dim}"
    try:
        weights = decoder_weights(loaded)
    except ModelError as error:
        return str(error)
    needed, free = packed_bytes(weights, format or default_format(loaded)), available_bytes(loaded.model.device)
    if needed > free:
        return f"its packed weights take {needed / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free"
    return None


def default_format(loaded: LoadedModel) -> str:
    """What weights are kept in if nothing is said: as the model has them, or the bits of the GGUF file it came from."""
    if loaded.model.dtype == torch.float32:
        return "fp32"
    return "bf16" if loaded.blocks is None else "int4"


class Decoder:
    """A model in the native decoder.

    Parameters
    ----------
    loaded : LoadedModel
        On the CPU, in bfloat16 or float32. Its weights are kept for prefill.
    format : {"fp32", "bf16", "int8", "int4"}, optional
        What the weights are packed in; see `default_format` and `pack_decoder`.
    threads : int, optional
        By default as many as PyTorch uses.
    folder : str or Path, optional
        Where the packed weights are kept.

    Raises
    ------
    ConfigError
        If this model cannot run natively; the message says why.

    Examples
    --------
    >>> decoder = Decoder(loaded)                                   # doctest: +SKIP
    >>> sequence = decoder.new_sequence()                           # doctest: +SKIP
    >>> logits = decoder.prefill(sequence, [1, 2, 3])               # doctest: +SKIP
    >>> decoder.step([sequence], [int(logits.argmax())]).best       # doctest: +SKIP
    """

    def __init__(
        self, loaded: LoadedModel, format: str | None = None, threads: int | None = None, folder: str | Path | None = None
    ) -> None:
        self.format = format or default_format(loaded)
        if self.format not in FORMATS:
            raise ConfigError(f"weights can be kept in {', '.join(FORMATS)}, got {format!r}; choose one of these")
        if (reason := why_not_native_model(loaded, self.format)) is not None:
            raise ConfigError(f"the native decoder cannot run '{loaded.name}': {reason}; use --runtime hf")
        self.loaded = loaded
        self.level = level()
        self.kv_dtype = loaded.model.dtype
        self.graph_prefill = self.format == "fp32" and self.kv_dtype == torch.float32
        self.weights: DecoderWeights = decoder_weights(loaded)
        self._lib = need_library()
        self.use_threads(threads)
        packed = pack_decoder(loaded, self.weights, self.format, folder)
        self.weight_bytes = _bytes_read(packed)
        self.native = self._build(packed)
        self._positions = 0
        self.prepared = False
        self._columns: set[str] = set()
        self._selections: weakref.WeakKeyDictionary[Selector, NativeSelection] = weakref.WeakKeyDictionary()

    def _build(self, packed: dict[str, Packed]):
        anatomy, weights = self.loaded.anatomy, self.weights
        native = self._lib.Model(
            level=self.level,
            layers=anatomy.layers,
            hidden=anatomy.hidden_size,
            query_heads=anatomy.query_heads,
            kv_heads=anatomy.kv_heads,
            head_dim=anatomy.head_dim,
            intermediate=anatomy.intermediate_size,
            vocab=weights.head.weight.shape[0],
            kv_format=_KV_FORMATS[self.kv_dtype],
            activation=_ACTIVATIONS[weights.activation],
            eps=weights.eps,
            scaling=anatomy.scaling,
            embedding_scale=weights.embedding_scale,
        )
        handles = {name: native_matrix(matrix) for name, matrix in packed.items()}
        self._kinds = list(dict.fromkeys(map(anatomy.rotary_kind, range(anatomy.layers))))
        for i, layer in enumerate(weights.layers):
            for part in ("query", "key", "value", "attention", "gate_up", "down"):
                native.set_matrix(i, part, handles[f"{i}.{part}"])
            for part in ("input_norm", "attention_norm", "ffn_norm", "output_norm", "query_norm", "key_norm"):
                if (vector := getattr(layer, part)) is not None:
                    native.set_vector(i, part, vector.contiguous())
            for part in ("query", "key", "value", "attention", "down"):
                if (bias := getattr(layer, part).bias) is not None:
                    native.set_vector(i, f"{part}_bias", bias.detach().float().contiguous())
            if layer.gate.bias is not None:
                native.set_vector(i, "gate_up_bias", _interleaved(layer.gate.bias, layer.up.bias))
            native.set_window(i, layer.window)
            native.set_rotary(i, self._kinds.index(anatomy.rotary_kind(i)))
        native.set_ends(handles["embedding"], handles["head"], weights.final_norm.contiguous())
        native.seal()
        return native

    def prepare_neurons(self) -> None:
        """Make the second copy of the feed-forward weights, in which a neuron's stand together, if it is not there."""
        if not self.prepared:
            records = neuron_records(self)
            for i in range(self.loaded.anatomy.layers):
                self.native.set_records(i, records(i), FORMATS[self.format])
            self.prepared = True

    def has_columns(self, method: ActivationMethod) -> bool:
        """Whether the second copy of the weights that a method reads is there."""
        return self.prepared if method.guided else self._columns >= set(method.parts)

    def prepare_columns(self, parts: Sequence[str]) -> None:
        """Make transposed copies of matrices, whose columns can be read one by one, if they are not there."""
        wanted = [part for part in parts if part not in self._columns]
        native_columns(self, wanted)
        self._columns.update(wanted)

    def use_threads(self, threads: int | None) -> None:
        """Compute with this many threads from now on; None for as many as PyTorch uses.

        Raises
        ------
        ConfigError
        """
        self.threads = torch.get_num_threads() if threads is None else threads
        self._pool = pool(self.threads)

    def new_sequence(self) -> DecoderSequence:
        """An empty sequence."""
        return DecoderSequence(self)

    def prefill(self, sequence: DecoderSequence, ids: Sequence[int], reserve: int = 0, by_graph: bool = False) -> np.ndarray:
        """Append a prompt to a sequence, densely.

        Parameters
        ----------
        sequence : DecoderSequence
        ids : sequence of int
        reserve : int
            Tokens in all that there will be room for without moving memory.
        by_graph : bool
            By the Hugging Face graph, for hooks to see.

        Returns
        -------
        (vocab,) float32
            Logits of what follows the last token.

        Raises
        ------
        TextError
            For no tokens, or more than the model's context holds.
        ModelError
            For a token that is not in the vocabulary, or logits that are NaN.
        """
        self._check_ids(ids)
        total = sequence.length + len(ids)
        if not len(ids):
            raise TextError("there is no token to process; give at least one")
        self._check_context(total)
        sequence.reserve(max(total, reserve))
        logits = self._prefill_by_graph(sequence, ids) if by_graph or self.graph_prefill else self._prefill(sequence, ids)
        if not np.isfinite(logits).all():
            raise _not_finite(self.loaded, total)
        return logits

    def _prefill(self, sequence: DecoderSequence, ids: Sequence[int]) -> np.ndarray:
        before = sequence.length
        self._have_positions(before + len(ids))
        logits = np.empty((1, self.weights.head.weight.shape[0]), dtype=np.float32)
        try:
            for start in range(0, len(ids), _PREFILL_ROWS):
                piece = list(ids[start : start + _PREFILL_ROWS])
                sequence.make_room(len(piece))
                self._call([sequence] * len(piece), piece, logits)
        except BaseException:  # an interrupt too: what was written behind it is not there
            sequence.native.length = before
            raise
        return logits[0]

    def _prefill_by_graph(self, sequence: DecoderSequence, ids: Sequence[int]) -> np.ndarray:
        before = sequence.length
        cache: Cache = sequence.cache()
        try:
            with torch.no_grad():
                out = self.loaded.model(torch.tensor([list(ids)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        except BaseException:
            sequence.native.length = before
            raise
        sequence.absorb(cache, before + len(ids))
        return out.logits[0, -1].float().numpy()

    def step(
        self,
        sequences: Sequence[DecoderSequence],
        tokens: Sequence[int],
        plan: Plan | None = None,
        record: bool = False,
        units: Sequence[NativeUnits | None] = (),
        activations: NativeActivations | None = None,
        queries: bool = False,
    ) -> Step:
        """Append one token to each sequence.

        A sequence gives the same bits alone and among others, and with any number of threads.

        Parameters
        ----------
        sequences : sequence of DecoderSequence, each once
        tokens : sequence of int
            One each.
        plan : Plan, optional
            Dense without one.
        record : bool
            Keep what was read and computed.
        units : sequence of NativeUnits or None, optional
            What each sequence leaves out; None for nothing.
        activations : NativeActivations, optional
            Cuts of all sequences, each by its own inputs; not together with `units`.
        queries : bool
            Keep the queries.

        Raises
        ------
        TextError
            If a sequence has reached the model's context.
        ModelError
            For a token that is not in the vocabulary, or logits that are not finite.
        ConfigError
            If the plan cannot run natively.
        """
        self._check_ids(tokens)
        lengths = [sequence.length + 1 for sequence in sequences]
        self._check_context(max(lengths))
        self._have_positions(max(lengths))
        for sequence in sequences:
            sequence.make_room(1)
        selection, budgets = None, lengths
        if plan is not None:
            selection, budgets = self.selection(plan), plan.tokens(lengths)
            for sequence, budget, length in zip(sequences, budgets, lengths, strict=True):
                if budget < length:
                    sequence.select_by(selection, plan.rule.pages)
        reads: list | None = [] if record else None
        logits = np.empty((len(sequences), self.weights.head.weight.shape[0]), dtype=np.float32)
        rule = plan.rule if plan is not None else _DENSE
        if activations is not None and activations.units is not None:
            units = [activations.units] * len(sequences)
        computed: list | None = [] if any(one is not None for one in units) else None
        cuts = None if activations is None else activations.native
        inputs: list | None = None if cuts is None else []
        anatomy = self.loaded.anatomy
        kept = np.empty((anatomy.layers, len(sequences), anatomy.query_heads, anatomy.head_dim), dtype=np.float32) if queries else None
        best = self._call(sequences, tokens, logits, selection, budgets, rule, reads, units, computed, cuts, inputs, kept)
        if min(best) < 0:
            raise _not_finite(self.loaded, max(lengths))
        return Step(logits, best, list(budgets), lengths, reads, computed, inputs, kept)

    def _call(
        self, sequences, tokens, logits, selection=None, budgets=(), rule=_DENSE, reads=None, units=(), computed=None,
        cuts=None, inputs=None, kept=None,
    ) -> list[int]:
        return self._lib.step(
            self.native,
            self._pool,
            [sequence.native for sequence in sequences],
            list(tokens),
            logits.view(np.uint8),
            None if selection is None else selection.native,
            list(budgets),
            rule.sinks,
            rule.window,
            rule.interval,
            rule.pages,
            rule.page_share,
            reads,
            [None if one is None else one.native for one in units],
            computed,
            cuts,
            inputs,
            None if kept is None else kept.view(np.uint8),
        )

    def selection(self, plan: Plan) -> NativeSelection:
        """The plan's selector as the decoder has it.

        Raises
        ------
        ArtifactError
            If the selector was made for another model.
        ConfigError
            If the plan cannot run natively.
        """
        found = self._selections.get(plan.selector)
        # Asked at every step: what does not change with the rule is looked at once.
        if (reason := why_not_native(plan) if found is None else why_not_native_rule(plan.rule)) is not None:
            raise ConfigError(f"the native decoder cannot run this plan: {reason}; use --runtime hf")
        if found is None:
            check_fits(self.loaded, plan)
            found = self._selections[plan.selector] = NativeSelection(self, plan.selector)
        return found

    def bytes_per_token(
        self,
        length: int,
        plan: Plan | None = None,
        units: NativeUnits | None = None,
        skipped: tuple[float, float] = (0.0, 0.0),
        activations: NativeActivations | None = None,
        shares: dict[str, float] | None = None,
    ) -> float:
        """Bytes that one step reads with `length` tokens in the cache: weights as packed, keys and values, importance keys, predictor.

        W_Q, which foresight looks ahead with, is read once for both uses, and whole where heads are left out. Layers with a window read their
        window. With `units`, `skipped` are the shares of heads and neurons that are left out of the layers that leave any out; with
        `activations`, `shares` are those of each matrix that is not read.
        """
        anatomy = self.loaded.anatomy
        row = 2 * anatomy.kv_heads * anatomy.head_dim * self.kv_dtype.itemsize
        total = float(self.weight_bytes)
        budget, selecting, whole_queries = length, (), ()
        if plan is not None and (budget := plan.tokens([length])[0]) < length:
            selection = self.selection(plan)
            selecting = selection.layers
            if units is not None:
                whole_queries = [i for i, found in plan.selector.pieces().layers.items() if found.query == "foreseen"]
            blocks = -(-length // selection.unit)
            index = len(selection.indexed_layers) * anatomy.kv_heads * blocks * selection.bytes_a_unit
            if plan.rule.pages and selection.rank:
                index *= 2 / plan.rule.pages + plan.rule.page_share
            total += selection.weight_bytes + index / plan.rule.interval
        for i, layer in enumerate(self.weights.layers):
            read = min(length, layer.window) if layer.window else length
            total += row * (budget if i in selecting else read)
        if activations is not None:
            total -= activations.bytes_skipped(shares or {})
        if units is not None:
            total += units.predictor_bytes - units.bytes_skipped(*skipped, whole_queries)
        return total

    def _have_positions(self, positions: int) -> None:
        if positions <= self._positions:
            return
        anatomy = self.loaded.anatomy
        rows = min(max(_FEWEST_POSITIONS, 2 * positions), max(anatomy.context_length, positions))
        for kind, name in enumerate(self._kinds):
            layer = next(i for i in range(anatomy.layers) if anatomy.rotary_kind(i) == name)
            if (table := anatomy.rotary_table(layer, rows)) is not None:
                self.native.set_table(kind, *table)
        self._positions = rows

    def _check_ids(self, ids: Sequence[int]) -> None:
        vocab = self.loaded.anatomy.vocab_size
        if (wrong := next((i for i in ids if not 0 <= i < vocab), None)) is not None:
            raise ModelError(f"token {wrong} is not in the vocabulary of {self.loaded.name}, which has {vocab}; check the tokenizer")

    def _check_context(self, tokens: int) -> None:
        if tokens > self.loaded.anatomy.context_length:
            context = self.loaded.anatomy.context_length
            raise TextError(f"{tokens} tokens are more than the context of {self.loaded.name}, {context}; shorten the text")


def _bytes_read(packed: dict[str, Packed]) -> int:
    """Bytes of all matrices but an embedding of its own, of which only a row is read."""
    return sum(m.data.numel() for name, m in packed.items() if name != "embedding")


def _interleaved(gate, up):
    """Biases in the order of the panels of `gate_up`."""
    parts = [torch.nn.functional.pad(bias.detach().float(), (0, -len(bias) % 16)).view(-1, 16) for bias in (gate, up)]
    return torch.stack(parts, dim=1).flatten().contiguous()


def _not_finite(loaded: LoadedModel, token: int) -> SparsightError:
    return ModelError(f"{loaded.name} gave NaN logits at token {token}; its weights are damaged or the dtype overflows")
