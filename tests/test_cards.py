"""The cards of the predictors that ship: all that a reader needs, and figures that are those of the result files."""

import json
import re

import pytest
import yaml
from benchmarks import cards

from sparsight.artifacts import load_artifact

PATHS = sorted(cards.SHIPPED.glob("*/README.md"))
SECTIONS = ("Model", "Training data", "Training", "Measured", "Limits", "Use", "Licence", "Made with")


@pytest.fixture(scope="module")
def written():
    return cards.cards()


def test_every_shipped_predictor_has_a_card(written):
    assert sorted(written) == PATHS and len(PATHS) == len(list(cards.SHIPPED.glob("*/config.json"))) >= 11


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.parent.name)
def test_the_card_is_what_the_artifact_and_the_result_files_say(path, written):
    assert path.read_text(encoding="utf-8") == written[path], "run: python -m benchmarks.cards"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.parent.name)
def test_the_card_holds_what_a_reader_needs(path):
    text, artifact = path.read_text(encoding="utf-8"), load_artifact(path.parent)[0]
    header = yaml.safe_load(text.split("---\n")[1])
    assert (header["license"], header["base_model"]) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    for section in SECTIONS:
        body = re.search(rf"^## {section}\n\n(.+?)(?=^## |\Z)", text, re.M | re.S)
        assert body and len(body[1].strip()) > 20, section
    assert artifact.sha256 in text and artifact.model_fingerprint in text
    assert re.search(r"^\| licence \| .*CC BY-SA 3.0.*PSF-2.0", text, re.M), "the licence of the training text"
    named = re.findall(r"^From `(benchmarks/\S+\.json)`", text, re.M)
    assert named, "no result file is named"
    for file in named:
        settings = json.loads((cards.ROOT / file).read_text(encoding="utf-8"))["configuration"]
        assert artifact.sha256 in json.dumps(settings) and settings["model_hash"] == artifact.model_fingerprint


def test_figures_of_other_weights_are_not_shown(written):
    artifact = load_artifact(PATHS[0].parent)[0]
    assert cards.figures(artifact)
    object.__setattr__(artifact, "sha256", "0" * 64)
    assert cards.figures(artifact) == "" and "## Measured" not in cards.card(artifact)
