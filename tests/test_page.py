"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_server import SECRET, Served, until

from jaxgpt.language_model import LanguageModel

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs Debian's Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(model: LanguageModel) -> Iterator[Served]:
    served = Served(model)
    yield served
    served.stop()


@pytest.fixture
def page(browser: Any, server: Served) -> Iterator[Any]:
    """The page, which must ask nothing of anyone else and complain of nothing."""
    with browser.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
        page, asked, complaints = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("#temperature").fill("0")
        page.locator("#length").fill("30")
        yield page
        assert all(url.startswith((f"http://127.0.0.1:{server.port}/", "data:")) for url in asked)
        refusal = "Failed to load resource: the server responded with a status of 4"  # the browser's own note
        assert not [text for text in complaints if not text.startswith(refusal)]


def write(page: Any, prompt: str) -> None:
    page.locator("#prompt").fill(prompt)
    page.keyboard.press("Control+Enter")
    playwright.expect(page.locator("#status")).to_contain_text("tokens/s", timeout=30_000)
    playwright.expect(page.locator("#generate")).to_be_enabled(timeout=30_000)


def test_tokens_stream_into_the_page(page: Any, server: Served) -> None:
    server.engine.hold()
    page.locator("#prompt").fill("ab")
    page.get_by_role("button", name="Generate").click()
    server.engine.allowed.release(3)  # the prompt's token, and two steps of four
    playwright.expect(page.locator(".token").nth(4)).to_be_attached(timeout=30_000)
    playwright.expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    server.engine.let_go()
    playwright.expect(page.locator("#status")).to_contain_text("30 tokens", timeout=30_000)
    answer = server.complete(prompt="ab", max_tokens=30, top_k=50)["choices"][0]
    assert page.locator("#text").text_content() == "ab" + answer["text"]
    assert "tiny" in page.locator("#model").text_content()


def test_a_token_shows_its_probability_and_its_alternatives(page: Any, server: Served) -> None:
    write(page, "ab")
    logprobs = server.complete(prompt="ab", max_tokens=30, logprobs=5)["choices"][0]["logprobs"]
    tip, tokens = page.get_by_role("tooltip"), page.locator(".token")
    playwright.expect(tip).to_be_hidden()
    tokens.first.hover()
    playwright.expect(tip).to_be_visible()
    assert tip.locator("tr").count() == 5 * tip.locator("table").count()
    assert len({token.evaluate("e => getComputedStyle(e).backgroundColor") for token in tokens.all()}) > 1
    page.locator("h1").hover()
    playwright.expect(tip).to_be_hidden()
    shown = tokens.first.evaluate("e => e.parts.map(part => part.logprob)")
    assert shown == logprobs["token_logprobs"][: len(shown)]
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    playwright.expect(tokens.nth(1)).to_be_focused()
    playwright.expect(tip).to_be_visible()


def test_escape_stops_and_frees_the_slot(page: Any, server: Served) -> None:
    server.engine.hold()
    page.locator("#prompt").fill("ab")
    page.keyboard.press("Control+Enter")
    server.engine.allowed.release(2)
    playwright.expect(page.locator(".token").first).to_be_attached(timeout=30_000)
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#status")).to_contain_text("stopped")
    until(lambda: server.scheduler.open == 0)
    server.engine.let_go()
    until(lambda: server.scheduler.running == 0)
    playwright.expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    assert 0 < page.locator(".token").count() < 30


def test_a_text_goes_on_where_it_ended_and_is_written_again(page: Any, server: Served) -> None:
    write(page, "ab")
    first = page.locator("#text").text_content()
    page.get_by_role("button", name="Continue").click()
    playwright.expect(page.locator(".token").nth(31)).to_be_attached(timeout=30_000)
    playwright.expect(page.get_by_role("button", name="Continue")).to_be_enabled(timeout=30_000)
    longer = server.complete(prompt=first, max_tokens=30)["choices"][0]["text"]
    assert page.locator("#text").text_content() == first + longer
    page.locator("#temperature").fill("1")
    page.get_by_role("button", name="Again").click()
    playwright.expect(page.get_by_role("button", name="Continue")).to_be_enabled(timeout=30_000)
    again = page.locator("#text").text_content()
    assert again.startswith(first) and again != first + longer


def test_a_seed_is_drawn_and_shown_and_writes_the_same_again(page: Any) -> None:
    page.locator("#temperature").fill("1")
    write(page, "ab")
    text, seed = (
        page.locator("#text").text_content(),
        page.locator("#status").text_content().split("seed ")[1],
    )
    write(page, "ab")
    assert page.locator("#text").text_content() != text
    page.locator("#seed").fill(seed.split()[0])
    write(page, "ab")
    assert page.locator("#text").text_content() == text


def test_settings_reach_the_server_and_are_kept(page: Any, server: Served) -> None:
    settings = {
        "temperature": "0.9",
        "top-k": "9",
        "top-p": "0.8",
        "min-p": "0.05",
        "seed": "-7",
        "length": "12",
    }
    for name, value in settings.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#stops").fill("\\n\nZZ")
    with page.expect_request("**/v1/completions") as asked:
        write(page, "ab")
    body = asked.value.post_data_json
    sent = {"temperature": 0.9, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "seed": -7, "max_tokens": 12}
    assert body == body | sent | {"stop": ["\n", "ZZ"], "prompt": "ab"}
    page.reload()
    playwright.expect(page.locator("#model")).to_contain_text("tiny")
    for name, value in (settings | {"stops": "\\n\nZZ", "prompt": ""}).items():
        assert page.locator(f"#{name}").input_value() == value


def test_it_says_why_a_text_ended(page: Any) -> None:
    write(page, "ab")
    playwright.expect(page.locator("#status")).to_contain_text("the length is reached")
    write(page, "a" * 180)
    playwright.expect(page.locator("#status")).to_contain_text("the context is full")
    page.locator("#stops").fill(page.locator("#text").text_content()[182:184])
    write(page, "a" * 180)
    playwright.expect(page.locator("#status")).to_contain_text("the text ended")


def test_a_model_with_a_template_chats(page: Any, server: Served) -> None:
    page.locator("#length").fill("2")
    page.locator("#mode-chat").check()
    turns: list[dict[str, str]] = []
    for said in ("H", "B"):  # the template leaves little of the context
        turns.append({"role": "user", "content": said})
        body = {"messages": turns, "max_tokens": 2, "temperature": 0}
        answer = json.loads(server.ask("POST", "/v1/chat/completions", body)[2])["choices"][0]["message"]
        turns.append({"role": "assistant", "content": answer["content"]})
        page.locator("#prompt").fill(said)
        page.keyboard.press("Control+Enter")
        playwright.expect(page.locator("#status")).to_contain_text("length is reached", timeout=30_000)
        playwright.expect(page.locator("#text .given").last).to_have_text(said)
    shown = "".join(
        f"You{u['content']}Model{a['content']}" for u, a in zip(turns[::2], turns[1::2], strict=True)
    )
    assert page.locator("#text").text_content() == shown
    page.get_by_role("button", name="Again").click()
    playwright.expect(page.locator("#status")).to_contain_text("length is reached", timeout=30_000)
    assert page.locator("#text").text_content() == shown
    page.get_by_role("button", name="New chat").click()
    assert page.locator("#text").text_content() == ""


def look_inside(page: Any) -> None:
    page.get_by_role("button", name="Look inside").click()
    playwright.expect(page.locator("#inside")).to_be_visible(timeout=30_000)
    playwright.expect(page.locator("#heads button").first).to_be_visible(timeout=30_000)


def test_the_panel_shows_where_heads_look_and_what_layers_would_write(page: Any, server: Served) -> None:
    write(page, "ab")
    text = page.locator("#text").text_content()
    look_inside(page)
    lens, attention = server.inside(prompt=text)["lens"], server.inside(prompt=text, layer=0)["attention"]
    rows = page.locator("#lens tr")
    assert rows.all_inner_texts()[1].startswith("layer 0") and rows.all_inner_texts()[2].startswith(
        "embedding"
    )
    top = [max(place, key=place.get) for place in lens[1]]
    said = rows.nth(1).locator("td").evaluate_all("all => all.map(each => each.parts[0].token)")
    assert said == top
    heads = page.locator("#heads button")
    assert heads.count() == 2
    for head in (1, 0):
        heads.nth(head).click()
        page.locator("#looks .from").nth(5).hover()
        titles = page.locator("#looks .from").evaluate_all("all => all.map(each => each.title)")
        assert titles[:6] == [f"{100 * weight:.1f} %" for weight in attention[head][5]]
        assert set(titles[6:]) == {"it comes later and is not seen"}
        dark = (
            heads.nth(head)
            .locator("canvas")
            .evaluate("c => [...c.getContext('2d').getImageData(0, 5, c.width, 1).data]")
        )
        np.testing.assert_allclose(dark[3:24:4], np.multiply(255, attention[head][5]), atol=2)
        assert not any(dark[27::4])
    page.locator("#lens td").first.hover()
    playwright.expect(page.get_by_role("tooltip")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("#looks .from").first.focus()
    page.keyboard.press("ArrowRight")
    playwright.expect(page.locator("#looks .from").nth(1)).to_be_focused()
    page.get_by_role("button", name="Close").click()
    playwright.expect(page.locator("#inside")).to_be_hidden()


def test_a_part_that_is_selected_is_looked_into_and_a_long_text_is_refused(page: Any) -> None:
    write(page, "a" * 140)
    page.get_by_role("button", name="Look inside").click()
    playwright.expect(page.locator("#status")).to_contain_text("at most 128 tokens")
    playwright.expect(page.locator("#inside")).to_be_hidden()
    page.evaluate("""() => {
        const given = document.querySelector("#text .given").firstChild;
        getSelection().setBaseAndExtent(given, 3, given, 10);
    }""")
    with page.expect_request("**/v1/inside") as asked:
        look_inside(page)
    assert asked.value.post_data_json == {"prompt": "a" * 7}
    write(page, "b")
    playwright.expect(page.locator("#inside")).to_be_hidden()  # it was another text


def test_copy_takes_prompt_and_text(page: Any) -> None:
    write(page, "ab")
    page.get_by_role("button", name="Copy").click()
    playwright.expect(page.locator("#status")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#text").text_content()


def test_what_is_written_is_never_markup(page: Any) -> None:
    write(page, "<img src=x onerror=alert(1)><b>bold</b>")
    assert page.locator("#text img, #text b").count() == 0
    assert "<b>bold</b>" in page.locator("#text").text_content()


def test_an_error_of_the_server_is_said(page: Any) -> None:
    page.locator("#prompt").fill("a" * 200)
    page.keyboard.press("Control+Enter")
    playwright.expect(page.locator("#status")).to_contain_text("prompt must have at most 192 tokens")
    assert page.locator(".token").count() == 0


def test_the_key_is_asked_for_and_kept_in_memory(browser: Any, model: LanguageModel) -> None:
    server = Served(model, key=SECRET)
    address = f"http://127.0.0.1:{server.port}/"
    try:
        with browser.new_context() as context:  # the browser opens the page with the key of its own dialog
            page = context.new_page()
            bearer = {"Authorization": f"Bearer {SECRET}"}
            page.route(address, lambda route: route.continue_(headers=route.request.headers | bearer))
            page.goto(address)
            playwright.expect(page.locator("#key")).to_be_focused()
            page.locator("#key").fill(SECRET)
            write(page, "ab")
            assert page.locator(".token").count() > 5
            kept = page.evaluate("[JSON.stringify(localStorage), sessionStorage.length, document.cookie]")
            assert SECRET not in kept[0] and kept[1:] == [0, ""]
            assert "--api-key" in page.locator("#lock").text_content()
        with browser.new_context(http_credentials={"username": "", "password": SECRET}) as context:
            page = context.new_page()
            page.goto(address)
            playwright.expect(page.locator("#model")).to_contain_text("tiny")
            playwright.expect(page.locator("#lock")).to_be_hidden()
    finally:
        server.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_and_fits_a_phone(browser: Any, server: Served, scheme: str) -> None:
    with browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 740}) as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("#length").fill("30")
        write(page, "ab")
        look_inside(page)
        for number in (0, page.locator(".token").count() - 1):
            page.locator(".token").nth(number).hover()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
        luminance = page.evaluate("""() => {
            const of = (e, name) => getComputedStyle(e)[name].match(/[\\d.]+/g).slice(0, 3)
                .map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
            const sheet = of(document.getElementById("sheet"), "backgroundColor");
            return [".token", ".given", ".legend", "#looks", "#inside p"]
                .map(s => [of(document.querySelector(s), "color"), sheet]);
        }""")
        for text, ground in luminance:  # contrast of WCAG 2.2, 1.4.3
            assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) > 4.5
        assert (luminance[0][1] > 0.5) == (scheme == "light")
