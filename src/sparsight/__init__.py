"""Sparsight: small predictors that foresee which cached tokens a language model's attention needs, and skip the rest.

The names below are loaded when they are first used, so that `import sparsight` does not wait for PyTorch.

Examples
--------
>>> import sparsight
>>> loaded = sparsight.load("smollm2-135m")                                      # doctest: +SKIP
>>> selector = sparsight.from_pretrained("my-predictor", loaded)                 # doctest: +SKIP
>>> plan = sparsight.Plan(selector, sparsight.Budget.parse("1/8"))               # doctest: +SKIP
>>> sparsight.generate(loaded, "Once upon a time", plan).text                    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import SparsightError

if TYPE_CHECKING:
    # From where they are defined: three of them are called like their modules, and a type checker would take those.
    from .evaluation.evaluate import evaluate
    from .evaluation.protocol import Protocol
    from .models.load import load
    from .runtime.apply import apply
    from .runtime.conversation import Conversation
    from .runtime.generate import generate
    from .runtime.plan import Budget, Plan
    from .runtime.rule import Rule
    from .tokens.pretrained import from_pretrained, resolve, save_pretrained
    from .training.adaptive import calibrate_adaptive
    from .training.predictor import train_predictor

    __version__: str

_HOME = {
    "Budget": ".runtime",
    "Conversation": ".runtime",
    "Plan": ".runtime",
    "Protocol": ".evaluation",
    "Rule": ".runtime",
    "apply": ".runtime",
    "calibrate_adaptive": ".training",
    "evaluate": ".evaluation",
    "from_pretrained": ".tokens.pretrained",
    "generate": ".runtime",
    "load": ".models",
    "resolve": ".tokens.pretrained",
    "save_pretrained": ".tokens.pretrained",
    "train_predictor": ".training",
}

__all__ = [
    "Budget",
    "Conversation",
    "Plan",
    "Protocol",
    "Rule",
    "SparsightError",
    "__version__",
    "apply",
    "calibrate_adaptive",
    "evaluate",
    "from_pretrained",
    "generate",
    "load",
    "resolve",
    "save_pretrained",
    "train_predictor",
]


if not TYPE_CHECKING:  # a type checker would take any name as one that is loaded late

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            value = _version()
        elif name in _HOME:
            value = getattr(importlib.import_module(_HOME[name], __name__), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sparsight")
    except PackageNotFoundError:
        return "0+unknown"
