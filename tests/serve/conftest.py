"""A server of the trained tiny model in bfloat16, in a thread, and clients for it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx2 as httpx
import openai
import pytest
import torch

from sparsight.models import LoadedModel, load
from sparsight.runtime import Budget, kept_decoder
from sparsight.serve import Engine, Methods, Settings
from sparsight.serve.asks import Asks
from sparsight.serve.server import Draining, address, make_server, open_socket

KEY = "a-key-of-the-tests-0123456789"
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{% endfor %}{{ bos_token if add_generation_prompt }}"


@pytest.fixture(scope="session")
def model(stories, shared_data) -> LoadedModel:
    """As `stories`, in bfloat16, whose prompts are read natively in pieces, and with a chat template."""
    loaded = load(shared_data / "stories260k", dtype=torch.bfloat16)
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return replace(loaded, tokenizer=tokenizer)


@dataclass
class Running:
    """A server that runs, and what it is made of."""

    url: str
    engine: Engine
    server: Draining
    model: str
    thread: threading.Thread

    def client(self, **settings) -> openai.OpenAI:
        """The official client, without its second tries."""
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **settings})

    def post(self, path: str, **arguments) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=60, **arguments)

    def get(self, path: str, **arguments) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=60, **arguments)


@pytest.fixture(scope="session")
def start(model) -> Callable:
    """Starts a server with some settings for a `with` block."""

    @contextmanager
    def starting(**settings) -> Iterator[Running]:
        chosen = Settings(port=0, **settings)
        engine = Engine(model, kept_decoder(model, None, 1), chosen)
        asks = Asks(model, Methods(model, [], Budget.parse("1/8")), chosen)
        listening, ready = open_socket(chosen), threading.Event()
        server = make_server(engine, asks, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        assert ready.wait(30)
        try:
            yield Running(address(listening), engine, server, asks.model, thread)
        finally:
            server.should_exit = True
            thread.join(30)
            engine.drain(0)
            assert engine.join(30)

    return starting


@pytest.fixture(scope="session")
def running(start) -> Iterator[Running]:
    """A server that all tests share."""
    with start(max_running=4) as found:
        yield found
