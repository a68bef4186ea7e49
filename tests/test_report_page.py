"""A report as one page: no scripts, nothing from elsewhere, every text escaped, the same as in Markdown."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from seen_html import Seen

from jaxgpt.config import ClassifyConfig, DataConfig, GPTConfig, LabelledConfig, TrainConfig, save_config
from jaxgpt.evaluation.report import refresh_report, write_report
from jaxgpt.text.tokenizer import TOKENIZER_FILE
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.starts import STARTS_FILE

MODEL = GPTConfig(vocab=257, context=64, layers=2, heads=2, width=32)
BAD = '<script>alert("x")</script> & <img src="https://example.com/a.png" onerror=alert(1)>\x1b[31m'
HALF = "half of a pair: \ud83d"


def written(folder: Path, config: Any, rows: list[dict[str, Any]]) -> tuple[Seen, str, str]:
    """The report of a run with these rows: the page as it is seen, its source, and the Markdown."""
    folder.mkdir(exist_ok=True)
    save_config(config, folder)
    load_tokenizer("bytes").save(folder / TOKENIZER_FILE)
    start = {"step": 0, "command": f"jaxgpt pretrain nano --data.path '{BAD}|'", "environment": "jax 1.2.3"}
    (folder / STARTS_FILE).write_text(json.dumps(start) + '\n{"seconds": 5.0}\n')
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(folder).read_text()
    source = (folder / "report.html").read_text()
    return Seen(source), source, text


ROWS: list[dict[str, Any]] = [
    {"step": 0, "val_loss": 5.5, "devices": 1, "device_kind": "cpu", "matmul_flops": 1e11},
    *({"step": step, "loss": 5 / step, "tokens_per_second": 100.0 + step} for step in (1, 2, 3)),
    {"step": 3, "val_loss": 2.25},
    {"step": 3, "sample": f"``{BAD}</pre>`"},
    {"step": 4, "sample": HALF},
]
PRETRAINING = TrainConfig(steps=4, model=MODEL, data=DataConfig(path=BAD), seed=7)
CLASSIFYING = ClassifyConfig(
    steps=4, model=MODEL, labels=("ham<b>", "spam"), data=LabelledConfig(path="texts.csv")
)
CLASS_ROWS = [*ROWS[:4], {"step": 4, "val_loss": 0.5, "val_confusion": "[[5, 1], [2, 9]]"}]


@pytest.mark.parametrize(
    ("config", "rows"), [(PRETRAINING, ROWS), (CLASSIFYING, CLASS_ROWS), (PRETRAINING, [])]
)
def test_the_page_is_sound_and_needs_nothing_from_elsewhere(
    tmp_path: Path, config: Any, rows: list[dict[str, Any]]
) -> None:
    seen, source, _ = written(tmp_path / "run", config, rows)
    assert seen.wrong == [] and source.startswith("<!DOCTYPE html>\n")
    assert {tag for tag, _ in seen.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "table", "tr", "th"),
        *("td", "code", "pre", "figure", "img"),
    }
    assert all(re.match(r"data:image/png;base64,[A-Za-z0-9+/=]+$", value) for value in seen.values("src"))
    names = {name for _, attrs in seen.tags for name in attrs}
    assert names <= {"lang", "charset", "http-equiv", "content", "name", "class", "alt", "src"}
    style = re.findall(r"<style>(.*?)</style>", source, re.S)
    assert len(style) == 1 and not re.search(r"url\(|@import|//", style[0])
    assert "default-src 'none'" in seen.values("content")[0]


def test_texts_of_all_kinds_are_shown_as_they_are(tmp_path: Path) -> None:
    seen, source, _ = written(tmp_path / "<i>run", PRETRAINING, ROWS)
    shown = BAD.replace("\x1b", "␛")
    assert seen.text.count(shown) == 4  # as data, in the command, in the sample and among the settings
    assert f"``{shown}</pre>`" in seen.text and source.count("<pre>") == source.count("</pre>") == 2
    assert "half of a pair: \\ud83d" in seen.text and seen.text.count("<i>run") == 2
    assert "<script" not in source and "onerror=alert(1)&gt;" in source
    labelled, source, _ = written(tmp_path / "classes", CLASSIFYING, CLASS_ROWS)
    assert "ham<b>" in labelled.text and "<b>" not in source


def test_the_page_says_what_the_markdown_says(tmp_path: Path) -> None:
    for name, config, rows in (("text", PRETRAINING, ROWS), ("classes", CLASSIFYING, CLASS_ROWS)):
        seen, source, text = written(tmp_path / name, config, rows)
        cells = [
            cell.strip().replace("`", "").replace(r"\|", "|")
            for line in text.splitlines()
            if line.startswith("|") and not line.startswith("| ---")
            for cell in re.split(r"(?<!\\)\|", line)[1:-1]
        ]
        assert len(cells) > 40
        for cell in cells:
            assert cell.replace("\x1b", "␛") in seen.text, cell
        assert [*re.findall("^## (.*)$", text, re.M)] == re.findall("<h2>(.*)</h2>", source)
        pictures = re.findall(r"^!\[.*\]\((.*)\)$", text, re.M)
        assert pictures == (["loss.png", "confusion.png"] if name == "classes" else ["loss.png"])
        data = [base64.b64decode(value.partition(",")[2]) for value in seen.values("src")]
        assert data == [(tmp_path / name / picture).read_bytes() for picture in pictures]
        assert "| environment | jax 1.2.3 |" in text
    assert "| seed | `7` |" in written(tmp_path / "text", PRETRAINING, ROWS)[2]


def test_a_report_without_its_page_is_written_again_and_otherwise_left_as_it_is(tmp_path: Path) -> None:
    written(tmp_path, PRETRAINING, ROWS)
    page, before = tmp_path / "report.html", (tmp_path / "report.md").stat().st_mtime_ns
    refresh_report(tmp_path)
    assert (tmp_path / "report.md").stat().st_mtime_ns == before
    page.unlink()
    refresh_report(tmp_path)
    assert page.is_file()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs Debian's Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page_in_light_and_dark(
    browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    pytest.importorskip("matplotlib")
    written(tmp_path / "run", CLASSIFYING, CLASS_ROWS)
    asked, complaints = list[str](), list[str]()
    with browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}) as context:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((tmp_path / "run" / "report.html").as_uri())
        colours = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    dark, light = "rgb(22, 24, 27)", "rgb(255, 255, 255)"
    assert colours[1] == (dark if scheme == "dark" else light) and colours[0] != colours[1]
    assert len(sizes) == 2 and min(sizes) > 100 and overflow <= 0
    assert complaints == [] and all(url.startswith(("file:", "data:")) for url in asked)
