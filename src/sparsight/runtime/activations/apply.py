"""A Hugging Face model whose matrices are cut by their inputs, for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ...activations import ActivationGeometry, ActivationMethod
from ...errors import ArtifactError, ModelError
from ...models import Anatomy, LoadedModel
from ..attention import on_forward
from ..units.swap import swapped
from .modules import ActivationState, CutLinear, GuidedDown, GuidedInput, GuidedUp


def check_activations(model: LoadedModel | Any, method: ActivationMethod) -> tuple[Any, Anatomy]:
    """The network of a model and its anatomy, if a method can be used with it.

    Raises
    ------
    ArtifactError
        If the method was made for another model.
    ModelError
        If two matrices of the model share their weights: what is cut from one would have to be cut from the other.
    """
    network, anatomy = (model.model, model.anatomy) if isinstance(model, LoadedModel) else (model, Anatomy.of(model))
    artifact = getattr(method, "artifact", None)
    if isinstance(model, LoadedModel) and artifact is not None and artifact.model_fingerprint != model.fingerprint:
        raise ArtifactError(
            f"the thresholds of {method.name!r} are for the model {artifact.model_name!r} (fingerprint {artifact.model_fingerprint[:12]}), but "
            f"came with {model.name!r} (fingerprint {model.fingerprint[:12]}); calibrate this model: sparsight calibrate --method {method.name}"
        )
    if method.geometry != ActivationGeometry.of(anatomy):
        raise ArtifactError(
            f"{method.name!r} was calibrated for {method.geometry}, but the model is {ActivationGeometry.of(anatomy)}; calibrate this model"
        )
    check_not_shared(anatomy)
    return network, anatomy


def check_not_shared(anatomy: Anatomy) -> None:
    """Raise `ModelError` if a matrix of a layer is used in two places."""
    owner: dict[int, tuple[int, str, nn.Linear]] = {}
    for i in range(anatomy.layers):
        for part, (module, _) in anatomy.projections(i).items():
            at = module.weight.data_ptr()
            if at in owner and not (owner[at][0] == i and owner[at][2] is module and _fused(anatomy, i, part, owner[at][1])):
                other = f"{owner[at][1]} of layer {owner[at][0]}"
                raise ModelError(
                    f"{part} of layer {i} and {other} are one matrix (tied weights), but each place needs centres and thresholds of its own; "
                    "give the model separate weights"
                )
            owner.setdefault(at, (i, part, module))


def _fused(anatomy: Anatomy, layer: int, part: str, other: str) -> bool:
    """Whether two matrices of a layer are different rows of one module."""
    found = anatomy.projections(layer)
    return found[part][1] != found[other][1]


class ActivationRun:
    """A model under cuts.

    Attributes
    ----------
    state : ActivationState
    method : ActivationMethod
    """

    def __init__(self, anatomy: Anatomy, method: ActivationMethod, rows: str) -> None:
        self.anatomy, self.method, self.rows = anatomy, method, rows
        on_cpu = anatomy.projections(0)["down"][0].weight.device.type == "cpu"
        self.state = ActivationState(active=rows == "all", skipping=rows == "decode" and on_cpu)

    def begin(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """See a forward of the base model before it runs."""
        if self.rows == "decode":
            ids = kwargs.get("input_ids")
            ids = kwargs["inputs_embeds"] if ids is None else ids
            past = kwargs.get("past_key_values")
            self.state.active = ids.shape[1] == 1 and past is not None and past.get_seq_length() > 0
        return kwargs

    def modules(self) -> dict[nn.Module, nn.Module]:
        """What stands in the place of the model's own modules."""
        made: dict[nn.Module, nn.Module] = {}
        for i in range(self.anatomy.layers):
            if (threshold := self.method.gate_cut(i)) is not None:
                found = self.anatomy.projections(i)
                gate, up, down = (found[part][0] for part in ("gate", "up", "down"))
                made[gate] = GuidedInput(gate, i, self.anatomy, threshold, self.state)
                if up is not gate:
                    made[up] = GuidedUp(up, i, self.state)
                made[down] = GuidedDown(down, i, self.state)
                continue
            for module, matrices in self.anatomy.by_module(i).items():
                parts = [(part, rows, self.method.cut(i, part)) for part, rows in matrices]
                if any(cut is not None for _, _, cut in parts):
                    made[module] = CutLinear(i, module, parts, self.state)
        return made

    def share(self, layer: int, part: str) -> float:
        """Share of a matrix that was not read."""
        return self.state.share(layer, part)

    @property
    def sparsity(self) -> float:
        """Share of the elements of all matrices of all layers that was not read."""
        geometry = self.method.geometry
        layers = range(geometry.layers)
        return geometry.sparsity({part: sum(self.share(i, part) for i in layers) / geometry.layers for part in geometry.parts})


@contextmanager
def apply_activations(model: LoadedModel | Any, method: ActivationMethod, rows: str = "decode") -> Iterator[ActivationRun]:
    """Put a model under cuts for the duration of a `with` block; it goes together with `runtime.apply` and, inside it, `apply_units`.

    Parameters
    ----------
    model : LoadedModel or a transformers causal language model
    method : ActivationMethod
    rows : {"decode", "all"}
        Cut decode steps, which then really skip on a CPU, or every row of every forward, which saves nothing and is for scoring.

    Yields
    ------
    ActivationRun

    Raises
    ------
    ArtifactError, ModelError
        See `check_activations`.
    """
    network, anatomy = check_activations(model, method)
    method = method.to(network.device)
    run = ActivationRun(anatomy, method, rows)
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(swapped(network, run.modules()))
        stack.callback(on_forward(anatomy.base(), run.begin).remove)
        yield run
