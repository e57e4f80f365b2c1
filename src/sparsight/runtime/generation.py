"""What a generation is asked for and what it gives, whatever computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers.generation.streamers import TextStreamer

from ..errors import ConfigError
from ..models import LoadedModel


@dataclass
class Generation:
    """What came out, and what it took.

    Attributes
    ----------
    text : str
        New text only.
    token_ids : list of int
        New tokens only, the end token not among them.
    prompt_tokens : int
        Padding not counted.
    finish_reason : {"stop", "length"}
    seconds : float
        Wall time of prefill and decoding, of the whole batch.
    share_read : float
        Tokens read over tokens held, in selecting layers and steps, over the whole batch; 1.0 when dense.
    kv_bytes, index_bytes : int
        Bytes of KV cache and of importance keys at the end: the row's equal share of the batch's, padding and beams included.
    reused_tokens : int
        Prompt tokens that were in the cache already (`Conversation`).
    runtime : {"hf", "native"}
        What computed it.
    weights : str or None
        What the native decoder kept the weights in.
    note : str or None
        Why it was not the native decoder, if nothing was said of the runtime.
    heads_skipped, neurons_skipped : float
        Shares of query heads and neurons that decode steps left out, in the layers that leave any out.
    sparsity : float
        Share of the elements of all layers' matrices that decode steps did not read because of their inputs, over the whole batch.
    pack_seconds : float
        Spent, within `seconds`, on making the weights ready for a choice of heads and neurons.
    """

    text: str
    token_ids: list[int] = field(repr=False)
    prompt_tokens: int = 0
    finish_reason: str = "length"
    seconds: float = 0.0
    share_read: float = 1.0
    kv_bytes: int = 0
    index_bytes: int = 0
    reused_tokens: int = 0
    runtime: str = "hf"
    weights: str | None = None
    note: str | None = None
    heads_skipped: float = 0.0
    neurons_skipped: float = 0.0
    sparsity: float = 0.0
    pack_seconds: float = 0.0


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; checked when made. The attributes are parameters of `generate`.

    Raises
    ------
    ConfigError
        For a value out of range, or beams together with sampling.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max-new-tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature != 0 and not 1e-3 <= self.temperature <= 1e3:
            raise ConfigError(f"temperature must be 0 (greedy) or a number from 0.001 to 1000, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p must be in (0, 1], got {self.top_p}")
        if self.beams < 1:
            raise ConfigError(f"beams must be at least 1, got {self.beams}")
        if self.beams > 1 and self.temperature != 0:
            raise ConfigError(
                f"{self.beams} beams and sampling at temperature {self.temperature} were asked for; "
                "give either beams or a temperature"
            )

    def arguments(self) -> dict[str, Any]:
        """Arguments of the `generate` of transformers."""
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.beams}
        if self.temperature == 0:
            return {**settings, "do_sample": False}
        sampling = {"temperature": float(self.temperature), "top_p": float(self.top_p), "top_k": 0}
        return {**settings, "do_sample": True, **sampling}


def finished_row(loaded: LoadedModel, prompt_tokens: int, new: list[int], stops: set[int]) -> Generation:
    """The result of one row; what follows its first end token is padding."""
    end = next((i for i, token in enumerate(new) if token in stops), None)
    return Generation(
        text=loaded.tokenizer.decode(new if end is None else new[: end + 1], skip_special_tokens=True),
        token_ids=new[:end],
        prompt_tokens=prompt_tokens,
        finish_reason="length" if end is None else "stop",
    )


class Streamer(TextStreamer):
    """Hands finished pieces of new text to a callable."""

    def __init__(self, tokenizer: Any, emit: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._emit(text)
