"""The native step whatever runs it: any level of instruction sets, any number of threads, a process that has forked."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from tests.ops.test_native import LEVELS

from sparsight.errors import ConfigError, SparsightError
from sparsight.ops import native
from sparsight.runtime import Budget, Plan, Rule
from sparsight.runtime.decoder import Decoder

PROMPT = "Once upon a time, there was a little girl named Lily. She loved to"
FORMATS = ("fp32", "bf16", "int8", "int4")


@pytest.fixture(autouse=True)
def level_of_the_machine(monkeypatch):
    monkeypatch.delenv(native.VARIABLE, raising=False)


@pytest.fixture(scope="module")
def prompt(stories):
    return stories.tokenizer(PROMPT)["input_ids"]


@pytest.fixture(scope="module")
def plan(stories, ready_selector):
    return Plan(ready_selector("quest", stories, page_size=4), Budget.parse(20), Rule(sinks=2, window=4))


def decode(decoder, prompt, steps=12, plan=None, copies=1):
    """Greedy tokens of one sequence, and the logits of all steps, of `copies` sequences that hold the same."""
    sequences = [decoder.new_sequence() for _ in range(copies)]
    token = [int(decoder.prefill(sequence, prompt).argmax()) for sequence in sequences][0]
    tokens, logits = [token], []
    for _ in range(steps):
        step = decoder.step(sequences, [token] * copies, plan)
        token = step.best[0]
        tokens.append(token)
        logits.append(step.logits)
    return tokens, np.stack(logits)


@pytest.mark.parametrize("format", FORMATS)
def test_any_number_of_threads_gives_the_same_bits(stories, prompt, plan, format):
    for used in (None, plan):
        for copies in (1, 3):
            runs = [decode(Decoder(stories, format, threads), prompt, 6, used, copies) for threads in (1, 2, 3)]
            for tokens, logits in runs[1:]:
                assert tokens == runs[0][0]
                assert np.array_equal(logits, runs[0][1])


def test_threads_that_slept_wake_up(stories, prompt):
    expected = decode(Decoder(stories, threads=1), prompt)[0]
    decoder = Decoder(stories, threads=3)
    sequence = decoder.new_sequence()
    tokens = [int(decoder.prefill(sequence, prompt).argmax())]
    for _ in range(6):
        time.sleep(0.03)
        tokens += decoder.step([sequence], tokens[-1:]).best
    assert tokens == expected[:7]


def test_two_callers_share_a_pool(stories, prompt):
    decoders = [Decoder(stories, threads=2) for _ in range(2)]
    expected = decode(decoders[0], prompt)[0]
    found = [[], []]
    callers = [threading.Thread(target=lambda i=i: found[i].extend(decode(decoders[i], prompt)[0])) for i in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert found == [expected, expected]


def in_a_child(work, seconds=30):
    """Fork, let the child do `work`, and give its exit status; None if it took longer."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(2)
    for _ in range(seconds * 100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("asleep", [True, False])
def test_a_pool_survives_a_fork(stories, prompt, asleep):
    decoder = Decoder(stories, threads=3)
    sequence = decoder.new_sequence()
    token = int(decoder.prefill(sequence, prompt).argmax())
    expected = decode(decoder, prompt)[0][1:]

    def go_on():
        found = [token]
        for _ in range(5):
            found += decoder.step([sequence], found[-1:]).best
            time.sleep(0.03)  # long enough for the threads to sleep
        return found[1:] == expected[:5]

    decoder.step([decoder.new_sequence()], [1])
    if asleep:
        time.sleep(0.1)
    for _ in range(2):
        assert in_a_child(go_on) == 0
    assert in_a_child(lambda: in_a_child(go_on) == 0) == 0  # and one that forks again
    assert go_on()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_pool_that_came_with_a_fork_can_be_let_go(stories):
    pool = native.need_library().Pool(3)
    assert native.need_library().read_bandwidth("portable", pool, 1 << 20, 1) > 0
    time.sleep(0.1)
    held = [pool]
    del pool

    def let_go():
        held.clear()
        return True

    assert in_a_child(let_go, 10) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_forced(stories, prompt, plan, monkeypatch, level):
    expected = [decode(Decoder(stories, threads=1), prompt, 30, used) for used in (None, plan)]
    monkeypatch.setenv(native.VARIABLE, f" {level.upper()} ")
    decoder = Decoder(stories, threads=1)
    assert decoder.level == native.level() == level
    for (tokens, logits), used in zip(expected, (None, plan), strict=True):
        found = decode(decoder, prompt, 30, used)
        assert found[0] == tokens
        np.testing.assert_allclose(found[1], logits, rtol=1e-4, atol=1e-4)


def test_levels_round_integers_alike(stories, prompt, monkeypatch):
    for format in ("int8", "int4"):
        runs = []
        for level in LEVELS:
            monkeypatch.setenv(native.VARIABLE, level)
            runs.append(decode(Decoder(stories, format, threads=1), prompt, 4)[1])
        for other in runs[1:]:
            # A sum that differs in its last bit may be rounded to the next of 127 steps.
            assert np.abs(other - runs[0]).max() < 0.05 * np.abs(runs[0]).max()


def test_the_best_level_is_the_default():
    assert native.level() == native.levels()[-1]
    assert native.levels()[0] == "portable"


@pytest.mark.parametrize("name", ["sse9", "avx2,avx512", "AVX-512"])
def test_an_unknown_level_is_a_configuration_error(stories, monkeypatch, name):
    monkeypatch.setenv(native.VARIABLE, name)
    with pytest.raises(ConfigError, match=f"{native.VARIABLE}={name.lower()} is not a level") as caught:
        Decoder(stories)
    assert isinstance(caught.value, SparsightError)
    assert "\n" not in str(caught.value) and "portable" in str(caught.value)


def test_without_the_library_it_says_so(stories, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(ConfigError, match="the native library is not built; install sparsight again"):
        native.levels()


def test_logits_are_finite_or_refused(stories, prompt):
    decoder = Decoder(stories, threads=1)
    sequence = decoder.new_sequence()
    decoder.prefill(sequence, prompt)
    for store in sequence.stores[:1]:
        store.values[:] = torch.nan
    with pytest.raises(SparsightError, match="NaN logits"):
        decoder.step([sequence], [1])
