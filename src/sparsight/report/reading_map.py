"""A picture of which tokens were read: by each generated token, and by each layer."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import write_atomically
from ..errors import ConfigError

LABELLED_PLACES = 9
_MOST_STEP_LABELS = 40
_LABEL_LENGTH = 22
_STRETCH = 25


class ReadingRecorder:
    """An observer for `sparsight.apply` that counts which tokens each step and layer reads.

    Steps are told apart by the length of the cache, so one recorder serves one generation.
    """

    def __init__(self) -> None:
        self._by_step: dict[int, np.ndarray] = {}
        self._heads_of_step: dict[int, int] = {}
        self._by_layer: dict[int, dict[int, np.ndarray]] = {}

    def __call__(self, length: int, layer: int, indices: Any) -> None:
        """Count one selection, `indices` `(batch, kv_heads, 1, budget)` with `length` tokens in the cache."""
        chosen = np.asarray(indices)
        heads = chosen.shape[0] * chosen.shape[1]
        counts = np.bincount(chosen.reshape(-1), minlength=length)
        self._by_step[length] = self._by_step.get(length, 0) + counts
        self._heads_of_step[length] = self._heads_of_step.get(length, 0) + heads
        self._by_layer.setdefault(layer, {})[length] = counts / heads

    @property
    def lengths(self) -> list[int]:
        """Cache length of each step, the token itself included."""
        return sorted(self._by_step)

    @property
    def layers(self) -> list[int]:
        """Layers that selected."""
        return sorted(self._by_layer)

    def by_step(self) -> np.ndarray:
        """Share of (layer, KV head) pairs that read a token, `(steps, tokens)`; NaN where it did not yet exist."""
        shares = np.full((len(self.lengths), max(self.lengths, default=0)), np.nan)
        for row, length in enumerate(self.lengths):
            shares[row, :length] = self._by_step[length] / self._heads_of_step[length]
        return shares

    def by_layer(self) -> np.ndarray:
        """Share of KV heads that read a token, mean over the steps in which it existed, `(layers, tokens)`."""
        tokens = max(self.lengths, default=0)
        total, steps = np.zeros((len(self.layers), tokens)), np.zeros((len(self.layers), tokens))
        for row, layer in enumerate(self.layers):
            for length, shares in self._by_layer[layer].items():
                total[row, :length] += shares
                steps[row, :length] += 1
        return np.divide(total, steps, out=np.full_like(total, np.nan), where=steps > 0)


def require_matplotlib() -> None:
    """Raise `ConfigError` unless matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "pictures need matplotlib, which is not installed; run: pip install 'sparsight[report]'"
        ) from None


def draw_reading_map(
    recorder: ReadingRecorder, path: str | Path, title: str, words: Sequence[str] = (), window: int = 32
) -> Path:
    """Write a PNG of what was read: above, a line for each generated token; below, a line for each layer.

    Parameters
    ----------
    recorder : ReadingRecorder
    path : str or Path
        Written whole or not at all; missing folders are made.
    title : str
    words : sequence of str, optional
        Text of every token of prompt and answer. The most read places and the lines are labelled with it.
    window : int
        Recent tokens that are always read; they are not among the places labelled.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If matplotlib is missing, or nothing was recorded because everything was read.
    StorageError
        If the picture cannot be written.
    """
    require_matplotlib()
    if not recorder.lengths:
        raise ConfigError(
            "nothing was skipped, so there is no picture of what was read; lower --budget or use a longer text"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, layers = recorder.by_step(), recorder.by_layer()
    figure = Figure(figsize=(13, 9), dpi=130, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(max(len(steps), 8), max(len(layers), 8)))
    figure.suptitle(_plain(title), parse_math=False, fontsize=13)
    image = _image(upper, steps)
    _image(lower, layers)
    upper.set_ylabel("generated token")
    lower.set_ylabel("layer")
    lower.set_xlabel("position of the token read")
    shown = list(range(0, len(steps), max(1, -(-len(steps) // _MOST_STEP_LABELS))))
    upper.set_yticks(shown, [_step_label(words, recorder.lengths[i], i) for i in shown], fontsize=8, parse_math=False)
    lower.set_yticks(range(0, len(layers), 4), [str(layer) for layer in recorder.layers[::4]])
    if words:
        _label_places(upper, steps, words, window)
    figure.colorbar(
        image,
        ax=[upper, lower],
        label="share of KV heads that read the token (above: of all layers that choose)",
        pad=0.01,
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # words of any script, in a font that has not all
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "sparsight"})
    write_atomically(path, buffer.getvalue())
    return Path(path)


def _image(axes: Any, shares: np.ndarray) -> Any:
    # The root lifts the many places that a few heads read; the colour bar shows the true shares.
    return axes.imshow(
        shares, aspect="auto", cmap=_colours(), norm=_root(), origin="upper", interpolation="antialiased"
    )


def _colours() -> Any:
    from matplotlib import colormaps

    return colormaps["cividis"].with_extremes(bad="white")


def _root() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)


def _step_label(words: Sequence[str], length: int, step: int) -> str:
    """The token that was made by reading `length` tokens."""
    if not words:
        return str(step + 1)
    return _plain(words[length]) if length < len(words) else "(end)"


def _label_places(axes: Any, steps: np.ndarray, words: Sequence[str], window: int) -> None:
    """Mark the places of the prompt that were read most, with a few of their words."""
    prompt = min(steps.shape[1] - len(steps), len(words))
    places = popular_places(np.nanmean(steps, axis=0)[: max(prompt - window, 0)], LABELLED_PLACES, steps.shape[1] // 16)
    above = axes.secondary_xaxis("top")
    above.set_xticks(
        places,
        [_words_at(words, p) for p in places],
        rotation=20,
        ha="left",
        fontsize=8,
        parse_math=False,
    )


def _words_at(words: Sequence[str], place: int) -> str:
    """Text around a token, from the beginning of the word that it is in, cut between words where that is possible."""
    start = place
    while start > max(place - 6, 0) and not words[start][:1].isspace():
        start -= 1
    label = _plain(" ".join("".join(words[start : start + 12]).split()))
    if len(label) <= _LABEL_LENGTH:
        return label
    whole, _, rest = label[: _LABEL_LENGTH + 1].rpartition(" ")
    return (whole or rest[:_LABEL_LENGTH]) + " …"


def popular_places(shares: np.ndarray, count: int, apart: int, skip: int = 8) -> list[int]:
    """Middles of the stretches of text that are read most, at least `apart` from each other.

    Parameters
    ----------
    shares : (tokens,) float
    count, apart : int
    skip : int
        First tokens left out: sinks are always read.

    Returns
    -------
    list of int
        Ascending, at most `count`.
    """
    if len(shares) <= skip:
        return []
    width = min(_STRETCH, len(shares) - skip)
    smooth = np.convolve(shares[skip:], np.ones(width) / width, mode="same")
    chosen: list[int] = []
    for place in (np.argsort(-smooth, kind="stable") + skip).tolist():
        if all(abs(place - other) >= apart for other in chosen):
            chosen.append(place)
        if len(chosen) == count:
            break
    return sorted(chosen)


def _plain(text: str) -> str:
    """Text on one line, with what no font can draw replaced."""
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in text).strip() or "␣"
