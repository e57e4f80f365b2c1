"""Each limit and each kind of bad input, answered with its status in OpenAI's shape; and nothing of it in the log."""

import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from .conftest import KEY

COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(autouse=True)
def quiet_log(caplog):
    yield
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def refused(answer, status, param=None, code=None):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "Traceback" not in error["message"]
    assert (error["param"], error["code"]) == (param, code), error
    return error["message"]


@pytest.mark.parametrize(
    "change, status, param, code",
    [
        ({"model": "gpt-4"}, 404, "model", "model_not_found"),
        ({"model": None}, 400, "model", "invalid_value"),
        ({"prompt": None}, 400, "prompt", "invalid_value"),
        ({"prompt": " \n"}, 400, "prompt", None),
        ({"prompt": []}, 400, "prompt", None),
        ({"prompt": ["a", "b"]}, 400, "prompt", None),
        ({"prompt": [1, 512]}, 400, "prompt", None),
        ({"prompt": [-1]}, 400, "prompt", None),
        ({"prompt": [True]}, 400, "prompt", "invalid_value"),
        ({"prompt": "word " * 600}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": "word " * 20000}, 400, "prompt", "context_length_exceeded"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**30}, 400, "max_tokens", None),
        ({"max_tokens": 512}, 400, "prompt", "context_length_exceeded"),
        ({"max_tokens": "8"}, 400, "max_tokens", "invalid_value"),
        ({"temperature": 2.5}, 400, "temperature", "invalid_value"),
        ({"temperature": float("nan")}, 400, "temperature", "invalid_value"),
        ({"temperature": 1e-9}, 400, "temperature", None),
        ({"top_p": 0}, 400, "top_p", "invalid_value"),
        ({"seed": -1}, 400, "seed", "invalid_value"),
        ({"seed": 2**63}, 400, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, 400, "stop", "invalid_value"),
        ({"stop": ""}, 400, "stop", "invalid_value"),
        ({"logprobs": 6}, 400, "logprobs", "invalid_value"),
        ({"n": 2}, 400, "n", None),
        ({"n": True}, 400, "n", None),
        ({"best_of": 3}, 400, "best_of", None),
        ({"echo": True}, 400, "echo", None),
        ({"suffix": "x"}, 400, "suffix", None),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", None),
        ({"logit_bias": {"1": 5}}, 400, "logit_bias", None),
        ({"nonsense": 1}, 400, "nonsense", "unknown_field"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", None),
        ({"select": "nonsense"}, 400, "select", "unknown_method"),
        ({"select": "quest=/etc/passwd"}, 400, "select", "unknown_method"),
        ({"select": "oracle"}, 400, "select", "unknown_method"),
        ({"budget": "1/8"}, 400, "budget", None),
        ({"select": "quest", "budget": 10}, 400, "budget", None),
        ({"select": "quest", "budget": "many"}, 400, "budget", None),
        ({"select": "quest", "budget": "3/2"}, 400, "budget", None),
        ({"select": "quest", "budget": 1e400}, 400, "budget", None),
    ],
)
def test_bad_requests_are_named(running, change, status, param, code):
    body = {key: value for key, value in {"model": running.model, "prompt": "Once", "max_tokens": 2, **change}.items() if value is not None}
    answer = running.post(COMPLETION, content=json.dumps(body), headers={"content-type": "application/json"})
    refused(answer, status, param, code)


@pytest.mark.parametrize(
    "change, param, code",
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.content.type", "invalid_value"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages", "context_length_exceeded"),
        ({"tools": [{"type": "function"}]}, "tools", None),
        ({"response_format": {"type": "json_object"}}, "response_format", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", None),
    ],
)
def test_bad_conversations_are_named(running, change, param, code):
    body = {"model": running.model, "messages": [{"role": "user", "content": "Once"}], **change}
    refused(running.post(CHAT, json=body), 400, param, code)


@pytest.mark.parametrize(
    "body, code",
    [
        (b"", None), (b"{", "invalid_json"), (b"[]", None), (b'"a"', None), (b"null", None), (b"\xff\xfe", None), (b"[" * 100_000, None),
        (b'{"model": "stories260k", "prompt": "\\ud800", "max_tokens": 1}', "invalid_value"),
        (b'{"model": "\\udfff", "prompt": "a"}', "invalid_value"),
        (b'{"model": "stories260k", "prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", None),
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(running, body, code):
    answer = running.post(COMPLETION, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert code is None or answer.json()["error"]["code"] == code


def test_addresses_and_methods(running):
    refused(running.get("/v1/nothing"), 404, None, "not_found")
    refused(running.get(COMPLETION), 405)
    refused(running.post(COMPLETION, content=b"{}", headers={"content-type": "text/plain"}), 415, None, "unsupported_media_type")
    refused(running.get("/v1/readings/none"), 404, "answer", "reading_not_found")
    refused(running.get("/v1/readings/none/x"), 400, "token", "invalid_value")
    assert running.get("/docs").status_code == 404


def test_another_host_name_is_refused_without_a_key(running):
    """A page of another site whose name is made to point here."""
    refused(running.get("/v1/models", headers={"host": "evil.example:8000"}), 403, None, "host_not_allowed")
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:9", "[::1]"):
        assert running.get("/v1/models", headers={"host": host}).status_code == 200


def test_every_answer_forbids_other_hosts(running):
    for path in ("/", "/v1/models", "/nothing"):
        headers = running.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_the_key(start, caplog):
    with start(api_key=KEY) as running:
        for headers in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": "Bearer"}, {"authorization": f"Basic {KEY}"}):
            for answer in (running.get("/v1/models", headers=headers), running.get("/metrics", headers=headers)):
                assert KEY not in refused(answer, 401, None, "invalid_api_key") and answer.headers["www-authenticate"] == "Bearer"
        assert running.post(COMPLETION, content=b"x" * 2**22).status_code == 401  # before anything of it is read
        assert running.get("/").status_code == running.get("/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            running.client().models.list()
        assert running.client(api_key=KEY).models.list().data[0].id == running.model
        assert running.get("/v1/models", headers={"authorization": f"Bearer {KEY}", "host": "any.example"}).status_code == 200
    assert KEY not in caplog.text


def test_a_body_that_is_too_large(start):
    with start(max_body_bytes=5000) as running:
        body = json.dumps({"model": running.model, "prompt": "word " * 2000}).encode()
        headers = {"content-type": "application/json"}
        refused(running.post(COMPLETION, content=body, headers=headers), 413, None, "request_too_large")
        chunked = (body[i : i + 1000] for i in range(0, len(body), 1000))  # without a content length
        refused(running.post(COMPLETION, content=chunked, headers=headers), 413, None, "request_too_large")
        small = json.dumps({"model": running.model, "prompt": "word", "max_tokens": 1}).encode()
        assert running.post(COMPLETION, content=iter([small]), headers=headers).status_code == 200


def test_limits_of_tokens(start):
    with start(max_prompt_tokens=20, max_new_tokens=10) as running:
        refused(running.post(COMPLETION, json={"model": running.model, "prompt": [5] * 21}), 400, "prompt", "context_length_exceeded")
        refused(running.post(COMPLETION, json={"model": running.model, "prompt": "a", "max_tokens": 11}), 400, "max_tokens")
        chat = running.post(CHAT, json={"model": running.model, "messages": [{"role": "user", "content": "a"}], "seed": 0}).json()
        assert chat["usage"]["completion_tokens"] <= 10


def test_a_body_that_comes_too_slowly(start):
    with start(body_seconds=0.2) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as link:
            link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            link.settimeout(20)
            answer = b"".join(iter(lambda: link.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408") and b'"request_timeout"' in answer


def slow_steps(engine, monkeypatch, seconds):
    usual = engine.decoder.step
    monkeypatch.setattr(engine.decoder, "step", lambda *a, **k: (time.sleep(seconds), usual(*a, **k))[1])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(start, monkeypatch, stream):
    with start(request_seconds=0.15) as running:
        slow_steps(running.engine, monkeypatch, 0.02)
        body = {"model": running.model, "prompt": "Once", "max_tokens": 400, "temperature": 0, "stream": stream}
        answer = running.post(COMPLETION, json=body)
        if not stream:
            refused(answer, 504, None, "timeout")
        else:  # text was on its way already
            assert answer.status_code == 200 and "[DONE]" not in answer.text
            assert json.loads(answer.text.strip().rpartition("data: ")[2])["error"]["code"] == "timeout"
        assert running.engine.load == (0, 0)


def test_more_at_once_than_there_may_be(start, monkeypatch):
    with start(max_running=1, max_waiting=1) as running, ThreadPoolExecutor(6) as pool:
        slow_steps(running.engine, monkeypatch, 0.02)
        body = {"model": running.model, "prompt": "Once", "max_tokens": 8, "temperature": 0}
        answers = list(pool.map(lambda _: running.post(COMPLETION, json=body), range(6)))
        good = [answer.json()["choices"][0]["text"] for answer in answers if answer.status_code == 200]
        busy = [answer for answer in answers if answer.status_code == 429]
        assert len(good) >= 2 and len(good) + len(busy) == 6 and busy and len(set(good)) == 1
        refused(busy[0], 429, None, "too_many_requests")
        assert busy[0].headers["retry-after"] == "1"
        assert running.post(COMPLETION, json=body).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_frees_the_place(start, monkeypatch, stream):
    with start(max_running=1) as running:
        slow_steps(running.engine, monkeypatch, 0.01)
        host, port = running.url.removeprefix("http://").split(":")
        body = json.dumps({"model": running.model, "prompt": "Once", "max_tokens": 500, "temperature": 0, "stream": stream}).encode()
        head = f"POST {COMPLETION} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n"
        with socket.create_connection((host, int(port))) as link:
            link.sendall(head.encode() + body)
            while running.engine.load[0] == 0 or running.engine.tally.new_tokens < 3:
                time.sleep(0.005)
        until = time.monotonic() + 10
        while running.engine.load != (0, 0) and time.monotonic() < until:
            time.sleep(0.005)
        assert running.engine.load == (0, 0) and running.engine.tally.cancelled == 1 and running.engine.tally.new_tokens < 400
        assert running.post(COMPLETION, json={"model": running.model, "prompt": "Once", "max_tokens": 2}).status_code == 200


def test_a_server_told_to_stop_finishes_what_runs(start, monkeypatch):
    with start() as running, ThreadPoolExecutor(2) as pool:
        slow_steps(running.engine, monkeypatch, 0.02)
        body = {"model": running.model, "prompt": "Once", "max_tokens": 30, "temperature": 0}
        late = pool.submit(running.post, COMPLETION, json=body)
        while running.engine.tally.new_tokens < 3:
            time.sleep(0.005)
        running.server.handle_exit(15, None)
        while not running.engine.draining:
            time.sleep(0.005)
        refused(running.get("/health"), 503, None, "server_stopping")
        refused(running.post(COMPLETION, json=body), 503, None, "server_stopping")
        answer = late.result()
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 30
        running.thread.join(20)
        assert not running.thread.is_alive()


def test_figures(running):
    running.post(COMPLETION, json={"model": running.model, "prompt": "Once", "max_tokens": 5, "temperature": 0})
    answer = running.get("/metrics")
    found = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert float(found["sparsight_new_tokens_total"]) >= 5 and float(found['sparsight_requests_total{outcome="finished"}']) >= 1
    assert {"sparsight_tokens_per_second", "sparsight_requests_waiting", "sparsight_budget_tokens", "sparsight_cached_tokens"} <= set(found)
    assert running.get("/health").json() == {"status": "ok"}
