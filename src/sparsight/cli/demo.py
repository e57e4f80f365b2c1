"""`sparsight demo`: a real document, a question about it, and what it takes to answer when most tokens are not read."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .console import output, spinner
from .options import DEFAULT_BUDGET, add_budget_option, add_model_options, load_model, make_plan
from .progress import bar

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..runtime import Generation, Plan

DOCUMENT = "Aardvark, of the English Wikipedia"
QUESTION = "What is the only fruit eaten by aardvarks?"
PREDICTOR = "foresight"
COMPARED = ("dense", "oracle", "foresight", "lowrank", "butler", "quest", "streaming", "random")
PICTURE = "which-tokens-were-read.png"
LENGTH, CHUNKS, QUICK_CHUNKS = 1024, 3, 1


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "demo",
        help="answer a question about a document, dense and reading one token in eight",
        description="Answer a question about a document that ships with the package, dense and with the predictor "
        f"{PREDICTOR}; compare all methods on that document; draw which tokens were read.",
    )
    add_model_options(parser)
    add_budget_option(parser)
    parser.add_argument(
        "--out", default="sparsight-demo", metavar="DIR", help="folder for the picture (default: ./sparsight-demo)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N", help="stop after N tokens (default: 48)")
    parser.add_argument("--quick", action="store_true", help="compare the methods on a third of the text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from ..evaluation import Protocol, evaluate
    from ..report import draw_reading_map, evaluation_table, require_matplotlib
    from ..runtime import Budget
    from ..tokens.pretrained import resolve
    from ..training.text import Document

    require_matplotlib()
    out = Path(args.out).expanduser()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out '{args.out}' is a file, but a folder is needed; choose another")
    budget = args.budget or Budget.parse(DEFAULT_BUDGET)
    text = (files("sparsight") / "demo" / "document.txt").read_text(encoding="utf-8")
    loaded = load_model(args)
    for name in COMPARED:  # what is missing is said before the user has waited
        resolve(name, loaded)
    plan = make_plan(loaded, PREDICTOR, budget)

    console = output()
    console.print(f"{loaded.name} reads a document: {DOCUMENT}\nQuestion: {QUESTION}\n")
    dense, _ = _answer(loaded, text, None, args.max_new_tokens)
    console.print(f"dense, every token read ({_took(dense)}):\n  {dense.text.strip()}\n")
    sparse, recorder = _answer(loaded, text, plan, args.max_new_tokens)
    console.print(
        f"{PREDICTOR}, {sparse.share_read:.1%} of the cached tokens read ({_took(sparse)}):\n  {sparse.text.strip()}\n"
    )
    if recorder.lengths:
        title = f"Which tokens {loaded.name} read to answer “{QUESTION}” ({PREDICTOR}, budget {budget})"
        picture = draw_reading_map(recorder, out / PICTURE, title, _words(loaded, text, sparse), plan.rule.window)
        console.print(f"Which tokens were read: {picture}\n", soft_wrap=True)
    chunks = QUICK_CHUNKS if args.quick else CHUNKS
    with bar("comparing the methods on the document") as update:
        result = evaluate(
            loaded,
            list(COMPARED),
            [Document(DOCUMENT, text)],
            Protocol(LENGTH, chunks),
            [budget],
            progress=lambda done, total, note: update(done, total, ""),
        )
    console.print(evaluation_table(result["rows"], title="All methods at the same budget, on the document:"))
    return 0


def prompt_of(document: str) -> str:
    """The user's turn: the document, then the question."""
    return f"{document.strip()}\n\n{QUESTION}"


def _answer(loaded: LoadedModel, document: str, plan: Plan | None, tokens: int):
    """The answer to the question, and a recorder of what was read for it."""
    from ..report import ReadingRecorder
    from ..runtime import generate

    recorder = ReadingRecorder()
    with spinner("reading and answering" if plan is None else f"the same with {plan.selector.name}"):
        made = generate(
            loaded, prompt_of(document), plan, chat=True, max_new_tokens=tokens, observer=recorder if plan else None
        )
    return made, recorder


def _words(loaded: LoadedModel, document: str, made: Generation) -> list[str]:
    """Text of every token of prompt and answer."""
    from ..runtime.generate import encode_prompt

    ids = encode_prompt(loaded, prompt_of(document), chat=True)[0].tolist() + made.token_ids
    return [loaded.tokenizer.decode([i]) for i in ids]


def _took(made: Generation) -> str:
    return f"{made.prompt_tokens:,} tokens of prompt, {len(made.token_ids)} of answer, {made.seconds:.1f} s"
