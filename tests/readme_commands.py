"""Runs command lines one after another in one process, which has to load its libraries only once: `python readme_commands.py < JSON`."""

import contextlib
import io
import json
import sys

from sparsight.cli.main import main


def run(arguments: list[str], given: str | None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO((given or "").encode()))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    results = [run(*command) for command in json.load(sys.stdin)]
    print(json.dumps(results))
