"""The model card says what a predictor is, what it came from and how to use it."""

import pytest
import yaml

from sparsight.artifacts import Artifact, model_card


@pytest.fixture
def artifact() -> Artifact:
    return Artifact(
        method="foresight",
        settings={"rank": 16, "loss": "group"},
        geometry={"layers": 4},
        model_fingerprint="ab" * 32,
        model_name="owner/tiny: a | b",
        training={
            "lengths": [64, 128],
            "learning_rate": 0.001,
            "tokens": 1500,
            "history": [{"step": 1, "loss": 1.5}, {"step": 3, "loss": 1.25}, {"step": 6, "loss": 0.75}],
        },
        data={
            "text_sha256": "cd" * 32,
            "licence": "CC BY-SA 4.0",
            "documents": [{"name": f"doc{i}", "sha256": f"{i:064x}"} for i in range(60)],
            "held_out": [{"name": "kept-back", "sha256": "0" * 64}],
        },
        recall=[{"budget": "1/8", "recall": 0.91234567, "oracle": 0.95}, {"budget": "1/16", "recall": 0.8}],
        parameters=1234567,
        model_parameters=134_515_008,
        versions={"torch": "2.13.0"},
        sha256="ef" * 32,
    )


def test_header_is_yaml_that_a_hub_reads(artifact):
    _, header, _ = model_card(artifact).split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["library_name"] == "sparsight"
    assert fields["license"] == "apache-2.0"
    assert fields["base_model"] == artifact.model_name
    assert "foresight" in fields["tags"]


def test_card_holds_what_a_reader_needs(artifact):
    card = model_card(artifact)
    for part in (
        artifact.model_fingerprint, artifact.sha256, artifact.data["text_sha256"], "CC BY-SA 4.0",
        "doc49", "and 10 more", "documents | 60 |", "- name kept-back",
        "1,234,567, 0.92% of the model's 134,515,008", "learning_rate | 0.001", "lengths | 64, 128", "tokens | 1500",
        "| 1/8 | 0.9123 | 0.95 |", "| 1/16 | 0.8 |  |", "| 6 | 0.75 |",
        "sparsight evaluate", "--select foresight=", "torch 2.13.0",
    ):  # fmt: skip
        assert part in card, part
    assert "doc50" not in card
    assert "1.25" not in card


def test_tables_stay_whole(artifact):
    """A bar or a line break in a value would break a row of a table in two."""
    artifact.data["note"] = "one | two\nthree"
    row = next(line for line in model_card(artifact).splitlines() if "note" in line)
    assert row.replace("\\|", "").count("|") == 3
    assert row.endswith("three |")


def test_card_of_nothing_but_the_needed():
    card = model_card(Artifact("lowrank", {}, {}, "ab" * 32, "tiny"))
    assert "Not measured" in card and "Not recorded." in card and "None" not in card
