"""What the outputs of matrices are worth to what a model says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..models import LoadedModel

Progress = Callable[[int, int, str], None]


def output_importance(loaded: LoadedModel, windows: Tensor, progress: Progress | None = None) -> dict[tuple[int, str], Tensor]:
    """Mean square of the gradient by each output of each matrix, of the log-probability of tokens drawn from the model itself.

    This is the diagonal of the Fisher information: to second order, half of it times the square of a small change of an output is the
    Kullback-Leibler divergence from the model as it was (Kunstner et al., arXiv:1905.12558, on why drawn tokens and not those of the text).

    Parameters
    ----------
    loaded : LoadedModel
    windows : (count, tokens) int64
    progress : callable, optional

    Returns
    -------
    dict of (layer, part) to (outputs,) float32
    """
    anatomy, model = loaded.anatomy, loaded.model
    sums: dict[tuple[int, str], Tensor] = {}
    draw = torch.Generator(device=model.device).manual_seed(0)

    def catch(layer: int, parts: list[tuple[str, slice]]) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            def gradient(grad: Tensor) -> None:
                squares = grad.detach().float().flatten(0, -2).square().sum(dim=0)
                for part, rows in parts:
                    sums[layer, part] = sums.get((layer, part), 0) + squares[rows]

            output.register_hook(gradient)

        return hook

    handles = []
    for i in range(anatomy.layers):
        handles += [module.register_forward_hook(catch(i, parts)) for module, parts in anatomy.by_module(i).items()]
    try:
        for i, ids in enumerate(windows):
            embedded = model.get_input_embeddings()(ids[None].to(model.device)).detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model(inputs_embeds=embedded, use_cache=False).logits[0].float()
                drawn = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=draw)[:, 0]
                nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
            if progress is not None:
                progress(i + 1, len(windows), "gradients")
    finally:
        for handle in handles:
            handle.remove()
    return {key: total / windows.numel() for key, total in sums.items()}
