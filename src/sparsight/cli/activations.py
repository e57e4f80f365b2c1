"""`sparsight evaluate --activations`: score text, or tasks, with matrices cut by their inputs."""

from __future__ import annotations

import argparse


def run_activations(args: argparse.Namespace) -> int:
    """Evaluate cut matrices."""
    from ..evaluation.activations import evaluate_activations
    from ..evaluation.units import UnitProtocol
    from ..report.activation_table import activation_table
    from ..training import read_documents
    from .console import output
    from .evaluate import check_beside, selection_beside
    from .options import load_model
    from .progress import bar

    check_beside(args, "--activations")
    if args.tasks:
        return _run_tasks(args)
    protocol = UnitProtocol(args.length, args.chunks, args.prompt)
    documents = read_documents(args.text)
    loaded = load_model(args)
    select = selection_beside(loaded, args)
    with bar("evaluating") as update:
        result = evaluate_activations(
            loaded,
            args.activations,
            documents,
            protocol,
            cut_prompt=args.cut_prompt,
            select=select,
            allow_trained_text=args.allow_trained_text,
            result=args.json,
            progress=update,
        )
    output().print(activation_table(result["rows"]))
    return 0


def _run_tasks(args: argparse.Namespace) -> int:
    """Evaluate on multiple-choice tasks."""
    import json

    from ..activations.pretrained import from_pretrained
    from ..artifacts import write_atomically
    from ..evaluation.unit_tasks import evaluate_activation_tasks
    from ..report.unit_tables import task_table
    from .console import output
    from .options import load_model
    from .progress import bar

    loaded = load_model(args)
    methods = {folder: from_pretrained(folder, loaded) for folder in dict.fromkeys(args.activations)}
    with bar("evaluating") as update:
        rows = evaluate_activation_tasks(
            loaded, methods, args.tasks, args.shots, args.tasks_data, args.limit, args.mask_prompt or args.cut_prompt, progress=update
        )
    if args.json:
        write_atomically(args.json, json.dumps({"model": loaded.name, "model_hash": loaded.fingerprint, "rows": rows}, indent=1) + "\n")
    output().print(task_table(rows))
    return 0
