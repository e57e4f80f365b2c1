"""Clients that ask well and badly, go away in the middle, a server told to stop in the middle, and a fuzzer. Run by `make check-serve`."""

import random
from collections import Counter

import pytest
from benchmarks.serving.process import serving
from benchmarks.serving.stress import Case, Stress
from hypothesis import HealthCheck, given, settings, strategies

from sparsight.runtime import Budget, Plan, generate
from sparsight.tokens.pretrained import resolve

pytestmark = pytest.mark.fuzz

TEXT = "Once upon a time there was a girl called Lily. She had a red ball and a big dog. One day she went out. "


@pytest.fixture(scope="module")
def cases(model):
    chance, made = random.Random(1), []
    for seed in range(24):
        select, budget = chance.choice([("dense", None), ("quest", "48"), ("quest", "1/4"), ("streaming", "40")])
        prompt, new, temperature = TEXT * chance.randint(1, 6), chance.randint(2, 60), chance.choice([0, 0.7, 1.0])
        plan = None if budget is None else Plan(resolve(select, model), Budget.parse(budget))
        text = generate(model, prompt, plan, max_new_tokens=new, temperature=temperature, seed=seed).text
        own = {"select": select} if budget is None else {"select": select, "budget": budget}
        body = {"model": "stories260k", "prompt": prompt, "max_tokens": new, "temperature": temperature, "seed": seed, **own}
        made.append(Case(body, text))
    return made


@pytest.mark.parametrize("stop_after", [None, 250])
def test_eight_clients(cases, shared_data, stop_after):
    with serving(["--model", str(shared_data / "stories260k"), "--threads", "1"]) as server:
        found = Stress(server, cases, stop_after).run(8, 50)
        status, said = server.stop()
    print(dict(found.answers))
    assert (found.wrong, status, said) == ([], 0, "")
    assert sum(found.answers.values()) == 400 and found.answers["good 200"] > 50 and found.answers["leave gone"] > 20


def test_memory_stays(cases, shared_data):
    with serving(["--model", str(shared_data / "stories260k"), "--threads", "1"]) as server:
        Stress(server, cases).run(8, 50)
        before = server.memory
        Stress(server, cases).run(8, 125, seed=100)
        after = server.memory
    print(before, after)
    assert after < 1.05 * before


def test_a_fuzzer_finds_no_fault(running):
    """Requests made from the server's own description, at random and at its edges: no status of 500 or above, and errors in one shape."""
    import schemathesis

    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    statuses = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
        @given(case=operation.as_strategy(), served=strategies.booleans())
        def ask(case, served):
            if served and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = running.model  # of itself it hardly hits the one that is served
            answer = case.call(timeout=60)
            statuses[case.path, answer.status_code] += 1
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400 and answer.headers["content-type"] == "application/json":
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        ask()
    print(dict(statuses))
    assert sum(statuses.values()) > 500 and running.get("/health").status_code == 200
