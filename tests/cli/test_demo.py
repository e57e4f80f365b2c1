"""`sparsight demo`, on a small model and, as a user gets it, on the real one."""

import copy
import dataclasses

import pytest
from matplotlib.image import imread

from sparsight.cli import demo

TEMPLATE = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
COMPARED = ("dense", "oracle", "quest", "streaming")


def methods_in(out: str) -> list[str]:
    """First words of the lines of the table that hold bytes."""
    return [line.split()[0] for line in out.splitlines() if " MB " in line or " kB " in line]


@pytest.fixture
def small(loaded, tmp_path, monkeypatch):
    """The demo with a byte model, a short document and no predictor."""
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = TEMPLATE
    package = tmp_path / "package"
    (package / "demo").mkdir(parents=True)
    (package / "demo" / "document.txt").write_text(
        "The quick brown fox jumps over the lazy dog. " * 7, encoding="utf-8"
    )
    monkeypatch.setattr(demo, "files", lambda name: package)
    monkeypatch.setattr(demo, "load_model", lambda args: dataclasses.replace(loaded, tokenizer=tokenizer))
    monkeypatch.setattr(demo, "PREDICTOR", "quest")
    monkeypatch.setattr(demo, "COMPARED", COMPARED)
    monkeypatch.setattr(demo, "LENGTH", 128)
    return tmp_path / "out"


def test_shows_both_answers_a_picture_and_a_table(sparsight, small):
    code, out, err = sparsight("demo", "--out", small, "--budget", "1/2", "--max-new-tokens", 8, "--quick")
    assert code == 0, err
    assert demo.QUESTION in out and "dense, every token read" in out and "quest, 50." in out
    picture = small / demo.PICTURE
    assert str(picture) in out and imread(picture)[..., :3].std() > 0.1
    assert methods_in(out) == list(COMPARED)
    assert "Traceback" not in err


def test_full_budget_makes_no_picture(sparsight, small):
    code, out, err = sparsight("demo", "--out", small, "--budget", "1/1", "--max-new-tokens", 4, "--quick")
    assert code == 0, err
    assert not small.exists() and "Which tokens were read" not in out


def test_out_that_is_a_file_is_refused_before_anything_is_done(refused, small, monkeypatch):
    small.write_text("keep me")
    monkeypatch.setattr(demo, "load_model", lambda args: pytest.fail("the model was loaded first"))
    assert "is a file" in refused("demo", "--out", small)
    assert small.read_text() == "keep me"


@pytest.mark.parametrize("option, said", [("--budget=0", "budget of 0"), ("--max-new-tokens=0", "max-new-tokens")])
def test_bad_input(sparsight, small, option, said):
    code, _, err = sparsight("demo", "--out", small, option)
    assert code == 2 and err.count("\n") == 1 and said in err
    assert not small.exists()


def test_missing_predictor_is_said_at_once(refused, small, monkeypatch):
    monkeypatch.setattr(demo, "COMPARED", ("dense", "foresight"))
    assert "sparsight train" in refused("demo", "--out", small)


def test_real_model_answers_from_a_document_of_2000_tokens(sparsight, smollm2, tmp_path):
    code, out, err = sparsight("demo", "--out", tmp_path, "--quick")
    assert code == 0, err
    assert "aardvark cucumber" in out.partition("dense, every token read")[2].partition("foresight,")[0]
    assert methods_in(out) == list(demo.COMPARED)
    assert out.count(" MB") >= len(demo.COMPARED)
    assert imread(tmp_path / demo.PICTURE)[..., :3].std() > 0.1
    document = demo.files("sparsight").joinpath("demo", "document.txt").read_text(encoding="utf-8")
    assert len(smollm2.tokenizer(document)["input_ids"]) >= 2000
