"""`sparsight serve`: what it refuses in one line, and a server of its own process that SIGTERM ends."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("SPARSIGHT_API_KEY", raising=False)


def test_a_port_in_use_is_said_before_the_model_is_loaded(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refused("serve", "--model", "no-such-model", "--port", port)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--host", "0.0.0.0"], "needs an API key; set SPARSIGHT_API_KEY"),
        (["--host", "192.0.2.7", "--api-key-file", "{key}"], "cannot listen on 192.0.2.7"),
        (["--api-key-file", "no-such-file"], "cannot be read"),
        (["--port", "99999"], "port must be"),
        (["--max-running", "0"], "max-running"),
        (["--select", "nonsense"], "'nonsense'"),
        (["--select", "h2o"], "decodes natively"),
        (["--select", "foresight"], "no predictor of 'foresight' ships"),
        (["--budget", "3/2"], "budget"),
        (["--weights", "int3"], "--weights"),
    ],
)
def test_bad_settings_are_one_line(refused, byte_model, tmp_path, options, said):
    (tmp_path / "key").write_text("0123456789abcdef")
    options = [option.format(key=tmp_path / "key") for option in options]
    line = refused("serve", "--model", byte_model, "--port", 0, *options)
    assert said in line and "0123456789abcdef" not in line


def test_without_the_extra_it_says_what_to_install(refused, monkeypatch):
    usual = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "fastapi" else usual(name, *a))
    assert refused("serve") == "the server needs fastapi, which is not installed; run: pip install 'sparsight[serve]'"


def test_nothing_of_it_is_imported_by_other_verbs():
    heavy = ("fastapi", "uvicorn", "pydantic", "torch")
    code = f"import sys, sparsight.cli.main as m; m.build_parser(); print([n for n in {heavy} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_it_serves_until_sigterm(byte_model):
    command = [sys.executable, "-m", "sparsight", "serve", "--model", str(byte_model), "--port", "0", "--select", "quest", "--budget", "64"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            line = process.stderr.readline()
            url = re.search(r"quest at 64; page at (http://127\.0\.0\.1:\d+)/,", line)[1]
            body = json.dumps({"model": byte_model.name, "prompt": "Hello", "max_tokens": 3}).encode()
            asked = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
            assert json.load(urllib.request.urlopen(asked, timeout=60))["usage"]["completion_tokens"] == 3
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0 and process.stderr.read() == ""
        finally:
            process.kill()
