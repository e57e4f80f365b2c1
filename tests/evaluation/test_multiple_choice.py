"""Multiple-choice tasks: local rows, and that prompts, log-likelihoods and accuracies are those of lm-evaluation-harness."""

import gzip
import importlib.util
import json
import logging
import random
import re
import sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import pytest
import torch

from sparsight.errors import ConfigError, ModelError, TextError
from sparsight.evaluation.tasks.multiple_choice import ITEMS_AT_ONCE, TASKS, multiple_choice, paired_difference
from sparsight.evaluation.tasks.multiple_choice_rows import FIELDS, read_rows

LOCAL = ("piqa", "copa", "openbookqa", "winogrande", "rte", "arc_easy")
WITH_NORM = {"piqa", "openbookqa", "hellaswag", "arc_easy"}
CONTEXT = 512

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed: sparsight[eval]"
)


def good_row(task: str, i: int) -> dict:
    """A row with its number in the question; the right choice changes from row to row."""
    right = i // 2 % 2
    choices = {"text": ["red", "blue"], "label": ["A", "B"]}
    return {
        "piqa": {"goal": f"number {i}.", "sol1": "red", "sol2": "blue", "label": right},
        "copa": {
            "premise": f"number {i}.",
            "choice1": "Red.",
            "choice2": "Blue.",
            "question": "cause",
            "label": right,
        },
        "openbookqa": {"question_stem": f"number {i}.", "choices": choices, "answerKey": "AB"[right]},
        "winogrande": {
            "sentence": f"number {i}. _ is it",
            "option1": "red",
            "option2": "blue",
            "answer": "12"[right],
        },
        "rte": {"sentence1": f"number {i}.", "sentence2": "red", "label": right},
        "hellaswag": {
            "activity_label": f"number {i}.",
            "ctx_a": "it",
            "ctx_b": "is",
            "endings": ["red", "blue [step]"],
            "label": "01"[right],
        },
        "arc_easy": {"question": f"number {i}.", "choices": choices, "answerKey": "AB"[right]},
    }[task]


@pytest.fixture
def folder(tmp_path):
    """Twenty rows of each of the seven tasks."""
    for task in TASKS:
        lines = [json.dumps({**good_row(task, i), "idx": i}) for i in range(20)]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


class Letters:
    """A tokenizer whose tokens are letters, with a start token."""

    bos_token_id, eos_token_id = 1, None

    def __call__(self, text, verbose, add_special_tokens=True):
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    def decode(self, ids):
        return "".join("<s>" if i == 1 else chr(i) for i in ids)


class Recorder:
    """A score that keeps what it was asked, as text, and prefers answers by their hash."""

    def __init__(self):
        self.calls = []

    def __call__(self, requests):
        self.calls.append([(Letters().decode(c), Letters().decode(k)) for c, k in requests])
        return [(random.Random(f"{c}{k}").uniform(-9, 0), False) for c, k in requests]

    @property
    def asked(self):
        return [request for call in self.calls for request in call]


def dense(loaded):
    """The model itself as a score, one request at a time."""

    def score(requests):
        scores = []
        for context, continuation in requests:
            ids, targets = torch.tensor([context + continuation[:-1]]), torch.tensor(continuation)
            with torch.no_grad():
                logprobs = loaded.model(ids).logits[0, -len(targets) :].float().log_softmax(-1)
            greedy = bool((logprobs.argmax(-1) == targets).all())
            scores.append((float(logprobs.gather(1, targets[:, None]).sum()), greedy))
        return scores

    return score


# Rows


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("packed", [False, True])
def test_even_rows_are_examples_and_odd_rows_are_reported(task, packed, folder):
    if packed:
        path = folder / f"{task}.jsonl"
        (folder / f"{task}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    rows = read_rows(folder, task)
    assert rows.examples == [good_row(task, i) for i in range(0, 20, 2)]
    assert rows.reported == [good_row(task, i) for i in range(1, 20, 2)]
    assert set(rows.examples[0]) == set(FIELDS[task])


@pytest.mark.parametrize("task", LOCAL)
def test_the_shared_files_are_good(task, shared_data):
    rows = read_rows(shared_data / "multiple_choice", task)
    assert len(rows.examples) - len(rows.reported) in (0, 1) and len(rows.reported) >= 50


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("piqa", {"goal": None}, "line 2 has no goal; a row needs goal, sol1, sol2, label"),
        ("piqa", {"label": 2}, "line 2: label should be one of 0, 1, got 2"),
        ("piqa", {"label": True}, "label should be one of 0, 1, got true"),
        ("piqa", {"label": "1"}, 'label should be one of 0, 1, got "1"'),
        ("piqa", {"sol1": " "}, 'sol1 should be text, got " "'),
        ("piqa", {"sol1": "\ud800"}, "sol1 should be text"),
        ("copa", {"question": "why"}, 'question should be one of "cause", "effect", got "why"'),
        ("openbookqa", {"answerKey": "C"}, 'answerKey should be one of "A", "B", got "C"'),
        ("arc_easy", {"choices": ["red", "blue"]}, "choices should be {"),
        ("arc_easy", {"choices": {"text": ["red", "blue"], "label": ["A", "B", "C"]}}, "of equal lengths"),
        ("arc_easy", {"choices": {"text": ["red"], "label": ["A"]}}, "choices should be {"),
        ("winogrande", {"sentence": "no blank"}, "sentence should be text with a _"),
        ("winogrande", {"answer": 1}, 'answer should be one of "1", "2", got 1'),
        ("hellaswag", {"endings": "red"}, "endings should be a list of two texts or more"),
        ("hellaswag", {"label": "2"}, 'label should be one of "0", "1", got "2"'),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(task, change, message, folder):
    row = {k: v for k, v in {**good_row(task, 1), **change}.items() if v is not None}
    path = folder / f"{task}.jsonl"
    path.write_text("\n".join(map(json.dumps, [good_row(task, 0), row])), encoding="utf-8")
    with pytest.raises(TextError, match=re.escape(message)) as error:
        multiple_choice(Recorder(), Letters(), CONTEXT, [task], data=folder)
    assert str(error.value).startswith(f"{path} line 2") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("piqa.jsonl", b'{"goal": \n', "line 1 is not a JSON object"),
        ("piqa.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("piqa.jsonl", b"[" * 100_000, "line 1 is not a JSON object"),
        ("piqa.jsonl", b'{"goal": "\xff"}', "line 1 is not UTF-8"),
        ("piqa.jsonl", b"", "holds 0 rows"),
        ("piqa.jsonl", json.dumps(good_row("piqa", 0)).encode(), "holds 1 rows"),
        ("piqa.jsonl.gz", b"{}", "is not a whole gzip file"),
        ("piqa.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9], "is not a whole gzip file"),
        ("copa.jsonl", b"", "has no piqa.jsonl or piqa.jsonl.gz"),
    ],
)
def test_a_bad_file_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=re.escape(message)) as error:
        read_rows(tmp_path, "piqa")
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_a_line_separator_inside_a_string_is_no_new_line(tmp_path):
    rows = [{**good_row("piqa", i), "goal": "one\u2028two"} for i in range(2)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "piqa.jsonl").write_text(lines, encoding="utf-8")
    assert read_rows(tmp_path, "piqa").reported == rows[1:]


def test_without_a_folder_of_files_the_error_says_so(tmp_path):
    with pytest.raises(TextError, match="nowhere is not a folder"):
        read_rows(tmp_path / "nowhere", "piqa")


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["boolq"]}, "tasks must be of piqa, .*, got 'boolq'"),
        ({"tasks": []}, "got none"),
        ({"tasks": ["piqa", "piqa"]}, "name piqa more than once"),
        ({"shots": -1}, "shots must be 0 or more, got -1"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"context_length": 1}, "context length must be 2 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message, folder):
    with pytest.raises(ConfigError, match=message):
        multiple_choice(Recorder(), Letters(), **{"context_length": CONTEXT, "data": folder, **settings})


def test_without_the_extra_the_error_says_what_to_install(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"need lm-evaluation-harness .*; install sparsight\[eval\]"):
        multiple_choice(Recorder(), Letters(), CONTEXT, ["piqa"], data=folder)


def test_a_paired_difference_counts_items_where_the_two_differ():
    a, b = [True, True, False, True] * 10, [True, False, False, True] * 10
    difference, (low, high) = paired_difference(a, b)
    assert difference == 0.25 and 0.1 < low < 0.25 < high < 0.4
    assert paired_difference(b, a)[0] == -0.25
    assert paired_difference(a, a) == (0, (0, 0))
    with pytest.raises(ConfigError, match="got 40 and 39"):
        paired_difference(a, b[1:])
    with pytest.raises(ConfigError, match="got 0 and 0"):
        paired_difference([], [])


# With the harness


@needs_harness
@pytest.mark.parametrize("shots", [0, 3])
def test_examples_are_even_rows_and_reported_items_odd_rows(shots, folder):
    for task in TASKS:
        recorder = Recorder()
        multiple_choice(recorder, Letters(), 10_000, [task], shots, folder)
        numbers = [list(map(int, re.findall(r"number (\d+)", context))) for context, _ in recorder.asked]
        assert [n[-1] for n in numbers] == [i for i in range(1, 20, 2) for _ in range(2)], task
        examples = [n[:-1] for n in numbers]
        assert all(len(set(e)) == shots and all(i % 2 == 0 for i in e) for e in examples), task
        assert len({i for e in examples for i in e}) == (10 if shots else 0), f"{task}: not all examples come up"


@needs_harness
def test_each_metric_is_a_row_and_says_what_made_it(folder):
    rows = multiple_choice(Recorder(), Letters(), CONTEXT, data=folder, seed=3)
    assert {(r["task"], r["metric"]) for r in rows} == {(t, "acc") for t in TASKS} | {
        (t, "acc_norm") for t in WITH_NORM
    }
    for row in rows:
        assert row["items"] == len(row["correct"]) == 10 and {type(c) for c in row["correct"]} == {bool}
        assert row["value"] == pytest.approx(sum(row["correct"]) / 10) and row["ci"][0] < row["value"] < row["ci"][1]
        assert row["stderr"] == pytest.approx((row["value"] * (1 - row["value"]) / 9) ** 0.5)
        assert (row["chance"], row["shots"], row["seed"], row["truncated"]) == (0.5, 0, 3, 0)
        assert row["data_sha256"] == read_rows(folder, row["task"]).sha256
    json.dumps(rows)


@needs_harness
def test_the_right_choice_counts_as_right_and_the_wrong_one_as_wrong(folder):
    """A score that knows the answers: the blue choice, which is right in each second pair of rows, or `False` in `rte`."""

    def score(requests):
        texts = [(Letters().decode(c), Letters().decode(k)) for c, k in requests]
        # The choice of `winogrande` ends the context.
        return [(0.0 if re.search("blue|Blue|False", f"{c.split()[-1]}{k}") else -9.0, False) for c, k in texts]

    for row in multiple_choice(score, Letters(), CONTEXT, data=folder):
        assert row["correct"] == [bool(i // 2 % 2) for i in range(1, 20, 2)], row["task"]


@needs_harness
def test_the_same_seed_gives_the_same_and_a_limit_only_leaves_out(folder):
    def asked(**settings):
        recorder = Recorder()
        multiple_choice(recorder, Letters(), CONTEXT, ["copa"], shots=2, data=folder, **settings)
        return recorder.asked

    everything = asked()
    state = random.getstate()
    assert asked() == everything and asked(seed=1) != everything
    assert asked(limit=4) == everything[:8]
    assert random.getstate() == state


@needs_harness
def test_choices_of_an_item_come_in_one_call_and_progress_counts_items(folder):
    recorder, steps = Recorder(), []
    multiple_choice(
        recorder, Letters(), CONTEXT, ["piqa", "rte"], data=folder, progress=lambda *step: steps.append(step)
    )
    assert [len(call) for call in recorder.calls] == [2 * ITEMS_AT_ONCE, 4] * 2
    assert all(len({context for context, _ in call}) == len(call) // 2 for call in recorder.calls)
    assert steps == [(0, 20, "piqa"), (8, 20, "piqa"), (10, 20, "rte"), (18, 20, "rte"), (20, 20, "")]


@needs_harness
def test_nothing_is_printed_and_loggers_are_left_as_they_were(folder, capfd):
    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets")}
    multiple_choice(Recorder(), Letters(), 40, shots=1, data=folder)
    assert capfd.readouterr() == ("", "")
    assert {name: logging.getLogger(name).level for name in levels} == levels


@needs_harness
@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda requests: [(0.0, True)], ModelError, "16 requests were to be scored, 1 scores came"),
        (lambda requests: [(float("nan"), True)] * len(requests), ModelError, "NaN log-probabilities"),
    ],
)
def test_a_bad_score_is_refused(score, error, message, folder):
    with pytest.raises(error, match=message):
        multiple_choice(score, Letters(), CONTEXT, ["piqa"], data=folder)


@needs_harness
def test_too_few_rows_for_the_examples_and_no_network_are_said(folder):
    with pytest.raises(TextError, match="piqa has 10 rows for few-shot examples, 11 were asked for"):
        multiple_choice(Recorder(), Letters(), CONTEXT, ["piqa"], shots=11, data=folder)
    with pytest.raises(TextError, match="cannot be fetched from the hub .* --tasks-data"):
        multiple_choice(Recorder(), Letters(), CONTEXT, ["piqa"])


@needs_harness
def test_an_answer_longer_than_the_context_is_refused(folder):
    with pytest.raises(TextError, match="the answer ' red' is 4 tokens, 1 to 3 can be scored"):
        multiple_choice(Recorder(), Letters(), 3, ["piqa"], data=folder)


@needs_harness
def test_a_tokenizer_without_start_and_end_is_refused(folder):
    tokenizer = Letters()
    tokenizer.bos_token_id = None
    with pytest.raises(ModelError, match="neither a start nor an end token"):
        multiple_choice(Recorder(), tokenizer, CONTEXT, ["piqa"], data=folder)


@needs_harness
def test_only_given_answers_are_scored():
    from sparsight.evaluation.tasks.harness import Scorer

    scorer = Scorer(Recorder(), Letters(), CONTEXT)
    for call in (scorer.loglikelihood_rolling, scorer.generate_until):
        with pytest.raises(ConfigError, match="scores given answers only"):
            call([])


@pytest.fixture(scope="module")
def hflm(stories):
    """The harness's own way to run the model."""
    pytest.importorskip("lm_eval")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("accelerate") is None:
            # It is imported for models on several GPUs and not used for one that is already loaded.
            for name in ("accelerate", "accelerate.utils"):
                patch.setitem(sys.modules, name, MagicMock(__spec__=ModuleSpec(name, None)))
        huggingface = importlib.import_module("lm_eval.models.huggingface")
    return huggingface.HFLM(pretrained=stories.model, tokenizer=stories.tokenizer, batch_size=1, max_length=CONTEXT)


def test_log_likelihoods_are_the_harness_s_own(stories, hflm):
    from lm_eval.api.instance import Instance

    from sparsight.evaluation.tasks.harness import Scorer

    pairs = [
        ("Once upon a time there was a", " little girl named Lily."),
        ("Once upon a time there was a little", " girl"),
        ("Once upon a time, ", "there was a dog."),
        ("Question: Who?\nAnswer: \n", " the cat"),
        ("", "Once upon a time"),
        ("", "<s>Once upon a time"),
        ("<s>Once upon a time", " there was"),
        ("The dog ran to the park. " * 100, " It was fun."),
        ("The dog", " ran to the park." * 60),
    ]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    scorer = Scorer(dense(stories), stories.tokenizer, CONTEXT)
    ours, theirs = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (scorer, hflm))
    assert [s for s, _ in ours] == pytest.approx([s for s, _ in theirs], rel=1e-5)
    assert [g for _, g in ours] == [g for _, g in theirs] and {g for _, g in ours} == {False, True}
    assert scorer.truncated == 1


@pytest.mark.parametrize("shots", [0, 2])
def test_results_are_the_harness_s_own(shots, stories, shared_data, hflm):
    from lm_eval.evaluator import evaluate

    from sparsight.evaluation.tasks.harness import load_tasks, quiet

    data = shared_data / "multiple_choice"
    local = {task: read_rows(data, task) for task in LOCAL}
    with quiet():
        tasks = load_tasks(LOCAL, local, shots, seed=0)
        theirs = evaluate(hflm, {"tasks": tasks, "groups": {}}, limit=6)
    rows = multiple_choice(dense(stories), stories.tokenizer, CONTEXT, LOCAL, shots, data, limit=6)
    assert {row["task"] for row in rows} == set(LOCAL)
    for row in rows:
        samples = theirs["samples"][row["task"]]
        assert row["correct"] == [bool(s[row["metric"]]) for s in samples], row["task"]
        assert row["value"] == pytest.approx(theirs["results"][row["task"]][f"{row['metric']},none"])
        assert row["stderr"] == pytest.approx(theirs["results"][row["task"]][f"{row['metric']}_stderr,none"])
        assert [s["doc"] for s in samples] == local[row["task"]].reported[:6]
    assert (sum(row["truncated"] for row in rows) > 0) == (shots > 0)
