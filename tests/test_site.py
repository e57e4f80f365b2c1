"""The documentation says what the code says: every method has its page, every verb its reference, every quoted message is one that exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs.hooks import command_line, fill, methods, pages

from sparsight.cli.main import VERBS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN = sorted(DOCS.rglob("*.md"))
NAMES = [(room, name) for room, module in methods.ROOMS.items() for name in module.methods()]
every_method = pytest.mark.parametrize(("room", "name"), NAMES)


@every_method
def test_a_method_has_a_page_with_every_section(room, name):
    text = methods.page_of(room, name).read_text(encoding="utf-8")
    assert tuple(re.findall(r"^## (.*)$", text, re.M)) == methods.SECTIONS
    sections = re.split(r"^## .*$", text, flags=re.M)[1:]
    assert all(section.strip() for section in sections)
    command = text.split("## How to run it")[1].split("## Settings")[0]
    assert re.search(rf"(--select|--units|--unit-heads|--method) [^\n]*\b{re.escape(name)}\b", command)
    assert f"<!-- made: settings {room} {name} -->" in text
    assert f"methods/{room}/{name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@every_method
def test_each_setting_has_a_default_and_a_meaning(room, name):
    for line in methods.settings(room, name).splitlines()[2:]:
        setting, default, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        assert setting.startswith("`") and default.startswith("`") and len(meaning) > 3, line


def test_a_page_for_every_method_and_no_other():
    assert {path.relative_to(DOCS / "methods").with_suffix("").as_posix() for path in (DOCS / "methods").rglob("*.md")} == {
        f"{room}/{name}" for room, name in NAMES
    }


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_tables_of_a_page_can_be_filled(page):
    text = page.read_text(encoding="utf-8")
    assert len(fill.MARK.findall(text)) == text.count("<!-- made:")
    filled = fill.filled(text)
    assert "<!-- made:" not in filled
    rows = [line for line in filled.splitlines() if line.startswith("|")]
    assert len(rows) >= 3 * text.count("<!-- made:") - 2 * text.count("made: settings")


@pytest.mark.parametrize("request_", ["nothing", "loss no-such-method", "tasks foresight no-such-method", "speed no-such-method"])
def test_a_table_of_something_unknown_is_an_error(request_):
    with pytest.raises(ValueError, match="no-such-method|nothing"):
        fill.table(request_)


def test_the_reference_has_every_verb_and_option():
    page = command_line.page()
    assert set(re.findall(r"^## (\S+)$", page, re.M)) == set(VERBS)
    for verb, (parser, _) in command_line.verbs().items():
        section = page.split(f"## {verb}\n")[1].split("\n## ")[0]
        for action in parser._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or option in section, f"{verb} {option}"


def test_messages_in_troubleshooting_are_those_of_the_program():
    sources = [*(ROOT / "src").rglob("*.py"), ROOT / "Makefile"]
    known = "".join(path.read_text(encoding="utf-8") for path in sources)
    # As a reader sees them: strings that go on in the next line joined, quotes as they are printed.
    known = re.sub(r'"\s*\n\s*f?"', "", known).replace('\\"', '"').replace("\\'", "'")
    known = re.sub(r"\{[^{}]*\}", "…", known)
    quoted = re.findall(r"^\| `([^`]*)`", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert len(quoted) > 15
    for message in quoted:
        for part in re.split(r"'?…'?", message):
            assert part.strip(" ;:") in known, message


@pytest.mark.parametrize("page", [ROOT / "README.md", *WRITTEN], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    made = {DOCS / uri for uri in pages.made()}
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            path = (page.parent / target).resolve()
            assert path.exists() or path in made, target


@pytest.mark.site
def test_the_site_builds_without_warnings_and_asks_for_nothing_from_elsewhere(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > len(WRITTEN)
    for path in built:
        for tag in re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*>", path.read_text(encoding="utf-8")):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{path.name}: {tag}"
    reference = (tmp_path / "site" / "reference" / "python" / "tokens.html").read_text(encoding="utf-8")
    assert "sparsight.tokens.Selector" in reference and "importance" in reference
