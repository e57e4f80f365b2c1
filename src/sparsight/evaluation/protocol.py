"""How text is scored: chunks, which of their rows, and by which rule each method chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import BudgetError, ConfigError, TextError
from ..models import LoadedModel
from ..runtime import KINDS, Budget, Rule
from ..runtime.rule import NO_INTERVAL
from ..tokens import Geometry, Selector, create
from ..training.adaptive import calibrate_adaptive
from ..training.text import Document, token_stream
from ..training.windows import chunks
from .scoring import Chunk


@dataclass(frozen=True)
class Protocol:
    """How text is scored.

    Attributes
    ----------
    length : int
        Tokens a chunk, the model's start tokens included.
    count : int
        Chunks, evenly spread.
    scored : int
        Last positions of a chunk that are scored, at most a quarter of it; all of them where the prefill is simulated.
    rule : Rule
        How importance becomes a choice.
    simulate_prefill : bool
        Mask every row as if it were a decode step, each with its budget of what it sees (arXiv:2503.07518's way: nothing is prefilled
        densely). Only so do short texts, which are mostly prompt, say anything about selection.
    adaptive : {"thresholds", "top-p", "heads"}, optional
        Budgets that adapt to rows or heads, calibrated on the text that comes with the package, instead of the same count for all.
    """

    length: int = 1024
    count: int = 64
    scored: int = 256
    rule: Rule = Rule()
    simulate_prefill: bool = False
    adaptive: str | None = None

    def __post_init__(self) -> None:
        if self.adaptive is not None and self.adaptive not in KINDS:
            raise ConfigError(f"adaptive budgets are one of {', '.join(KINDS)}, got {self.adaptive!r}")
        if self.adaptive and self.rule.interval > 1:
            raise ConfigError(NO_INTERVAL)

    @property
    def rows(self) -> int:
        """Rows scored in a chunk."""
        return self.length if self.simulate_prefill else min(self.scored, self.length // 4)

    @property
    def context(self) -> int:
        """Tokens that bytes are stated at: a chunk's length, or what a row sees in the middle."""
        return (self.length + 1) // 2 if self.simulate_prefill else self.length

    def budget(self, budget: Budget) -> int | Tensor | None:
        """Tokens that a chooser reads, for all scored rows or `(rows,)` each; None where nothing is left out.

        Raises
        ------
        BudgetError
        """
        if budget.at(self.length) >= self.length:
            return None
        try:
            tokens = self.rule.check_room(budget.at(self.length))
        except BudgetError as error:
            raise BudgetError(f"at length {self.length}, budget {budget}: {error}") from None
        if not self.simulate_prefill:
            return tokens
        return torch.tensor([min(max(budget.at(n), self.rule.least), n) for n in range(1, self.length + 1)])

    def stated(self) -> dict[str, Any]:
        """What a result's configuration says of it; what is at its default is left out."""
        told = {"sinks": self.rule.sinks, "window": self.rule.window}
        for key in ("neighbours", "interval", "pages", "page_share", "per_query_head"):
            if (value := getattr(self.rule, key)) != getattr(Rule(), key):
                told[key] = value
        return {**told, **{key: getattr(self, key) for key in ("simulate_prefill", "adaptive") if getattr(self, key)}}


PAPER_RULE = Rule(sinks=4, window=0, per_query_head=True)
"""TokenButler's (arXiv:2503.07518v1): a choice a query head, four sinks, no window. The sinks count inside the budget here."""


PLAIN = ("oracle", "random")
"""Methods that choose by importance alone whatever the rule says of neighbours and intervals: ceiling and floor."""


class Rules:
    """The rule of each method and budget: the protocol's, or its plain form for those of `PLAIN`."""

    def __init__(
        self,
        loaded: LoadedModel,
        selectors: Mapping[str, Selector],
        budgets: Mapping[str, Budget],
        protocol: Protocol,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self._plain = replace(protocol.rule, neighbours=0, interval=1, pages=0)
        self._rule = protocol.rule
        self._plainly = {*PLAIN, *(name for name, selector in selectors.items() if selector.name in PLAIN)}
        self._cut: dict[tuple[str, str], Rule] = {}
        if protocol.adaptive:
            oracle = {"oracle": create("oracle", Geometry.of(loaded.anatomy))}
            for name, selector in {**oracle, **selectors}.items():
                for label, budget in budgets.items():
                    if selector.scores_logits and budget.at(protocol.length) < protocol.length:
                        rule = self._plain if name in self._plainly else self._rule
                        adaptive = calibrate_adaptive(
                            loaded, selector, protocol.length, budget, rule, kind=protocol.adaptive,
                            every_row=protocol.simulate_prefill, progress=progress,
                        )
                        self._cut[name, label] = replace(rule, adaptive=adaptive)

    def __call__(self, name: str, label: str) -> Rule:
        plain = self._plain if name in self._plainly else self._rule
        return self._cut.get((name, label), plain)


def cut(loaded: LoadedModel, documents: Sequence[Document], protocol: Protocol) -> list[Chunk]:
    """Evenly spread chunks of the documents' token stream; a chunk belongs to the document of its first scored token.

    Each begins with the tokens that the model's tokenizer puts in front of every text, if there are any.

    Raises
    ------
    TextError
        If the text is too short, or the length is over the model's context.
    """
    length, start = protocol.length, torch.tensor(loaded.start_tokens, dtype=torch.long)
    if not 8 <= length <= loaded.anatomy.context_length:
        raise TextError(
            f"length {length} is outside 8..{loaded.anatomy.context_length}, the context of {loaded.name}; change --length"
        )
    ids, owner = token_stream(documents, loaded.tokenizer)
    stream, own = torch.from_numpy(ids), length - len(start)
    return [
        Chunk(
            torch.cat([start, stream[s : s + own + 1]]),
            protocol.rows,
            documents[owner[s + max(own - protocol.rows, 0)]].name,
        )
        for s in chunks(ids, own, protocol.count).tolist()
    ]
