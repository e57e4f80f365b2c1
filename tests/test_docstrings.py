"""What is public says what it is: a docstring for each name, the shape of each tensor, every parameter of a list, the paper of each method."""

import importlib
import inspect
import re
import sys

import pytest
from docstring_parser import DocstringStyle, parse

import sparsight
from sparsight import activations, tokens, units

ROOMS = (
    "tokens", "units", "activations", "evaluation", "training", "runtime", "models", "ops", "artifacts", "errors", "serve", "report", "doctor",
    "machine",
)  # fmt: skip
SHARE = 0.95
SHAPE = re.compile(r"\((?:\.\.\.|[\w*]+(?: [*+/–-] [\w*]+| [a-z]+){0,3})(?:, ?(?:[\w*]+(?: [*+/–-] [\w*]+| [a-z]+){0,3})?)+\)|\(\.\.\.\)")
"""Of a tensor: names or numbers with commas between, such as (batch, kv_heads, tokens), (rows,) or (...)."""
TENSOR = re.compile(r"\b(Tensor|ndarray)\b")
PAPER = re.compile(r"\b\d{4}\.\d{5}|\b[Oo]urs\b|\bno paper\b")
OTHER_SOURCES = {"indexer": "DeepSeek-V3.2-Exp"}
"""Methods whose source has no arXiv number: a report that came with the weights."""


def public() -> dict[str, object]:
    """Functions, classes and public methods that can be reached from the package and its rooms, by their full names."""
    found = {}
    for module in (sparsight, *(importlib.import_module(f"sparsight.{room}") for room in ROOMS)):
        names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        for thing in (getattr(module, name) for name in names):
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__.startswith("sparsight"):
                found[f"{thing.__module__}.{thing.__qualname__}"] = thing
                if inspect.isclass(thing):
                    found |= methods_of(thing)
    return found


def methods_of(cls: type) -> dict[str, object]:
    """Methods and properties that a class defines itself."""
    plain = {name: getattr(value, "__func__", None) or getattr(value, "fget", None) or value for name, value in vars(cls).items()}
    return {
        f"{cls.__module__}.{cls.__qualname__}.{name}": value
        for name, value in plain.items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__name__ != "<lambda>"
    }


PUBLIC = public()


def share_of(good: dict[str, bool], what: str) -> None:
    bad = [name for name, fine in good.items() if not fine]
    share = 1 - len(bad) / len(good)
    print(f"{share:.1%} of {len(good)} {what}", *bad, sep="\n  ")
    assert share >= SHARE, f"{share:.1%} of {len(good)} public names {what}; not these:\n" + "\n".join(bad)


def test_every_public_name_has_a_docstring():
    # A dataclass without one is given its signature.
    written = {name: bool(doc := thing.__doc__) and not doc.startswith(f"{thing.__name__}(") for name, thing in PUBLIC.items()}
    share_of(written, "have a docstring")


def test_functions_that_take_or_give_tensors_state_their_shapes():
    stated = {}
    for name, thing in PUBLIC.items():
        if inspect.isclass(thing):
            continue
        tensors = {p for p, kind in getattr(thing, "__annotations__", {}).items() if TENSOR.search(str(kind))}
        if tensors:
            # The overriding method of a class may leave the shapes to what it overrides.
            stated[name] = bool(SHAPE.search(inherited(name, thing)))
    assert len(stated) > 60
    share_of(stated, "state the shapes of their tensors")


def test_classes_that_hold_tensors_state_their_shapes():
    stated = {}
    for name, thing in PUBLIC.items():
        if inspect.isclass(thing) and any(TENSOR.search(str(kind)) for kind in vars(thing).get("__annotations__", {}).values()):
            stated[name] = bool(SHAPE.search(thing.__doc__ or ""))
    assert len(stated) > 5
    share_of(stated, "state the shapes of the tensors that they hold")


def test_a_list_of_parameters_is_whole():
    """Where there is a list, all are in it, under the names they have."""
    whole, unknown = {}, []
    for name, thing in PUBLIC.items():
        listed = {
            part.strip().lstrip("*")
            for meta in parse(thing.__doc__ or "", DocstringStyle.NUMPYDOC).params
            if meta.args[0] == "param"
            for part in meta.arg_name.split(",")
        }
        if not listed:
            continue
        target = thing.__init__ if inspect.isclass(thing) else thing
        has = {parameter for parameter in inspect.signature(target).parameters if parameter not in ("self", "cls")}
        whole[name] = has <= listed
        unknown += [f"{name}: {extra}" for extra in listed - has]
    assert len(whole) > 60 and not unknown, unknown
    share_of(whole, "that list parameters list all of them")


@pytest.mark.parametrize("room", [tokens, units, activations], ids=lambda room: room.__name__)
def test_every_method_names_its_source(room):
    for name, cls in room.methods().items():
        if cls.__module__.startswith(room.__name__):  # tests register their own
            said = f"{sys.modules[cls.__module__].__doc__} {cls.__doc__}"
            assert PAPER.search(said) or OTHER_SOURCES.get(name, "\0") in said, f"{name}: name the paper (arXiv number), or say that it is ours"


def inherited(name: str, thing: object) -> str:
    """A docstring, with that of the method of a base class that it overrides."""
    owner = PUBLIC.get(name.rpartition(".")[0])
    bases = owner.__mro__[1:] if inspect.isclass(owner) else ()
    docs = [getattr(vars(base).get(thing.__name__), "__doc__", None) or "" for base in bases]
    return "\n".join([thing.__doc__ or "", *docs])
