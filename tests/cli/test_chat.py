"""`sparsight chat`: turns from standard input, answers on standard output."""

import io
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from sparsight.cli import chat as verb
from sparsight.models import load
from sparsight.runtime.conversation import Conversation

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="session")
def chat_model(byte_model, tmp_path_factory):
    """The model of bytes with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(byte_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def say(sparsight, chat_model, monkeypatch):
    """Runs the verb on bytes of standard input."""

    def run(data: bytes, *arguments: object):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
        return sparsight("chat", "--model", chat_model, "--dtype", "fp32", "--max-new-tokens", 12, *arguments)

    return run


def expected(folder, turns, system=None, **settings) -> list[str]:
    talk = Conversation(load(folder, dtype=torch.float32), system=system)
    return [talk.say(turn, max_new_tokens=12, **settings).text for turn in turns]


def printed(answers) -> str:
    return "".join(text + ("" if text.endswith("\n") else "\n") for text in answers)


def test_each_line_is_a_turn_of_one_conversation(say, chat_model, monkeypatch):
    reused = []
    usual = Conversation.say

    def recorded(self, *arguments, **settings):
        made = usual(self, *arguments, **settings)
        reused.append(made.reused_tokens)
        return made

    answers = expected(chat_model, ["Hello", "And then?"])
    monkeypatch.setattr(Conversation, "say", recorded)
    assert say(b"Hello\n\n  \nAnd then?\n") == (0, printed(answers), "")
    assert reused[0] == 0 and reused[1] > 10


def test_settings_reach_the_conversation(say, chat_model):
    answers = expected(chat_model, ["Hello"], system="Be brief.", temperature=0.9, seed=4)
    options = ["--system", "Be brief.", "--temperature", 0.9, "--seed", 4]
    assert say(b"Hello", *options) == (0, printed(answers), "")
    assert say(b"Hello")[1] != printed(answers)


def test_reset_starts_over_and_exit_ends(say, chat_model):
    (answer,) = expected(chat_model, ["Hello"])
    assert say(b"Hello\r\n/reset\nHello\n /exit \nHello\n") == (0, printed([answer, answer]), "")


def test_a_method_reads_less(say, monkeypatch):
    shares = []
    usual = Conversation.say

    def recorded(self, *arguments, **settings):
        made = usual(self, *arguments, **settings)
        shares.append(made.share_read)
        return made

    monkeypatch.setattr(Conversation, "say", recorded)
    code, _, err = say(
        b"Hello, this is a long line to answer, longer than the budget.\n", "--select", "quest", "--budget", "40"
    )
    assert (code, err) == (0, "") and shares[0] < 0.7


def test_text_appears_in_pieces(chat_model, monkeypatch, sparsight):
    flushes = []
    monkeypatch.setattr(verb, "sys", SimpleNamespace(
        stdin=SimpleNamespace(buffer=io.BytesIO(b"a b c\n"), isatty=lambda: False), stderr=sys.stderr,
        stdout=SimpleNamespace(write=lambda text: None, flush=lambda: flushes.append(1)),
    ))  # fmt: skip
    assert sparsight("chat", "--model", chat_model, "--max-new-tokens", 60)[0] == 0
    assert len(flushes) >= 2


@pytest.mark.parametrize(
    "data, arguments, said",
    [
        (b"", [], "standard input is empty"),
        (b"caf\xe9\n", [], "line 1 of standard input is not UTF-8, byte 0xe9 at offset 3"),
        (b"\n\n\xff\n", [], "line 3 of standard input"),
        (b"x" * 600, [], "the conversation has"),
        (b"x\n", ["--temperature", "-1"], "temperature"),
        (b"x\n", ["--max-new-tokens", "0"], "max-new-tokens"),
        (b"x\n", ["--top-p", "2"], "top-p"),
        (b"x\n", ["--budget", "1/8"], "--select"),
        (b"x\n", ["--select", "nonsense"], "'nonsense'"),
        (b"x\n", ["--prompt", "x"], "--prompt"),
    ],
)
def test_bad_input_is_one_line(say, data, arguments, said):
    code, out, err = say(data, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("sparsight: error: ") and said in err


def test_a_model_without_a_chat_template_is_refused(refused, byte_model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\n"))
    assert "no chat template" in refused("chat", "--model", byte_model)


def test_a_line_that_is_too_long_is_refused(say, monkeypatch):
    monkeypatch.setattr("sparsight.cli.generate.LARGEST_PROMPT", 2**20)
    monkeypatch.setattr(verb, "LARGEST_PROMPT", 2**20)
    code, _, err = say(b"word " * 2**18)
    assert code == 2 and "more than 1 MiB" in err


def test_at_a_terminal_an_error_does_not_end_the_conversation(sparsight, chat_model, monkeypatch, capsys):
    lines = iter(["x" * 600, "Hello"])
    markers = []

    def typed(marker):
        markers.append(marker)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    (answer,) = expected(chat_model, ["Hello"])
    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = sparsight("chat", "--model", chat_model, "--dtype", "fp32", "--max-new-tokens", 12)
    assert (code, out) == (0, printed([answer]) + "\n") and markers == ["> "] * 3
    assert "error: the conversation has" in err and "/reset" in err
