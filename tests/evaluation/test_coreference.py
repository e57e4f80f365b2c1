"""The co-reference task: its texts, its scores, and that a selection acts on them."""

import json
import re
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from benchmarks import coreference as benchmark

from sparsight.errors import ConfigError, TextError
from sparsight.evaluation.tasks import (
    Item,
    Outcome,
    Reader,
    encode,
    make_items,
    score_items,
    summarise,
    wilson_interval,
)
from sparsight.evaluation.tasks.coreference import MINIMUM_STEPS
from sparsight.evaluation.tasks.pools import PASSAGES, SCENES, SYLLABLES
from sparsight.evaluation.tasks.scores import begins_with
from sparsight.models import Anatomy, LoadedModel
from sparsight.runtime import Budget, Plan, Rule, apply
from sparsight.tokens import Geometry, create

ALL_PASSAGES = [text for texts in PASSAGES.values() for text in texts]
METHODS = ("oracle", "quest", "streaming", "random")


class Characters:
    """A tokenizer whose tokens are the characters of ASCII."""

    def __call__(self, text, return_tensors, add_special_tokens, verbose):
        return {"input_ids": torch.tensor([[ord(c) % 128 for c in text]])}

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def tiny(tiny_llama) -> LoadedModel:
    model = tiny_llama(max_position_embeddings=4096, num_hidden_layers=3)
    return LoadedModel(model, Characters(), "tiny", "0" * 64, Anatomy.of(model))


@pytest.fixture(scope="module")
def short() -> Item:
    """An item that a model of single characters reads in a moment."""
    return Item("The road to Ozo is long and dusty, and it goes on. \n\n" * 3, "We rode to", "Ozo", 0, 0)


def plan(loaded, name, budget, **settings) -> Plan:
    return Plan(create(name, Geometry.of(loaded.anatomy)), Budget.parse(budget), Rule(**settings))


def test_items_depend_on_the_seed_alone():
    assert make_items(5, 3, 7) == make_items(5, 3, 7) == make_items(20, 3, 7)[:5]
    assert not {item.place for item in make_items(5, 3, 7)} & {item.place for item in make_items(5, 3, 8)}


def test_items_of_other_distances_share_scene_and_first_passages():
    for near, far in zip(make_items(10, 2, 1), make_items(10, 9, 1), strict=True):
        assert (near.place, near.question) == (far.place, far.question)
        assert far.context.startswith(near.context)
        assert near.context.count("\n\n") == 3 and far.context.count("\n\n") == 10


def test_no_two_items_share_place_and_introduction():
    items = make_items(3000, 0, 0)
    assert len({item.context for item in items}) == len({(item.place, item.question) for item in items}) == 3000


def test_a_pair_drawn_twice_is_not_used_twice(monkeypatch):
    monkeypatch.setattr("sparsight.evaluation.tasks.items.SYLLABLES", (["A", "B"], ["c"], ["d"]))
    monkeypatch.setattr("sparsight.evaluation.tasks.items.SCENES", SCENES[:3])
    assert len({item.context for item in make_items(6, 1, 0)}) == 6
    with pytest.raises(ConfigError, match="from 1 to 6"):
        make_items(7, 1, 0)


def test_the_place_is_said_once_and_never_in_passages_or_question():
    for item in make_items(200, 4, 3):
        introduction, *passages, end = item.context.split("\n\n")
        assert end == "" and len(passages) == len(set(passages)) == 4
        assert introduction.count(item.place) == 1
        # Not among the sinks, which every method reads.
        assert len(introduction.split(item.place)[0].split()) >= 8
        assert not any(item.place.lower() in text.lower() for text in [*passages, item.question])
        assert item.prompt.endswith(item.question) and item.answer == f" {item.place}"


def test_passages_are_of_four_topics_in_turn():
    topic = {text: name for name, texts in PASSAGES.items() for text in texts}
    for item in make_items(20, 8, 0):
        topics = [topic[text] for text in item.context.split("\n\n")[1:-1]]
        assert len(set(topics[:4])) == 4 and topics[:4] == topics[4:]


def test_pools():
    assert all(len(texts) >= 12 for texts in PASSAGES.values()) and len(set(ALL_PASSAGES)) == len(ALL_PASSAGES)
    assert all(40 <= len(text.split()) <= 70 for text in ALL_PASSAGES)
    assert all(len(set(part)) == len(part) for part in SYLLABLES)
    for introduction, question in SCENES:
        cue = " ".join(question.split()[-3:])
        assert introduction.count("{place}") == 1 and f"{cue} {{place}}" in introduction
        assert not any(cue in text for text in ALL_PASSAGES)
        people = set(re.findall(r"[A-Z][a-z]+", introduction)) & set(re.findall(r"[A-Z][a-z]+", question)) - {"The"}
        assert not any(set(re.findall(r"[A-Z][a-z]+", text)) & people for text in ALL_PASSAGES)


@pytest.mark.parametrize("count, passages", [(0, 4), (-1, 4), (1, -1), (10**9, 4), (1, 49)])
def test_numbers_out_of_range(count, passages):
    with pytest.raises(ConfigError, match=r"must be from . to \d+.*got"):
        make_items(count, passages)


def test_all_passages_can_be_used():
    assert set(make_items(1, 48)[0].context.split("\n\n")[1:-1]) == set(ALL_PASSAGES)


def test_prompt_is_cut_at_the_question(tiny):
    item = make_items(1, 1)[0]
    tokens = encode(tiny, item)
    text = [tiny.tokenizer.decode(part[0].tolist(), False) for part in (tokens.prefill, tokens.steps, tokens.answer)]
    assert text == [item.context, item.question, item.answer]
    # The token before the place is a blank, which belongs to it here.
    assert item.prompt[-tokens.distance :].startswith(f" {item.place}")


def test_at_least_some_tokens_are_stepped(tiny):
    tokens = encode(tiny, Item("To Ozora it is rather far", " to", "Ozora", 0, 0))
    assert tokens.steps.shape[1] == MINIMUM_STEPS
    with pytest.raises(TextError, match="prompt of 8 tokens is too short"):
        encode(tiny, Item("A Ozora", "o", "Ozora", 0, 0))
    with pytest.raises(TextError, match="asks for 'Ozora', which its context does not name"):
        encode(tiny, Item("A place that is far away", " to", "Ozora", 0, 0))


def test_item_beyond_the_context(tiny_llama, tiny, short):
    model = tiny_llama(max_position_embeddings=64)
    with pytest.raises(TextError, match="context of 64; use fewer passages"):
        encode(replace(tiny, model=model, anatomy=Anatomy.of(model)), short)


def test_full_budget_is_dense_in_every_score(tiny, short):
    items = [short, replace(short, context=short.context + "It is said. ", passages=1)]
    rows = score_items(tiny, items, [(name, plan(tiny, name, "1.0")) for name in METHODS])
    assert [row["method"] for row in rows] == ["dense", *METHODS] * 2
    for row in rows:
        reference = rows[0 if row["passages"] == 0 else 5]
        assert {**row, "method": "dense", "budget": "full"} == reference


def watched(reader, chosen, monkeypatch):
    """Outcome, and the logits of every step that led to it, `(steps, vocabulary)`."""
    seen, forward = [], Reader._forward
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "_forward", lambda *a: seen.append(forward(*a)) or seen[-1])
        return reader.outcome(chosen), torch.stack(seen[1:])  # without the prefill


def test_full_budget_is_dense_and_a_small_one_is_not_in_a_trained_model(stories, monkeypatch):
    context = "Once upon a time there was a little girl named Lily. " * 4
    reader = Reader(stories, Item(context, "One day she saw", "Lily", 0, 0))
    dense, expected = watched(reader, None, monkeypatch)
    for name in METHODS:
        outcome, logits = watched(reader, plan(stories, name, "1.0"), monkeypatch)
        assert outcome == dense and torch.equal(logits, expected)
    _, logits = watched(reader, plan(stories, "streaming", 6, sinks=1, window=4), monkeypatch)
    steps = reader.tokens.steps.shape[1]
    assert ((logits - expected)[:steps].abs().amax(dim=-1) > 0.1).all()


def reference_logits(loaded, item, chosen, answer):
    """Logits after each stepped token, with a plain prefill under the plan."""
    tokens = encode(loaded, item)
    steps = torch.cat([tokens.steps, answer], dim=1)
    with apply(loaded, chosen):
        cache = loaded.model(tokens.prefill, use_cache=True).past_key_values
        return torch.stack([loaded.model(ids[:, None], past_key_values=cache).logits[0, -1] for ids in steps.unbind(1)])


@pytest.mark.parametrize("name", METHODS)
def test_taking_back_the_generated_text_leaves_what_the_question_left(tiny, short, name, monkeypatch):
    chosen = plan(tiny, name, 24, sinks=2, window=8)
    reader = Reader(tiny, short)
    outcome, logits = watched(reader, chosen, monkeypatch)
    answer = reader.tokens.answer
    expected = reference_logits(tiny, short, chosen, answer[:, :-1])
    question, forced = reader.tokens.steps.shape[1], answer.shape[1] - 1
    torch.testing.assert_close(logits[:question], expected[:question])
    torch.testing.assert_close(logits[-forced:], expected[question:])
    right = expected[question - 1 :].argmax(dim=-1) == answer[0]
    assert outcome.forced == tuple(right.tolist())
    # And the question is read under the selection: from its first token on the logits are not the dense ones.
    dense = reference_logits(tiny, short, plan(tiny, "dense", "1.0"), answer[:, :-1])
    assert ((expected - dense).abs().amax(dim=-1) > 1e-3).all()


def test_generation_continues_under_the_selection(tiny, short):
    """What is generated is what the model's own greedy loop gives when it starts from the stepped question."""
    chosen = plan(tiny, "oracle", 24, sinks=2, window=8)
    outcome, tokens = Reader(tiny, short).outcome(chosen), encode(tiny, short)
    ids = reference_logits(tiny, short, chosen, tokens.answer[:, :0]).argmax(dim=-1)[-1:].tolist()
    while len(ids) < tokens.answer.shape[1] + 2:
        ids.append(int(reference_logits(tiny, short, chosen, torch.tensor([ids]))[-1].argmax()))
    assert outcome.text == tiny.tokenizer.decode(ids, False)


def test_a_place_that_the_model_writes_is_right_and_another_is_not(tiny, short):
    """The random model is asked for what it writes anyway."""
    reader = Reader(tiny, short)
    written = reader.outcome().text
    assert not reader.outcome().generated
    length = next(i for i in range(3, len(written)) if not written[i].isalpha())
    reader.item = replace(short, place=written[:length].lstrip())
    reader.tokens = replace(reader.tokens, answer=torch.tensor([[ord(c) for c in written[:length]]]))
    assert reader.outcome().generated and all(reader.outcome().forced)
    reader.tokens.answer[0, 2] = (reader.tokens.answer[0, 2] + 1) % 128
    assert reader.outcome().forced[:3] == (True, True, False)


def test_generated_text_must_begin_with_the_whole_name():
    assert all(begins_with(text, "Ozora") for text in (" Ozora", "Ozora. It", "\nOzora, ", " Ozora<end>"))
    assert not any(begins_with(text, "Ozora") for text in (" Ozoran", "Ozor", " the Ozora", "ozora", ""))


def test_summary_over_all_items_and_over_those_dense_has_right():
    right, half, wrong = Outcome(True, (True,) * 2), Outcome(False, (True, False)), Outcome(False, (False,) * 2)
    row = summarise([right, half, wrong, right], [right, right, wrong, half])
    assert (row["items"], row["dense_correct"]) == (4, 2)
    assert (row["generated_accuracy"], row["forced_accuracy"], row["forced_coverage"]) == (0.5, 0.5, 0.625)
    given = row["generated_given_dense"], row["forced_given_dense"], row["coverage_given_dense"]
    assert given == (0.5, 0.5, 0.75)
    assert row["forced_coverage_interval"] == list(wilson_interval(2.5, 4))
    assert row["coverage_given_dense_interval"] == list(wilson_interval(1.5, 2))


def test_summary_when_dense_has_nothing_right():
    wrong = Outcome(False, (False,))
    row = summarise([wrong, wrong], [wrong, wrong])
    assert row["dense_correct"] == 0
    assert row["generated_given_dense"] is row["generated_given_dense_interval"] is None
    assert row["generated_accuracy"] == 0


@pytest.mark.parametrize(
    "successes, trials, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(successes, trials, low, high):
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, score method without continuity correction."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5.1e-5)
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5.1e-5)


@pytest.mark.parametrize("successes, trials, confidence", [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_interval_out_of_range(successes, trials, confidence):
    with pytest.raises(ConfigError, match="interval needs"):
        wilson_interval(successes, trials, confidence)


def test_scoring_needs_items_and_distinct_plans(tiny, short):
    with pytest.raises(ConfigError, match="no items"):
        score_items(tiny, [])
    twice = [("random", plan(tiny, "random", "1/2"))] * 2
    with pytest.raises(ConfigError, match="'random' with budget 1/2 is given twice"):
        score_items(tiny, [short], twice)


def test_rows_say_what_was_read(tiny, short):
    seen = []
    dense, half, least = score_items(
        tiny, [short], [("random", plan(tiny, "random", b)) for b in ("1/2", "1/8")], done=seen.append
    )
    length = len(short.prompt)
    assert (dense["budget_tokens"], half["budget_tokens"], least["budget_tokens"]) == (length, -(-length // 2), 64)
    assert (dense["budget"], half["budget"], least["budget"]) == ("full", "1/2", str(Fraction(1, 8)))
    assert dense["bytes_per_token"] > half["bytes_per_token"] > least["bytes_per_token"]
    assert dense["prompt_tokens"] == length and dense["answer_tokens"] == len(short.answer) and seen == [short]


def test_benchmark_writes_a_result(tiny, short, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "load", lambda *a, **k: tiny)
    monkeypatch.setattr(benchmark, "make_items", lambda count, passages, seed: [replace(short, passages=passages)])
    path = tmp_path / "deep" / "out.json"
    arguments = "--passages 1 2 --select random:seed=3 streaming --budget 1/2 80 --json"
    assert benchmark.main([*arguments.split(), str(path)]) == 0
    result = json.loads(path.read_text())
    methods = [("dense", "full"), *((m, b) for b in ("1/2", "80") for m in ("random:seed=3", "streaming"))]
    expected = [(passages, *m) for passages in (1, 2) for m in methods]
    assert [(row["passages"], row["method"], row["budget"]) for row in result["rows"]] == expected
    assert result["model"] == {"name": "tiny", "fingerprint": "0" * 64, "dtype": "bfloat16"}
    assert result["methods"]["random:seed=3"] == {"settings": {"seed": 3}, "parameters": 0}
    assert result["seed"] == 0 and "torch" in result["versions"]
    assert "random:seed=3" in capsys.readouterr().out


def test_benchmark_error_is_one_line(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "load", lambda *a, **k: tiny)
    path = tmp_path / "out.json"
    assert benchmark.main(["--items", "0", "--json", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not path.exists()


def test_every_place_is_several_tokens_and_smollm2_knows_it(smollm2):
    items = make_items(300, 0)
    lengths = [len(smollm2.tokenizer(item.answer, add_special_tokens=False)["input_ids"]) for item in items]
    assert min(lengths) >= 3
    oracle = Plan(create("oracle", Geometry.of(smollm2.anatomy)), Budget.parse("1/8"))
    streaming = Plan(create("streaming", Geometry.of(smollm2.anatomy)), Budget.parse("1/8"))
    dense, ceiling, blind = score_items(smollm2, make_items(4, 4), [("oracle", oracle), ("streaming", streaming)])
    assert dense["generated_accuracy"] >= 0.75 and ceiling["forced_coverage"] > 0.5 > blind["forced_coverage"]
