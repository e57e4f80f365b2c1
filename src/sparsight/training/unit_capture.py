"""What heads and neurons give on a text, and the gradients of the text's loss by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..models import LoadedModel
from ..units.criteria import Criterion

Consume = Callable[[int, str, Tensor, Tensor | None], None]
"""consume(layer, "heads" or "neurons", activations, gradients): `(batch, tokens, units, channels)` both."""


def capture(loaded: LoadedModel, ids: Tensor, gradients: bool, consume: Consume) -> None:
    """Run texts and hand what each layer's units give to `consume`.

    Parameters
    ----------
    loaded : LoadedModel
        Left as it is.
    ids : (batch, tokens) int64
    gradients : bool
        Of the mean negative log-likelihood of every text's own tokens, summed over the batch: texts do not mix. Without, layers are handed over
        as they are computed, and nothing is kept.
    consume : callable

    Raises
    ------
    ConfigError
        If gradients are asked of a quantised model.
    """
    if gradients:
        check_gradients(loaded)
    ids = ids.to(loaded.model.device)
    kept: list[tuple[int, str, Tensor]] = []

    def hook(layer: int, kind: str):
        def see(module, args):
            if gradients:
                kept.append((layer, kind, args[0]))
            else:
                consume(layer, kind, _shaped(loaded, kind, args[0], ids.shape), None)

        return see

    anatomy = loaded.anatomy
    with ExitStack() as stack:
        for i in range(anatomy.layers):
            stack.callback(anatomy.head_output(i).register_forward_pre_hook(hook(i, "heads")).remove)
            stack.callback(anatomy.neuron_output(i).register_forward_pre_hook(hook(i, "neurons")).remove)
        if not gradients:
            with torch.no_grad():
                anatomy.base()(ids, use_cache=False)
            return
        with torch.enable_grad():
            embedded = loaded.model.get_input_embeddings()(ids).detach().requires_grad_(True)
            logits = loaded.model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1).mean(dim=1).sum()
        found = torch.autograd.grad(loss, [states for _, _, states in kept])
    for (layer, kind, states), gradient in zip(kept, found, strict=True):
        consume(layer, kind, _shaped(loaded, kind, states.detach(), ids.shape), _shaped(loaded, kind, gradient, ids.shape))


def scores_of(loaded: LoadedModel, ids: Tensor, chosen: Sequence[Criterion], parts: Mapping[str, slice]) -> dict[str, Tensor]:
    """Importance of every unit in parts of a text.

    Parameters
    ----------
    loaded : LoadedModel
    ids : (tokens,) int64
    chosen : sequence of Criterion
    parts : dict of str to slice
        Rows that are scored together, by name.

    Returns
    -------
    dict of str to (layers, units) bfloat16
        On the CPU, by "KIND.CRITERION.PART".

    Raises
    ------
    ConfigError
        As `capture`.
    ModelError
        If a score is not finite.
    """
    found: dict[str, list[Tensor]] = {}

    def consume(layer: int, kind: str, activations: Tensor, gradients: Tensor | None) -> None:
        for c in chosen:
            for part, rows in parts.items():
                score = c.over_rows(activations[:, rows], None if gradients is None else gradients[:, rows])[0]
                found.setdefault(f"{kind}.{c.name}.{part}", []).append(score.to(torch.bfloat16).cpu())

    capture(loaded, ids[None], any(c.needs_gradients for c in chosen), consume)
    scores = {key: torch.stack(layers) for key, layers in found.items()}
    for key, values in scores.items():
        if not values.isfinite().all():
            raise ModelError(f"{loaded.name} gives scores {key!r} that are not finite; check the model, or try fp32")
    return scores


def check_gradients(loaded: LoadedModel) -> None:
    """Raise `ConfigError` if no gradients go through a model."""
    quantised = getattr(loaded.model.config, "quantization_config", None) is not None
    if quantised or any(not p.is_floating_point() for p in loaded.model.parameters()):
        raise ConfigError(
            f"{loaded.name} is quantised, and this criterion needs gradients; use l2 or griffin, or give the model in bf16 or fp32"
        )


def _shaped(loaded: LoadedModel, kind: str, states: Tensor, shape) -> Tensor:
    units = (loaded.anatomy.query_heads, loaded.anatomy.head_dim) if kind == "heads" else (loaded.anatomy.intermediate_size, 1)
    return states.reshape(*shape, *units)
