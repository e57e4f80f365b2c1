"""The page in a real browser, headless: typing, streaming, pointing, the slider, files, errors, and a browser without scripts.

Run by `make check-page`. Pictures of it are kept where SPARSIGHT_SCREENSHOTS says, if it says anything.
"""

import os
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.page

PROMPT = "Once upon a time there was a girl called Lily. She had a red ball and a big dog. One day she went out. " * 3
READY, BUSY = 'body[data-state="ready"]', 'body[data-state="running"]'


@pytest.fixture
def page(browser, running, request):
    """The page, ready; it asks no other host, and says no error on the console that the test has not caused."""
    context = browser.new_context(viewport={"width": 1200, "height": 1200})
    found, asked, said = context.new_page(), [], []
    found.on("request", lambda one: asked.append(one.url))
    found.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    found.on("pageerror", lambda error: said.append(str(error)))
    found.goto(running.url)
    found.wait_for_selector(READY)
    yield found
    if folder := os.environ.get("SPARSIGHT_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        found.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)
    context.close()
    assert all(url.startswith((running.url, "data:")) for url in asked)
    assert [one for one in said if "the server responded with a status of" not in one] == []


def answer(page, prompt=PROMPT, tokens=24, budget=None):
    page.fill("#prompt", prompt)
    page.fill("#tokens", str(tokens))
    if budget is not None:
        page.locator("#budget").fill(str(budget))
    page.select_option("#method", "quest")
    page.click("#run")
    page.wait_for_selector(READY)


def point(page, side, token):
    page.hover(f"#{side}-{token}")
    page.wait_for_selector(f'body[data-pointed="{side}-{token}"]')


def until(page, expression):
    """`wait_for_function` evaluates text inside the page, which the page forbids."""
    end = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.01)


def heat(page):
    return page.eval_on_selector_all("#context span", "spans => spans.map(s => s.className ? Number(s.className.slice(1)) : 0)")


def test_typing_gives_two_answers_with_their_figures(page, running):
    answer(page)
    expected = running.client().chat.completions.create(
        model=running.model, messages=[{"role": "user", "content": PROMPT}], max_tokens=24, temperature=0
    )
    assert page.text_content("#dense").strip() == expected.choices[0].message.content.strip()
    assert "every token read" in page.inner_text("#dense-figures") and "MB a token" in page.inner_text("#dense-figures")
    assert "% of the cached tokens read" in page.inner_text("#sparse-figures")
    assert page.locator("#sparse span").count() == page.locator("#dense span").count() == 24
    assert page.is_hidden("#error")


def test_text_appears_while_it_is_made(page, running, monkeypatch):
    usual = running.engine.decoder.step
    monkeypatch.setattr(running.engine.decoder, "step", lambda *a, **k: (time.sleep(0.03), usual(*a, **k))[1])
    page.fill("#prompt", PROMPT)
    page.fill("#tokens", "60")
    page.click("#run")
    until(page, "document.querySelectorAll('#sparse span').length > 3 && document.querySelectorAll('#dense span').length > 3")
    assert page.get_attribute("body", "data-state") == "running" and page.is_disabled("#run")
    some = page.locator("#dense span").count()
    assert some < 60
    page.click("#stop")
    page.wait_for_selector(READY)
    assert page.inner_text("#dense-figures") == "stopped" and page.is_hidden("#error") and page.locator("#dense span").count() < 60


def test_pointing_shows_what_was_read(page, running):
    answer(page, budget=2)
    point(page, "sparse", 7)
    levels, summary = heat(page), page.inner_text("#summary")
    assert "token 8 of the sparse answer" in summary and "a KV head read 64 of" in summary
    page.select_option("#layer", "2")
    page.select_option("#head", "1")
    shown = [i for i, level in enumerate(heat(page)) if level]
    name = page.evaluate("sides.sparse.id")
    found = running.get(f"/v1/readings/{name}/7").json()
    assert shown == found["read"][2][1] and len(shown) == 64 < len(levels) == found["length"]
    page.check('input[value="attention"]')
    assert heat(page) != [8 * (i in shown) for i in range(found["length"])] and max(heat(page)) == 8
    page.check('input[value="missed"]')
    assert not any(level for i, level in enumerate(heat(page)) if i in shown)
    point(page, "dense", 3)
    page.check('input[value="read"]')
    assert set(heat(page)) == {8} and "token 4 of the dense answer" in page.inner_text("#summary")


def test_the_arrow_keys_move_over_tokens(page):
    answer(page)
    page.focus("#sparse")
    for key, token in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 23), ("ArrowRight", 23), ("Home", 0)):
        page.keyboard.press(key)
        page.wait_for_selector(f'body[data-pointed="sparse-{token}"]')
        assert page.get_attribute(f"#sparse-{token}", "aria-selected") == "true"
        assert page.get_attribute("#sparse", "aria-activedescendant") == f"sparse-{token}"
    assert page.locator('[aria-selected="true"]').count() == 1


def test_everything_can_be_reached_by_the_keyboard(page):
    page.focus("#prompt")
    page.keyboard.type(PROMPT)
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "run":
            break
    assert ["file", "chat", "method", "budget", "tokens", "temperature", "run"] == [one for one in reached if one]
    page.keyboard.press("Enter")
    page.wait_for_selector("#dense-3")


def test_the_slider_asks_anew_for_the_sparse_answer_alone(page):
    answer(page, budget=2)
    before = page.evaluate("[sides.dense.id, sides.sparse.id]")
    page.focus("#budget")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#budget-text") == "1/4" and page.get_attribute("#budget", "aria-valuetext") == "1/4 of the tokens"
    until(page, f"sides.sparse.reading && sides.sparse.id !== '{before[1]}'")
    page.wait_for_selector(READY)
    assert page.evaluate("sides.dense.id") == before[0] and page.evaluate("sides.sparse.reading.budget") == "1/4"


def test_files(page, tmp_path):
    (tmp_path / "story.txt").write_text("Tom had a ball. ß")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    (tmp_path / "large.txt").write_text("a" * (2**20 + 1))
    (tmp_path / "empty.txt").write_text(" ")
    page.set_input_files("#file", tmp_path / "story.txt")
    until(page, "document.querySelector('#prompt').value === 'Tom had a ball. ß'")
    assert "story.txt, 17 characters" in page.inner_text("#file-note")
    for name, said in (("picture.png", "not text in UTF-8"), ("large.txt", "more than 1 MiB"), ("empty.txt", "is empty")):
        page.set_input_files("#file", tmp_path / name)
        page.wait_for_selector("#error:visible")
        assert name in page.inner_text("#error") and said in page.inner_text("#error")
        assert page.input_value("#prompt") == "Tom had a ball. ß"
    page.evaluate(
        "() => { const data = new DataTransfer(); data.items.add(new File(['dropped'], 'd.txt'));"
        "document.querySelector('#prompt').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})); }"
    )
    until(page, "document.querySelector('#prompt').value === 'dropped'")
    assert page.is_hidden("#error")


def test_an_error_is_said_in_the_servers_words(page):
    answer(page, "word " * 600)
    assert "messages has" in page.inner_text("#error") and page.get_attribute("#error", "role") == "alert"
    answer(page)
    assert page.is_hidden("#error")


def test_what_a_server_says_is_text(page):
    answer(page, "<img src=x onerror=alert(1)> <b>bold</b> " * 3, tokens=4)
    point(page, "sparse", 1)
    assert "<img src=x onerror=alert(1)>" in page.text_content("#context") and page.locator("#context img, #context b").count() == 0


@pytest.mark.parametrize("gone", ["ReadableStream", "WebSocket"])
def test_without_what_streams_need_the_answer_comes_at_once(browser, running, gone):
    page = browser.new_page()
    page.add_init_script(f"delete window.{gone}; window.{gone} = undefined;")
    page.goto(running.url)
    page.wait_for_selector(READY)
    answer(page, tokens=6)
    assert page.locator("#sparse span").count() == 6 and page.is_hidden("#error")
    page.close()


def test_with_scripts_off_it_can_be_read(browser, running):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(running.url)
    assert page.is_visible("noscript h2") and "curl http://127.0.0.1:8000/v1/chat/completions" in page.inner_text("body")
    assert page.is_hidden("main")
    context.close()


def test_with_a_key(browser, start):
    key = "a-key-of-the-tests-0123456789"
    with start(api_key=key) as running:
        page = browser.new_page()
        page.goto(running.url)
        page.wait_for_selector("#error:visible")
        assert "API key is missing or wrong" in page.inner_text("#error")
        page.click("summary")
        page.fill("#key", key)
        page.fill("#prompt", PROMPT)
        page.fill("#tokens", "4")
        page.click("#run")
        page.wait_for_selector("#sparse-3")
        assert page.is_hidden("#error")
        page.close()
