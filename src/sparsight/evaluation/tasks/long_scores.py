"""Score tasks dense and under each method, item by item, in a result file that can be repeated and resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...errors import BudgetError, ConfigError
from ...models import LoadedModel
from ...runtime import Budget, Plan, Rule
from ...runtime.apply import check_fits
from ...runtime.plan import check_room
from ...tokens import Selector
from ..evaluate import versions
from ..protocol import PLAIN, Protocol
from ..results import ResultFile, checked_shard, configuration_hash
from ..scoring import Scorer
from .answering import EXTRA_TOKENS, forced, share_written, write
from .coreference import DENSE, dense_plan
from .prompted import CutPrompt, Prompted, cut_prompt
from .task_rows import task_rows

FORMAT = 1

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Method:
    """A way of choosing tokens with its budget.

    Attributes
    ----------
    name : str
    selector : Selector
    budget : Budget
        A fraction is of the item's `length`, or of its prompt where it has none.
    rule : Rule
        `oracle` and `random` choose by importance alone.
    """

    name: str
    selector: Selector
    budget: Budget
    rule: Rule

    @property
    def key(self) -> str:
        return f"{self.name}|{self.budget}"

    def tokens(self, item: Prompted, cut: CutPrompt) -> int | None:
        """Tokens that a KV head reads at every step of an item; None where that is everything.

        Raises
        ------
        BudgetError
            If it is fewer than what is always read and one chosen token.
        """
        length = item.length or cut.prompt
        tokens = self.budget.at(length)
        if tokens >= length:
            return None
        try:
            return check_room(self.selector, self.rule, tokens)
        except BudgetError as error:
            raise BudgetError(f"task {item.task}, length {length}, {self.name!r} with budget {self.budget}: {error}") from None


def score_tasks(
    loaded: LoadedModel,
    items: Sequence[Prompted],
    methods: Sequence[tuple[str, Selector, Budget | str]],
    rule: Rule | None = None,
    *,
    generate: bool = False,
    result: str | Path | None = None,
    progress: Progress | None = None,
    shard: tuple[int, int] | None = None,
) -> dict[str, Any] | None:
    """Force the answers of all items on the dense model and on every method, and let them write, if asked for.

    Parameters
    ----------
    loaded : LoadedModel
    items : sequence of Prompted
    methods : sequence of (name, selector, budget)
        Selectors and evictors. The dense model is scored in any case, first, and left out of these.
    rule : Rule, optional
        Of all methods but `oracle` and `random`, which keep only its sinks and window.
    generate : bool
        Write the answers by decoding as well.
    result : path, optional
        Result file: reused if complete for the same configuration, resumed if partial.
    progress : callable, optional
        progress(items done, items, note)
    shard : (int, int), optional
        As for `evaluate`.

    Returns
    -------
    dict, or None for a shard while items of others are missing
        "rows" (`task_rows.task_rows`), "outcomes" (what each method did with each item, for paired differences), "versions", "configuration"
        and "configuration_hash".

    Raises
    ------
    BudgetError
        If a budget is below sinks, window and one chosen token at a length.
    ConfigError
        If there are no items, a method comes twice, or the rule has adaptive budgets.
    TextError, ModelError, ArtifactError, StorageError
    """
    rule = rule or Rule()
    chosen = _methods(loaded, methods, rule, generate)
    if not items:
        raise ConfigError("there are no items to score; make at least 1")
    cuts = [cut_prompt(loaded, item, EXTRA_TOKENS if generate else 0) for item in items]
    tokens = [{m.key: m.tokens(item, cut) for m in chosen} for item, cut in zip(items, cuts, strict=True)]
    number, shards = checked_shard(shard, result)
    file = ResultFile(result, _configuration(loaded, items, chosen, rule, generate), number if shards > 1 else None)
    if (finished := file.finished()) is not None:
        return finished
    done = file.chunks_done()
    for i, (item, cut) in enumerate(zip(items, cuts, strict=True)):
        if progress is not None:
            length = "" if item.length is None else f" of {item.length} tokens"
            progress(i, len(items), f"{item.task}{length}")
        if i not in done and i % shards == number:
            done[i] = _measure(loaded, item, cut, chosen, tokens[i], rule, generate)
            file.add(i, done[i])
    if shards > 1 and len(done := file.chunks_done()) < len(items):
        return None
    if progress is not None:
        progress(len(items), len(items), "")
    outcomes = [done[i] for i in range(len(items))]
    return file.finish({"rows": task_rows(loaded, items, chosen, outcomes), "outcomes": outcomes, "versions": versions()})


def _methods(loaded: LoadedModel, methods, rule: Rule, generate: bool) -> list[Method]:
    if rule.adaptive is not None:
        raise ConfigError("adaptive budgets are calibrated on text of one length, so tasks are scored without; leave them out of the rule")
    chosen = []
    for name, selector, budget in methods:
        if not selector.selects:
            continue
        plain = replace(rule, neighbours=0, interval=1, pages=0) if selector.name in PLAIN or selector.permanent else rule
        chosen.append(Method(name, selector, Budget.parse(budget), plain))
        check_fits(loaded, Plan(selector, Budget(Fraction(1))))
        if generate:
            Plan(selector, Budget(Fraction(1)), plain)
    keys = [method.key for method in chosen]
    if twice := next((m for m in chosen if keys.count(m.key) > 1), None):
        raise ConfigError(f"method {twice.name!r} with budget {twice.budget} is given twice; give each once")
    if reserved := next((m for m in chosen if m.name == DENSE), None):
        raise ConfigError(f"{DENSE!r} is the model that reads everything; call the method {reserved.selector.name!r} something else")
    return chosen


def _configuration(loaded, items: Sequence[Prompted], methods: Sequence[Method], rule: Rule, generate: bool) -> dict[str, Any]:
    def weights(selector: Selector) -> str:
        artifact = getattr(selector, "artifact", None)
        return "" if artifact is None else f"{artifact.sha256} "

    stated = Protocol(rule=rule).stated()
    return {
        "format": FORMAT,
        "model": loaded.name,
        "model_hash": loaded.fingerprint,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "tasks": list(dict.fromkeys(item.task for item in items)),
        "lengths": list(dict.fromkeys(item.length for item in items)),
        "seeds": list(dict.fromkeys(item.seed for item in items)),
        "items": len(items),
        "items_hash": configuration_hash({"items": [asdict(item) for item in items]}),
        "methods": {m.key: f"{weights(m.selector)}{m.selector.settings}" for m in methods},
        "generate": generate,
        **stated,
    }


def _measure(loaded, item, cut, methods: Sequence[Method], tokens: dict[str, int | None], rule: Rule, generate: bool) -> dict[str, Any]:
    """One item: what dense and each method did with it, by "dense" or the method's key."""
    history = sorted({p for m in methods for p in m.selector.history})
    evictors = [m.selector for m in methods if m.selector.permanent]
    scorer = Scorer(loaded, cut.chunk, rule, history, evictors)
    text = loaded.tokenizer.decode

    def did(method: Method | None) -> dict[str, Any]:
        budget = None if method is None else tokens[method.key]
        if budget is None:
            scored, plan = scorer.scored(), dense_plan(loaded)
        else:
            scored = scorer.scored(method.selector, budget, rule=method.rule)
            plan = Plan(method.selector, Budget(budget), method.rule) if generate else None
        found = asdict(forced(cut, scored)) | {"budget": budget, "share_read": scored.read / scored.held if scored.held else 1.0}
        if generate:
            found["text"] = text(write(loaded, cut, plan), skip_special_tokens=True)
            found["written"] = share_written(item, found["text"])
        return found

    dense = did(None)
    by_method = {m.key: dense if tokens[m.key] is None else did(m) for m in methods}
    sizes = {"prompt_tokens": cut.prompt, "answer_tokens": len(cut.answer)}
    return {"task": item.task, "length": item.length, "depth": item.depth, **sizes, "did": {DENSE: dense, **by_method}}
