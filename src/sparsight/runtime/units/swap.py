"""Modules of a model put in the place of others, for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


def places(network: nn.Module, modules: Mapping[nn.Module, nn.Module]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and old module of each key of `modules` within a network."""
    wanted, found = {id(module) for module in modules}, []
    for parent in network.modules():
        found += [(parent, name, child) for name, child in parent.named_children() if id(child) in wanted]
    return found


@contextmanager
def swapped(network: nn.Module, modules: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Put the values of `modules` in the place of its keys; the network is as before when the block ends."""
    where = places(network, modules)
    try:
        for parent, name, old in where:
            setattr(parent, name, modules[old])
        yield
    finally:
        for parent, name, old in where:
            setattr(parent, name, old)
