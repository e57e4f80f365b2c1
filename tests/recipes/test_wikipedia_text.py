"""The recipe that makes training text from the Wikipedia articles in a wheel, run on a small dump made here."""

import bz2
import hashlib
import html
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("mwparserfromhell", reason="mwparserfromhell, which only this recipe needs, is not installed")

import wikimarkup  # noqa: E402
import wikipedia_text  # noqa: E402

MARKUP = """{{Infobox animal|name=Otter|weight={{convert|9|kg}}}}
[[File:Otter.jpg|thumb|An [[otter]] at rest]]
The '''otter''' \
({{IPAc-en|ˈ|ɒ|t|ər}}; from [[Old English|Old&nbsp;English]] {{lang|ang|otor}}) eats \
[[fish]]es.<ref name="a">{{cite book|title=Fish}}</ref> It weighs {{convert|9|to|12|kg|lb}} \
and {{cn|date=May 2016}} swims at <!-- not seen -->{{nowrap|10 km}}<sup>2</sup> or 10<sup>7</sup>.

== Habits ==
=== Empty ===
=== Food ===
* [[Crab]]
* ''Eels'', see [http://example.org a page]
{| class="wikitable"
! Prey || Share
|}
It follows <math>x^2</math> in all it does.

He said: {{quote|Otters &ndash; I like them}}

== See also ==
* [[Beaver]]
=== Nested ===
Gone too.
== Range ==
Europe.
[[Category:Mustelids]]
[[de:Otter]]
"""

PROSE = """ = Otter = 

The otter (from Old English otor) eats fishes. It weighs 9 to 12 kg and swims at 10 km2 or 10^7.

 = = Habits = = 


 = = = Food = = = 

Crab
Eels, see a page
He said: Otters – I like them

 = = Range = = 

Europe.
"""  # noqa: W291


def make_wheel(path, pages, monkeypatch):
    body = "".join(
        f"<page><title>{title}</title><ns>{ns}</ns>{extra}<revision><text>{html.escape(text)}</text></revision></page>"
        for title, ns, extra, text in pages
    )
    data = bz2.compress(f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{body}</mediawiki>'.encode())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(wikipedia_text.DUMP, data)
    monkeypatch.setattr(wikipedia_text, "DUMP_SHA256", hashlib.sha256(data).hexdigest())
    return path


def article(seed, words=600):
    return " ".join(f"word{(seed * 7919 + i * i) % 9973}" for i in range(words))


def test_markup_becomes_prose_in_the_form_of_wikitext():
    assert wikimarkup.article_text("Otter", MARKUP) == PROSE


@pytest.mark.parametrize(
    ("markup", "prose"),
    [
        ("{{convert|5|x|6|m|ft}} big", "5 x 6 m big"),
        ("{{frac|1|2}} and {{frac|3|1|4}} and {{frac|8}}", "1/2 and 3 1/4 and 1/8"),
        ("{{chem|H|2|O}} of the {{USS|Hornet|CV-12|6}}", "H2O of the USS Hornet"),
        ("1990{{ndash}}1999, the 1<sup>st</sup>, 10<sup>−3</sup>", "1990–1999, the 1st, 10^−3"),
        ("{{Blockquote|text=Said so.|author=Her}}", "Said so."),
        ("One<br />two", "One two"),
        ("Born (; , {{citation needed}}) in May .", "Born in May."),
        ("Broken {{template", ""),
    ],
)
def test_templates_that_stand_for_words(markup, prose):
    assert wikimarkup.article_text("T", markup).partition("= \n")[2].strip() == prose


def test_short_pages_redirects_disambiguation_and_the_demo_article_are_left_out(tmp_path, monkeypatch, capsys):
    pages = [
        ("Kept/one", 0, "", article(1)),
        ("Demo", 0, "", article(2)),
        ("Moved", 0, '<redirect title="Kept" />', article(3)),
        ("Talk", 1, "", article(4)),
        ("Short", 0, "", "Few words."),
        ("Names only", 0, "", "\n".join(f"* name {i}" for i in range(900))),
        ("Many", 0, "", article(5) + "{{disambiguation}}"),
        ("Seen", 0, "", article(6)),
    ]
    wheel = make_wheel(tmp_path / "gensim.whl", pages, monkeypatch)
    monkeypatch.setattr(wikipedia_text, "DEMO_TITLE", "Demo")
    (tmp_path / "evaluation.txt").write_text(
        "Before. " + article(6)[200:400].upper().replace(" ", " , "), encoding="utf-8"
    )
    out = tmp_path / "text"
    arguments = ["--wheel", str(wheel), "--out", str(out), "--drop-overlap", str(tmp_path / "evaluation.txt")]
    assert wikipedia_text.main(arguments[:4]) == 0
    assert len(list(out.glob("wikipedia-*"))) == 2
    assert wikipedia_text.main(arguments) == 0
    assert [path.name for path in out.glob("wikipedia-*")] == ["wikipedia-Kept_one.txt"]
    note = (out / "SOURCE.md").read_text(encoding="utf-8")
    assert "Articles: Kept/one." in note and "CC BY-SA" in note and "PSF License" in note
    assert "Seen:" in capsys.readouterr().out

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert wikipedia_text.main(arguments) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_manual_topics_are_long_and_not_told_twice():
    topics = wikipedia_text.manual_topics()
    assert len(topics) >= 10
    assert min(map(len, topics.values())) >= wikipedia_text.SHORTEST_TOPIC - 10
    assert ("compound" in topics) and ("class" not in topics)


def test_another_dump_than_the_pinned_one_is_refused(tmp_path, monkeypatch, capsys):
    wheel = make_wheel(tmp_path / "gensim.whl", [("A", 0, "", "x")], monkeypatch)
    monkeypatch.setattr(wikipedia_text, "DUMP_SHA256", "0" * 64)
    assert wikipedia_text.main(["--wheel", str(wheel), "--out", str(tmp_path / "text")]) == 2
    assert "expected sha256 000" in capsys.readouterr().err
    assert not (tmp_path / "text").exists()


def test_a_file_that_is_no_such_wheel_is_refused(tmp_path, capsys):
    (tmp_path / "x.whl").write_bytes(b"not a zip")
    assert wikipedia_text.main(["--wheel", str(tmp_path / "x.whl"), "--out", str(tmp_path / "text")]) == 2
    assert "expected the wheel of gensim" in capsys.readouterr().err


def test_the_shipped_demo_document_is_the_article_left_out():
    folder = Path(__file__).resolve().parents[2] / "src/sparsight/demo"
    text = (folder / "document.txt").read_text(encoding="utf-8")
    assert text.startswith(f" = {wikipedia_text.DEMO_TITLE} = \n\n")
    assert wikipedia_text.DEMO_TITLE in (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert not wikimarkup.RESIDUE.search(text)
