"""Training of the predictors of heads and neurons: every layer's scores at once, from the frozen model's own activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..models import LoadedModel
from ..runtime.units import PromptRecord, Watch, recorded
from ..runtime.units.watch import watching
from ..units import Prompt, Scores
from ..units.criteria import criterion, relative
from ..units.groups import co_active_groups
from ..units.network import NetworkMethod
from .unit_capture import capture
from .unit_trace import Trace

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class UnitTraining:
    """How a predictor of units is trained.

    Attributes
    ----------
    steps : int
        In token mode, each on `batch` windows of the trace; in prompt mode epochs over its examples.
    batch : int
    learning_rate : float
        Peak; rises over a twentieth of the steps, then falls as a cosine to a twentieth of it.
    weight_decay : float
    seed : int
    """

    steps: int = 300
    batch: int = 4
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ConfigError(f"training needs at least one step and one window a step, got {self.steps} and {self.batch}")
        if not 0 < self.learning_rate <= 1:
            raise ConfigError(f"learning rate must be above 0 and at most 1, got {self.learning_rate}")


def train_network(
    units: NetworkMethod,
    loaded: LoadedModel,
    trace: Trace,
    rows: Sequence[int],
    config: UnitTraining,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train an untrained predictor on the examples `rows` of a trace.

    It starts at the mean importance and learns what the inputs add to it, by least squares on importances relative to their mean over a layer.

    Parameters
    ----------
    units : NetworkMethod
        Changed in place.
    loaded : LoadedModel
        Frozen.
    trace : Trace
    rows : sequence of int
    config : UnitTraining
    progress : callable, optional

    Returns
    -------
    list of dict
        step, loss, and loss of the mean alone: what is left of 1 - their ratio is what the inputs explain.

    Raises
    ------
    ModelError
        If the loss is not finite.
    """
    chosen, part = criterion(units.config.criterion), "rest"
    means = Scores(*(relative(trace.scores(chosen.name, part, kind)[list(rows)].float()).mean(dim=0) for kind in ("heads", "neurons")))
    groups = None
    if units.config.group_size > 1:
        groups = group_neurons(loaded, trace.ids[list(rows)[:8]], units.config.group_size)
    units.initialise(means, groups, config.seed)
    units.to(loaded.model.device).requires_grad_(True)
    if units.config.mode == "token":
        batches = _token_batches(units, loaded, trace, rows, config)
    else:
        batches = _prompt_batches(units, loaded, trace, rows, config, progress)
    return _fit(units, batches, config, progress)


def group_neurons(loaded: LoadedModel, ids: Tensor, size: int) -> Tensor:
    """Co-active groups of every layer but the first, `(layers - 1, neurons)` int64, from texts `(texts, tokens)`."""
    found: dict[int, list[Tensor]] = {}

    def consume(layer: int, kind: str, activations: Tensor, gradients: Tensor | None) -> None:
        if kind == "neurons" and layer > 0:
            found.setdefault(layer, []).append(activations[..., 0].flatten(0, 1).float().abs().cpu())

    for row in ids:
        capture(loaded, row[None], False, consume)
    return torch.stack([co_active_groups(torch.cat(parts), size) for _, parts in sorted(found.items())])


def _fit(units: NetworkMethod, batches, config: UnitTraining, progress: Progress | None) -> list[dict[str, float]]:
    optimizer = torch.optim.AdamW(units.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    history: list[dict[str, float]] = []
    for step in range(config.steps):
        rate = min(1.0, (step + 1) / (0.05 * config.steps + 1)) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / config.steps)))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate
        inputs, heads, neurons = batches(step)
        optimizer.zero_grad(set_to_none=True)
        loss, plain = _loss(units, inputs, heads, neurons)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(units.parameters(), 1.0)
        optimizer.step()
        lost, mean = float(loss.detach()), float(plain.detach())
        if not math.isfinite(lost):
            raise ModelError(f"the training loss became {lost} at step {step + 1}; lower the learning rate or check the model for NaN")
        if step % 5 == 0 or step == config.steps - 1:
            history.append({"step": step + 1, "loss": lost, "loss_of_mean": mean})
        if progress is not None:
            progress(step + 1, config.steps, f"training: loss {lost:.4f}, of the mean {mean:.4f}")
    units.requires_grad_(False)
    return history


def _loss(units: NetworkMethod, inputs: Callable[[int], Tensor], heads: Tensor, neurons: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error over units, layers and rows, and that of the mean alone.

    `heads` (layers - 1, rows, query_heads) and `neurons` (layers - 1, rows, groups); `inputs` gives (rows, hidden) a producer.
    """
    total, plain = torch.zeros(()), torch.zeros(())
    layers = heads.shape[0]
    for layer in range(1, layers + 1):
        hidden = units.hidden(layer, inputs, heads.shape[1])
        for made, truth, mean in (
            (units.read_heads(layer, hidden), heads[layer - 1], units.head_mean),
            (units.read_groups(layer, hidden), neurons[layer - 1], units.neuron_mean),
        ):
            total = total + (made - truth).square().mean() / layers
            plain = plain + (mean[layer - 1].detach() - truth).square().mean() / layers
    return total, plain


def _token_batches(units: NetworkMethod, loaded: LoadedModel, trace: Trace, rows: Sequence[int], config: UnitTraining):
    """Batches of tokens with their own hidden states and importances."""
    chosen, rows = criterion(units.config.criterion), torch.tensor(list(rows))

    def batch(step: int):
        # A generator of its own for each step, so that steps do not depend on each other.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        ids = trace.ids[rows[torch.randint(len(rows), (config.batch,), generator=generator)]]
        found: dict[tuple[int, str], Tensor] = {}

        def consume(layer: int, kind: str, activations: Tensor, gradients: Tensor | None) -> None:
            if layer > 0:
                found[layer, kind] = relative(chosen.per_row(activations, gradients).flatten(0, 1))

        watch = Watch(loaded.anatomy)
        with watching(loaded.model, watch, range(loaded.anatomy.layers), factors=False):
            capture(loaded, ids, chosen.needs_gradients, consume)
        inputs = {p: watch.attention_input(p) for p in units.producers}
        layers = range(1, loaded.anatomy.layers)
        heads, neurons = (torch.stack([found[layer, kind] for layer in layers]) for kind in ("heads", "neurons"))
        return inputs.__getitem__, heads, units.pool(neurons)

    return batch


def _prompt_batches(units: NetworkMethod, loaded: LoadedModel, trace: Trace, rows: Sequence[int], config: UnitTraining, progress):
    """Batches of examples: the mean hidden state of the prompt, and importances over what follows."""
    rows = list(rows)
    prompts = prompts_of(loaded, trace, rows, units.producers, progress)
    inputs = {p: torch.cat([prompt.inputs(p) for prompt in prompts]) for p in units.producers}
    targets = {
        kind: relative(trace.scores(units.config.criterion, "rest", kind)[rows].float())[:, 1:].transpose(0, 1) for kind in ("heads", "neurons")
    }
    pooled = units.pool(targets["neurons"].to(units.bias.device))
    size = min(16 * config.batch, len(rows))

    def batch(step: int):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        picked = torch.randperm(len(rows), generator=generator)[:size]
        return lambda p: inputs[p][picked], targets["heads"][:, picked].to(units.bias.device), pooled[:, picked]

    return batch


def prompts_of(loaded: LoadedModel, trace: Trace, rows: Sequence[int], producers: Sequence[int], progress=None, batch: int = 8) -> list[Prompt]:
    """What is known of the prompts of a trace's examples, some at a time."""
    found = []
    for start in range(0, len(rows), batch):
        if progress is not None:
            progress(start, len(rows), "reading prompts")
        record = PromptRecord(loaded.anatomy, producers)
        with recorded(loaded.model, loaded.anatomy, record):
            ids = trace.ids[list(rows[start : start + batch]), : trace.prompt].to(loaded.model.device)
            loaded.anatomy.base()(ids, use_cache=False)
        found.append(record.prompt())
    return found
