"""Tasks of lm-evaluation-harness whose answers are written, under plans; the harness's tasks themselves need a network, so one is made here."""

import json

import pytest

import sparsight
from sparsight.errors import ConfigError
from sparsight.runtime import Budget, Plan
from sparsight.tokens import Geometry, create

pytest.importorskip("lm_eval")

TASK = """task: story_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 12}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. " * 3


@pytest.fixture
def folder(stories, tmp_path):
    """A task that the dense model always gets right: to write what it writes."""
    prompts = [STORY + text for text in ("One day, she", "Her mom", "Lily saw a big")]
    dense = [sparsight.generate(stories, prompt, max_new_tokens=12, runtime="hf").text.split(".")[0] for prompt in prompts]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": p, "answer": a}) + "\n" for p, a in zip(prompts, dense, strict=True)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "story_word.yaml").write_text(TASK.format(file=file))
    return tmp_path / "tasks"


def test_each_method_is_scored_beside_dense(stories, folder):
    from sparsight.evaluation.tasks.generating import written_tasks

    geometry = Geometry.of(stories.anatomy)
    methods = [("streaming", create("streaming", geometry), Budget(64)), ("snapkv", create("snapkv", geometry), Budget(64))]
    rows = written_tasks(stories, methods, ["story_word"], folder=str(folder))
    assert [(row["method"], row["budget"]) for row in rows] == [("dense", "full"), ("streaming", "64"), ("snapkv", "64")]
    assert rows[0]["value"] == 1.0 and all(row["metric"] == "exact_match" and row["items"] == 3 for row in rows)
    assert written_tasks(stories, [], ["story_word"], limit=2, folder=str(folder))[0]["items"] == 2


def test_the_first_token_of_an_answer_is_chosen_under_the_plan(stories):
    from sparsight.evaluation.tasks.generating import Writer

    plan = Plan(create("streaming", Geometry.of(stories.anatomy)), Budget(64))
    ids = stories.tokenizer(STORY)["input_ids"]
    seen = []
    Writer(stories, plan, observer=lambda length, layer, indices: seen.append(length))._write(ids, 2)
    assert min(seen) == len(ids)  # the step of the prompt's last token, and not only what comes behind it


def test_what_is_not_known_or_not_written_is_said(stories, folder):
    from sparsight.evaluation.tasks.generating import Writer, written_tasks

    with pytest.raises(ConfigError, match="has no task nothing"):
        written_tasks(stories, [], ["nothing"], folder=str(folder))
    with pytest.raises(ConfigError, match="whose answers are written"):
        Writer(stories, None).score([([1], [2])])


def test_from_the_command_line(stories, folder, shared_data, tmp_path, capsys):
    from sparsight.cli.main import main

    how = ["evaluate", "--model", str(shared_data / "stories260k"), "--dtype", "fp32", "--select", "quest:page_size=4", "--budget", "64"]
    assert main([*how, "--harness", "story_word", "--harness-folder", str(folder), "--json", str(tmp_path / "r.json")]) == 0
    assert "story_word" in capsys.readouterr().out
    assert [row["method"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]] == ["dense", "quest:page_size=4"]
    assert main([*how, "--harness", "story_word", "--tasks", "piqa"]) == 2
    assert "--tasks does not go with --harness" in capsys.readouterr().err
