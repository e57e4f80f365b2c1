"""Which cached tokens to read: predictors and baselines, one file a method."""

from .base import Geometry, Index, Rows, Selector, create, make_config, method, methods, register
from .dense import Dense

__all__ = ["Dense", "Geometry", "Index", "Rows", "Selector", "create", "make_config", "method", "methods", "register"]
