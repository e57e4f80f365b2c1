"""Runs the commands and examples of pages in one process, which has to load its libraries only once: `python document_commands.py < JSON`."""

import contextlib
import functools
import io
import json
import os
import sys
import traceback

import sparsight.models
from sparsight.cli.main import main

# Reading the weights again takes as long as most commands. Plans leave the model as it was; other tests hold them to that.
sparsight.models.load = functools.cache(sparsight.models.load)


def run(kind: str, content: list[str] | str, given: str | None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, or of a piece of Python."""
    out, err = io.StringIO(), io.StringIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO((given or "").encode()))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if kind == "shell":
            code = main(content)
        else:
            try:
                exec(compile(content, "example", "exec"), {"__name__": "__main__"})
                code = 0
            except Exception:
                traceback.print_exc()
                code = 1
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    results = []
    for folder, kind, content, given in json.load(sys.stdin):
        os.chdir(folder)
        results.append(run(kind, content, given))
    print(json.dumps(results))
