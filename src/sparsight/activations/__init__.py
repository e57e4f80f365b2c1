"""Which weights to read by the values they would be multiplied with: one file a method."""

from .base import (
    ATTENTION,
    FEED_FORWARD,
    INPUTS,
    PARTS,
    ActivationGeometry,
    ActivationMethod,
    Cut,
    create,
    make_config,
    method,
    methods,
    register,
)

__all__ = [
    "ATTENTION",
    "FEED_FORWARD",
    "INPUTS",
    "PARTS",
    "ActivationGeometry",
    "ActivationMethod",
    "Cut",
    "create",
    "make_config",
    "method",
    "methods",
    "register",
]
