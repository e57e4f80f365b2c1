"""Generate in the Hugging Face graph with heads and neurons left out: dense prefill, then decoding that does not read their weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ...errors import ArtifactError, ConfigError
from ...models import Anatomy, LoadedModel
from ...units import UnitGeometry
from ..attention import on_forward
from .choices import Choices
from .masked import Tally, recorded
from .plan import UnitPlan
from .skipping import skipping_modules
from .sliced import sliced_modules
from .swap import swapped
from .watch import PromptRecord, Watch, watching


class UnitRun:
    """A generation under a unit plan.

    Attributes
    ----------
    tally : Tally
        Units computed in decode steps.
    pack_seconds : float
        Spent on making smaller matrices.
    """

    def __init__(self, network: Any, anatomy: Anatomy, plan: UnitPlan) -> None:
        self.network, self.anatomy, self.plan = network, anatomy, plan
        self.choices, self.tally = Choices(plan), Tally.empty()
        self.watch = Watch(anatomy)
        self.pack_seconds = 0.0
        self.steps = 0
        producers = {p for method in plan.methods for p in method.producers}
        self.record = PromptRecord(anatomy, producers) if self.choices.needs_prompt else None
        self._standing: ExitStack | None = None

    def begin(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """See a forward of the base model before it runs."""
        ids = kwargs.get("input_ids")
        ids = kwargs["inputs_embeds"] if ids is None else ids
        past = kwargs.get("past_key_values")
        decoding = ids.shape[1] == 1 and past is not None and past.get_seq_length() > 0
        if not decoding:
            self.leave()
        elif self._standing is None:
            self._enter(ids.shape[0])
        self.steps += decoding
        if decoding and "token" not in self.plan.modes:
            self._count(ids.shape[0])
        return kwargs

    def leave(self) -> None:
        """Put the model's own modules back."""
        if self._standing is not None:
            self._standing.close()
            self._standing = None

    def _enter(self, batch: int) -> None:
        started = time.perf_counter()
        if self.record is not None:
            if batch > 1:
                raise ConfigError(
                    f"in prompt mode the weights are sliced for one prompt, and {batch} were given; give one at a time, or use --mode token"
                )
            self.choices.see(self.record.prompt())
        if "token" in self.plan.modes:
            modules = skipping_modules(self.anatomy, self.choices, self.watch, self.tally)
        else:
            heads, neurons = ({i: mask[0] for i, mask in found.items()} for found in (self.choices.heads, self.choices.neurons))
            modules = sliced_modules(self.anatomy, heads, neurons)
        self._standing = ExitStack()
        self._standing.enter_context(swapped(self.network, modules))
        self.pack_seconds += time.perf_counter() - started

    def _count(self, batch: int) -> None:
        for kind, masks in (("heads", self.choices.heads), ("neurons", self.choices.neurons)):
            for mask in masks.values():
                self.tally.add(kind, int(mask.sum()) * batch, mask.numel() * batch)


def check_units(model: LoadedModel | Any, plan: UnitPlan) -> tuple[Any, Anatomy]:
    """The network of a model and its anatomy, if a plan can be used to generate with it.

    Raises
    ------
    ArtifactError
        If a method was made for another model.
    ConfigError
        If a method looks at what it is meant to save.
    """
    network, anatomy = (model.model, model.anatomy) if isinstance(model, LoadedModel) else (model, Anatomy.of(model))
    for method in plan.methods:
        artifact = getattr(method, "artifact", None)
        if isinstance(model, LoadedModel) and artifact is not None and artifact.model_fingerprint != model.fingerprint:
            raise ArtifactError(
                f"the predictor {method.name!r} is for the model {artifact.model_name!r} (fingerprint {artifact.model_fingerprint[:12]}), but "
                f"came with {model.name!r} (fingerprint {model.fingerprint[:12]}); use a predictor of this model"
            )
        if method.geometry != UnitGeometry.of(anatomy):
            raise ArtifactError(
                f"{method.name!r} was made for {method.geometry}, but the model is {UnitGeometry.of(anatomy)}; use a predictor of this model"
            )
        if not method.deployable:
            raise ConfigError(f"{method.name!r} looks at what it is meant to save; it can be evaluated, not generated with")
    return network, anatomy


@contextmanager
def apply_units(model: LoadedModel | Any, plan: UnitPlan, padding: Tensor | None = None) -> Iterator[UnitRun]:
    """Put a model under a unit plan for the duration of a `with` block; it goes together with `runtime.apply`.

    Forwards of several tokens are dense; decode steps leave out what the plan says. In static and prompt mode weights are sliced before the
    first of them, in token mode each step reads what it chooses.

    Parameters
    ----------
    model : LoadedModel or a transformers causal language model
    plan : UnitPlan
    padding : (batch, tokens) bool, optional
        True for tokens of the prompts that are no text, for the prompt mode.

    Yields
    ------
    UnitRun

    Raises
    ------
    ArtifactError, ConfigError
        See `check_units`; in prompt mode for a batch.
    """
    network, anatomy = check_units(model, plan)
    run = UnitRun(network, anatomy, plan)
    with torch.no_grad(), ExitStack() as stack:
        stack.callback(run.leave)
        stack.enter_context(watching(network, run.watch, range(anatomy.layers), factors=False))
        if run.record is not None:
            stack.enter_context(recorded(network, anatomy, run.record, padding))
        stack.callback(on_forward(anatomy.base(), run.begin).remove)
        yield run
