"""`sparsight serve`: an HTTP server in the shape of OpenAI's, and a page that shows what was read."""

from __future__ import annotations

import argparse
import importlib.util
import sys

from ..errors import ConfigError
from .console import spinner
from .options import DEFAULT_BUDGET, add_budget_option, add_model_options, load_model

_NEEDED = ("fastapi", "prometheus_client", "uvicorn")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "serve",
        help="answer HTTP requests in the shape of OpenAI's, and show what was read on a page",
        description="Listen for HTTP requests in the shape of OpenAI's (/v1/models, /v1/completions, /v1/chat/completions) and serve a page "
        "at / that shows which tokens each answer read. Requests are decoded together, each with its own method and budget. Needs the extra "
        "`serve`. SIGTERM and Ctrl-C let running answers finish.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--weights", choices=("fp32", "bf16", "int8", "int4"), help="what weights are kept in (default: as generate has it)"
    )
    parser.add_argument(
        "--select",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME[=ARTIFACT]",
        help="methods beside those that come with the package; the first is used where a request names none (default: dense)",
    )
    add_budget_option(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; any but loopback needs an API key (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 for one that is free (default: 8000)")
    parser.add_argument("--api-key-file", metavar="P", help="file with the API key (default: the variable SPARSIGHT_API_KEY)")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-body-bytes", type=int, default=2 << 20, metavar="N", help="of a request (default: 2097152)")
    limits.add_argument("--max-prompt-tokens", type=int, metavar="N", help="of a request (default: the model's context)")
    limits.add_argument("--max-new-tokens", type=int, metavar="N", help="of a request (default: the model's context)")
    limits.add_argument("--max-running", type=int, default=8, metavar="N", help="requests decoded together (default: 8)")
    limits.add_argument("--max-waiting", type=int, default=32, metavar="N", help="requests that wait for a place (default: 32)")
    limits.add_argument("--request-seconds", type=float, default=600, metavar="S", help="for a request in all (default: 600)")
    limits.add_argument(
        "--drain-seconds", type=float, default=30, metavar="S", help="for running answers to finish at the end (default: 30)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the server needs {', '.join(missing)}, which is not installed; run: pip install 'sparsight[serve]'")
    from ..runtime import Budget, choose_runtime
    from ..serve import Engine, Methods, Settings
    from ..serve.asks import Asks
    from ..serve.server import address, open_socket, serve
    from ..serve.settings import read_api_key

    limits = ("max_body_bytes", "max_prompt_tokens", "max_new_tokens", "max_running", "max_waiting", "request_seconds", "drain_seconds")
    settings = Settings(args.host, args.port, read_api_key(args.api_key_file), **{name: getattr(args, name) for name in limits})
    listening = open_socket(settings)  # a port in use is said before the model is loaded
    try:
        loaded = load_model(args)
        with spinner("getting the methods ready"):
            decoder, _ = choose_runtime(loaded, None, 1, "native", args.weights, args.threads)
            methods = Methods(loaded, args.select, args.budget or Budget.parse(DEFAULT_BUDGET))
        engine = Engine(loaded, decoder, settings)
        url = address(listening)

        def say() -> None:
            default = methods.default if methods.default == "dense" else f"{methods.default} at {methods.budget}"
            sys.stderr.write(f"sparsight: {loaded.name} in {decoder.format}, {default}; page at {url}/, OpenAI's interface at {url}/v1\n")
            sys.stderr.flush()

        serve(engine, Asks(loaded, methods, settings), listening, say)
    finally:
        listening.close()
    return 0
