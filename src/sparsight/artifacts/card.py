"""The model card of a predictor: what it is, what it was made from, how good it is and how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .files import ACTIVATIONS, KIND

if TYPE_CHECKING:
    from .store import Artifact

_LISTED_DOCUMENTS = 50
_ORIGINS = {
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", "Apache License 2.0"),
    "gemma3-270m": ("google/gemma-3-270m", "gemma", "Gemma Terms of Use, https://ai.google.dev/gemma/terms"),
}
"""By the short name of a model: its name on the Hub, and the licence of its weights as the Hub and as people call it."""


def model_card(artifact: Artifact, figures: str = "") -> str:
    """Markdown with a YAML header, as model hubs read it.

    Parameters
    ----------
    artifact : Artifact
    figures : str
        What was measured of it beyond what it stores itself, in Markdown.

    Returns
    -------
    str
    """
    a = artifact
    sections = [
        _header(a),
        f"# {_text(a.method)} predictor for {_text(a.model_name)}",
        f"A predictor of the method `{a.method}` for Sparsight: {_purpose(a)} It is of use with this "
        "model alone; "
        "the model's weights are not in it and are not changed by it.",
        "## Model",
        _table(("", ""), [
            ("base model", _base(a)),
            ("fingerprint of its weights", f"`{a.model_fingerprint}`"),
            ("method", f"`{a.method}`"),
            ("settings", _inline(a.settings)),
            ("parameters", _parameters(a)),
            ("SHA-256 of model.safetensors", f"`{a.sha256}`"),
        ]),
        "## Training data",
        _data(a.data),
        "## Training",
        f"Made by `sparsight {_verb(a)} --model {_text(a.model_name)} --method {_text(a.method)}` with the settings above and these:",
        _training(a.training),
        "## Attention-mass recall" if a.kind == KIND else "## Rank correlation with the true importance, on held-out text",
        _rows(a.recall) if a.recall else "Not measured when this card was written.",
        *(["## Measured", figures.strip()] if figures else []),
        "## Limits",
        _limits(a),
        "## Use",
        "```\n"
        f"sparsight evaluate --model {a.model_name} {_options(a)} --text FILE\n"
        f"sparsight generate --model {a.model_name} {_options(a)} --prompt \"Once upon a time\"\n"
        "```",
        "## Licence",
        _licence(a),
        "## Made with",
        ", ".join(f"{name} {number}" for name, number in sorted(a.versions.items())) or "Not recorded.",
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _purpose(a: Artifact) -> str:
    if a.kind == KIND:
        what = f"which cached tokens the attention of `{_text(a.model_name)}` needs, so that the rest of the KV cache need not be read."
    else:
        what = f"which attention heads and neurons of `{_text(a.model_name)}` matter, so that the weights of the others need not be read."
    return f"at each decoding step it foresees {what}"


def _base(a: Artifact) -> str:
    origin = _ORIGINS.get(a.model_name)
    return f"`{_text(a.model_name)}`" + (f": {origin[0]}, {origin[2]}" if origin else "")


def _verb(a: Artifact) -> str:
    return "calibrate" if a.kind == ACTIVATIONS else "train"


def _limits(a: Artifact) -> str:
    """What holds for every artifact of its kind."""
    fits = "It fits the weights with the fingerprint above and no others; Sparsight refuses it for any other model, fine-tuned ones included."
    seen = "It was fitted on the text above. On other languages and kinds of text it may choose worse, and that was not measured unless it is "
    seen += "written here. Figures are means over text: a single answer may differ from that of the whole model."
    if a.kind == KIND:
        cost = "Prompts are read whole, and while generating a share of a context is at least 64 tokens. Choosing reads importance keys, which "
        cost += "take memory beside the cache; at short contexts that costs more time than it saves."
    else:
        cost = "Weights that are left out stay in memory: what is saved is reading them, at each decoded token, not in prompts."
    return "\n".join(f"- {text}" for text in (fits, seen, cost))


def _licence(a: Artifact) -> str:
    origin = _ORIGINS.get(a.model_name)
    of_model = f" ({origin[2]})" if origin else ""
    open_one = _hub_licence(a) == "apache-2.0"
    whose = "The numbers in model.safetensors and this card: Apache License 2.0" if open_one else "See the base model's terms"
    return f"{whose}. The base model{of_model} and the training text are under licences of their own, and neither is in this folder."


def _hub_licence(a: Artifact) -> str:
    return _ORIGINS.get(a.model_name, ("", "apache-2.0", ""))[1]


def _options(a: Artifact) -> str:
    if a.kind == KIND:
        return f"--select {a.method}=THIS_FOLDER --budget 1/8"
    return f"--units {a.method}=THIS_FOLDER --unit-sparsity neurons=0.5"


def _header(a: Artifact) -> str:
    topics = ("kv-cache", "sparse-attention") if a.kind == KIND else ("contextual-sparsity",)
    lines = [
        "---",
        "library_name: sparsight",
        f"license: {_hub_licence(a)}",
        f"base_model: {json.dumps(_ORIGINS[a.model_name][0] if a.model_name in _ORIGINS else a.model_name)}",
        "tags:",
        *(f"- {tag}" for tag in ("sparsight", *topics, json.dumps(a.method))),
        "---",
    ]
    return "\n".join(lines)


def _parameters(a: Artifact) -> str:
    if not a.model_parameters:
        return f"{a.parameters:,}"
    return f"{a.parameters:,}, {a.parameters / a.model_parameters:.2%} of the model's {a.model_parameters:,}"


def _data(data: dict[str, Any]) -> str:
    """A table of the plain facts; lists of documents are counted in it and listed after it."""
    lists = {key: value for key, value in data.items() if isinstance(value, list) and len(value) > 0}
    facts = [(_text(key), f"{len(value):,}" if key in lists else _inline(value)) for key, value in data.items()]
    parts = [_table(("", ""), facts)] if facts else ["Not recorded."]
    for key, entries in lists.items():
        listed = "\n".join(f"- {_inline(entry)}" for entry in entries[:_LISTED_DOCUMENTS])
        parts.append(f"`{_text(key)}`:\n\n{listed}")
        if len(entries) > _LISTED_DOCUMENTS:
            parts.append(f"and {len(entries) - _LISTED_DOCUMENTS:,} more, all in config.json.")
    return "\n\n".join(parts)


def _training(training: dict[str, Any]) -> str:
    facts = [(_text(key), _inline(value)) for key, value in training.items() if key != "history"]
    parts = [_table(("", ""), facts)] if facts else ["Not recorded."]
    if history := training.get("history"):
        parts.append("First and last measurement:\n\n" + _rows(history[:: max(len(history) - 1, 1)]))
    return "\n\n".join(parts)


def _rows(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return _table(columns, [[_inline(row[key]) if key in row else "" for key in columns] for row in rows])


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = [_text(cell) for cell in header]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _inline(value: Any) -> str:
    """A value as text in one table cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{_text(key)} {_inline(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_inline, value)) or "none"
    return _text(value)


def _text(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
