"""The ways to choose tokens that requests may name."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BudgetError, ConfigError, SparsightError
from ..models import LoadedModel
from ..runtime import Budget, Plan, Rule
from ..runtime.decoder import why_not_native
from ..tokens import Selector, methods
from ..tokens.pretrained import find_shipped, resolve
from .errors import ApiError

DENSE = "dense"
_RULE = Rule()


class Methods:
    """Selectors by name: those that need no predictor, those whose predictor ships for the model, and those that the server was given.

    A request names a method and nothing else; no request makes the server read a file of its choice.

    Parameters
    ----------
    loaded : LoadedModel
    given : sequence of str
        `NAME`, `NAME=FOLDER` or `NAME:key=value`; the first is used where a request names none. Without any that is dense.
    budget : Budget
        Where a request gives none.
    rule : Rule

    Attributes
    ----------
    names : list of str
    default : str

    Raises
    ------
    SparsightError
        If a method given cannot be used, or does not run natively.
    """

    def __init__(self, loaded: LoadedModel, given: Sequence[str], budget: Budget, rule: Rule = _RULE) -> None:
        self._loaded, self.budget, self.rule = loaded, budget, rule
        self._selectors: dict[str, Selector | None] = {DENSE: None}
        self.default = DENSE
        for number, spec in enumerate(given):
            selector = resolve(spec, loaded)
            name = selector.name
            if number == 0:
                self.default = name
            if not selector.selects:
                self._selectors.setdefault(name, None)
            elif (reason := why_not_native(Plan(selector, budget, rule))) is not None:
                raise ConfigError(f"the server decodes natively, which {name!r} cannot: {reason}; leave it out")
            else:
                self._selectors[name] = selector
        self._selectors |= self._others()
        self.names = sorted(self._selectors)

    def _others(self) -> dict[str, Selector]:
        """What comes with the package and runs natively on this model."""
        found = {}
        for name, cls in methods().items():
            if name in self._selectors or not cls.selects or cls.permanent or cls.wraps:
                continue
            if cls.learned and find_shipped(name, self._loaded.fingerprint) is None:
                continue
            try:
                selector = resolve(name, self._loaded)
                if why_not_native(Plan(selector, self.budget, self.rule)) is None:
                    found[name] = selector
            except SparsightError:  # it does not fit this model: it is not offered
                continue
        return found

    def plan(self, name: str | None, budget: str | int | float | None) -> Plan | None:
        """The plan of a request; None for dense.

        Raises
        ------
        ApiError
            For a method that is not served, or a budget that is none or too small.
        """
        chosen = self.default if name is None else name
        if chosen not in self._selectors:
            known = ", ".join(self.names)
            raise ApiError(400, f"the method {chosen[:80]!r} is not served here; choose one of {known}", "select", "unknown_method")
        selector = self._selectors[chosen]
        if selector is None:
            if budget is not None:
                raise ApiError(
                    400, f"a budget needs a method that chooses the tokens; add select, one of {', '.join(self.names)}", "budget"
                )
            return None
        try:
            return Plan(selector, self.budget if budget is None else Budget.parse(budget), self.rule)
        except (BudgetError, ConfigError) as error:
            raise ApiError(400, str(error), "budget") from error
