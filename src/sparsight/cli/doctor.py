"""`sparsight doctor`: what this machine offers, what will be used of it, and what is wrong."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import ConfigError

USABLE, BROKEN = 0, 2


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "doctor",
        help="say what is installed, what will be used and what is wrong",
        description="Look at the machine, the packages, the models and the cache, and say what will be used. Problems come last, one a line "
        "with its remedy. Exit code 0, or 2 if something that is needed is broken.",
    )
    parser.add_argument("--json", metavar="FILE", help="write the same as JSON; - prints it in place of the text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from ..doctor import examine

    found = examine()
    text = json.dumps(found.as_json(), ensure_ascii=False, indent=2) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    else:
        if args.json is not None:
            _write(args.json, text)
        for line in lines(found.as_json()):
            sys.stdout.write(line + "\n")
    return USABLE if found.usable else BROKEN


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The report in words.

    Parameters
    ----------
    found : dict
        From `Examination.as_json`.
    """
    for title, facts in _parts(found):
        yield f"{title:<13}{facts[0]}"
        yield from (" " * 13 + fact for fact in facts[1:])
    if not found["problems"]:
        yield "no problems"
    for problem in found["problems"]:
        yield f"{'broken' if problem['broken'] else 'note'}: {problem['what']}; {problem['remedy']}"


def _parts(found: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    processor, memory, kernels, torch = found["processor"], found["memory"], found["kernels"], found["torch"]
    yield "sparsight", [f"{found['sparsight'] or 'not installed'}, Python {found['python']}, {found['system']}"]
    usable = "?" if processor["usable_cores"] is None else f"{processor['usable_cores']:g}"
    yield "processor", [f"{processor['name'] or '?'}, {usable} of {processor['cores'] or '?'} cores usable"]
    limit = "" if memory["limit"] is None else f", limit {_gb(memory['limit'])}"
    yield "memory", [f"{_gb(memory['available'])} free of {_gb(memory['total'])}{limit}", *_bandwidth(found)]
    yield "kernels", [_kernels(kernels)]
    gpus = [f"{gpu['name']}, {_gb(gpu['memory'])}" for gpu in torch["gpus"]]
    yield "GPU", gpus or [f"not known: {torch['why_not']}" if torch["why_not"] else "none that PyTorch sees"]
    yield "packages", [_package(package) for package in found["packages"]] or ["not known: no metadata"]
    yield "extras", [_extra(extra) for extra in found["extras"]] or ["not known: no metadata"]
    yield "models", [_model(model) for model in found["models"]] or ["not known"]
    named = [f"{one['folder']}" + (f" ({one['why_not']})" if one["why_not"] else "") for one in found["predictors"]]
    yield "predictors", named or ["none"]
    cache = found["cache"]
    yield "cache", [f"{cache['folder'] or '?'}: {_gb(cache['bytes'])} in {cache['files']:,} files, {cache['why_not'] or 'can be written'}"]
    used = found["used"]
    detail = f"weights: {used['weights']}; threads: {used['threads'] or '?'}" + (f"; level {used['level']}" if used["level"] else "")
    yield "will be used", [f"{used['runtime']}: {used['why']}", detail]


def _bandwidth(found: dict[str, Any]) -> list[str]:
    read = [f"{speed / 1e9:.1f} GB/s with {count}" for count, speed in found["bandwidth"].items()]
    return [f"read at {', '.join(read)} thread{'' if list(found['bandwidth']) == ['1'] else 's'}"] if read else []


def _kernels(kernels: dict[str, Any]) -> str:
    if not kernels["present"]:
        return f"none: {kernels['why_not']}"
    forced = f", SPARSIGHT_ISA={kernels['forced']}" if kernels["forced"] else ""
    return f"{', '.join(kernels['levels'])}; in use: {kernels['level'] or 'none'}{forced}"


def _package(package: dict[str, Any]) -> str:
    fits = "" if package["fits"] else "  <- not in the range"
    return f"{package['name']:<14}{package['installed'] or 'missing':<13} {package['wanted'] or 'any'}{fits}"


def _extra(extra: dict[str, Any]) -> str:
    return f"{extra['name']:<14}" + (f"lacks {', '.join(extra['missing'])}: {extra['command']}" if extra["missing"] else "installed")


def _model(model: dict[str, Any]) -> str:
    return f"{model['name']:<14}" + (f"{_gb(model['bytes'])}" if model["bytes"] else model["why_not"])


def _gb(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e9:.3g} GB"


def _write(path: str, text: str) -> None:
    try:
        from ..artifacts.files import write_atomically
    except ImportError as error:
        raise ConfigError(f"cannot write '{path}': {error}; use --json - and send it to a file") from error
    write_atomically(path, text)
