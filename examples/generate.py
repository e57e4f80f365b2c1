"""The same continuation under smaller and smaller budgets: `python generate.py FILE`."""

import sys
from pathlib import Path

import sparsight


def main(file: str) -> None:
    text = Path(file).read_text(encoding="utf-8")
    loaded = sparsight.load("smollm2-135m")
    selector = sparsight.resolve("foresight", loaded)
    for budget in ("1/1", "1/2", "1/4"):
        plan = sparsight.Plan(selector, sparsight.Budget.parse(budget))
        result = sparsight.generate(loaded, text, plan, max_new_tokens=8)
        print(f"{budget:>4}  {result.share_read:4.0%} read  {result.text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
