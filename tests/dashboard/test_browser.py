"""The page in headless Chromium, at the width of a desktop and of a phone, from disk."""

import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from experiments.hostile_records import SAMPLES, hostile_records
from lighttoken.dashboard.charts import make_charts
from lighttoken.dashboard.gather import gather
from lighttoken.dashboard.page import write_page
from lighttoken.run.process import this_process
from tests.dashboard.conftest import page_of, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "</script><img src=x onerror=\"document.title='hit'\"><b>"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
    pytest.mark.enable_socket,
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    for seed in (0, 1):
        write_run(folder / "runs", "mrpc", "none", seed=seed)
        for codec in ("lighttoken", "lighttoken_paper", "svd"):
            for ratio in (5.0, 25.0, 103.0):
                poor = {"metrics": {"val/accuracy": 0.70, "val/f1": 0.71}} if (codec, ratio) == ("svd", 103.0) else {}
                constant = {"val/accuracy": 0.68, "val/f1": 0.80}
                write_run(folder / "runs", "mrpc", codec, ratio, seed, constant=constant, **poor)
    write_run(folder / "runs", "cola", "svd", 103.0, 0, "failed")
    write_run(folder / "runs", "cola", "pq", 103.0, 0, "running")
    write_run(folder / "runs", NASTY.replace("/", "_"), NASTY, error=NASTY, model=NASTY, config={NASTY: NASTY})
    return page_of(folder)


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one honest run and of hostile records: every value of a record replaced by hostile text, and others."""
    folder = tmp_path_factory.mktemp("hostile")
    write_run(folder / "runs", "mrpc", "svd")
    sample = SAMPLES / "lighttoken/record.json"
    for number, (path, name, text) in enumerate(hostile_records(sample)):
        if name in ("script", "control characters", "climbing path", "lone surrogate", "{}") and "." not in path:
            write_text(folder / f"hostile/{number}/record.json", text)
    texts = {"task": NASTY, "model": NASTY, "codec": NASTY, "error": f"{NASTY}{'x' * 10**7}", "started": NASTY}
    texts |= {"artifact": "../../etc/passwd", "directory": "/etc", "git_commit": "javascript:document.title='hit'"}
    record = json.loads(sample.read_text()) | texts | {"metrics": {f"val/{NASTY}": 0.5}, "versions": {NASTY: NASTY}}
    record["status"], record["process"] = "running", this_process() | {"start": 1}
    write_text(folder / "hostile/lost/record.json", json.dumps(record))
    write_text(folder / "hostile/lost/metrics.csv", f'step,"val/{NASTY.replace(chr(34), chr(39))}"\n1,0.5\n2,0.6\n')
    write_text(folder / f"hostile/{NASTY.replace('/', '_')}/record.json", "[" * 100_000)
    left_out: dict[Path, str] = {}
    runs = gather([folder], left_out)
    return write_page(runs, make_charts(runs), folder, left_out=left_out)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module", params=[(1440, 900), (390, 844)], ids=["desktop", "phone"])
def tab(request, browser):
    """A tab for all tests: the first page in a tab is slow, because plotly.js is compiled."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    yield context.new_page()
    context.close()


@pytest.fixture
def page(tab, page_file):
    yield from opened(tab, page_file)


@pytest.fixture
def hostile_page(tab, hostile_file):
    yield from opened(tab, hostile_file)


def opened(tab, file: Path):
    """The loaded page. Fails at the end if it logged an error or requested anything but itself."""
    uri, problems = file.as_uri(), []
    listeners = {
        "pageerror": lambda error: problems.append(str(error)),
        "console": lambda message: problems.append(message.text) if message.type == "error" else None,
        "request": lambda request: None if request.url.startswith(uri) else problems.append(request.url),
    }
    tab.emulate_media(color_scheme="light", media="screen")
    tab.goto(uri)
    tab.evaluate("sessionStorage.clear(), localStorage.clear()")
    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.reload()
    tab.wait_for_selector("html[data-ready]")
    yield tab
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    tab.goto("about:blank")
    assert problems == []


def column(page, number: int) -> list[str]:
    return page.locator(f"#table tbody td:nth-child({number})").all_inner_texts()


def test_the_page_opens_with_codec_by_ratio(page):
    assert page.locator("main > section").first.get_attribute("id") == "answer"
    mrpc = page.locator("#answers table", has_text="lighttoken_paper")
    assert mrpc.locator("thead th").all_inner_texts() == ["codec", "5x", "25x", "103x"]
    assert mrpc.locator(".best").count() == 3
    assert mrpc.locator("tr.line").all_inner_texts()[1].split() == ["constant", "answer", "0.7400"]
    svd = mrpc.locator("tr", has_text="svd").locator("td").last
    assert "no better than a constant" in svd.inner_text()
    bar, whole, constant = (svd.locator(f".{name}").bounding_box() for name in ("fill", "whole", "constant"))
    assert bar["x"] + bar["width"] < constant["x"] + 5 < whole["x"]


def test_sort_by_header_with_the_keyboard(page):
    header = page.locator("#table th", has_text="score")
    header.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    scores = [float(text) for text in column(page, 3) if text]
    assert len(scores) > 15
    assert scores == sorted(scores, reverse=True)
    assert column(page, 3)[-1] == ""  # a run without a score comes last
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    scores = [float(text) for text in column(page, 3) if text]
    assert scores == sorted(scores)
    assert column(page, 3)[-1] == ""


def test_filter_by_words_and_by_choice_and_keep_the_filter_after_a_reload(page):
    page.fill("#filter", "svd 103x")
    assert page.inner_text("#count") == "3 of 23 runs"
    page.select_option("#filter-status", "failed")
    assert page.inner_text("#count") == "1 of 23 runs"
    assert "cannot be met" in page.inner_text("#table tbody")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.inner_text("#count") == "1 of 23 runs"
    page.fill("#filter", "")
    page.select_option("#filter-status", "")
    assert page.inner_text("#count") == "23 of 23 runs"


def test_open_a_run_with_enter_and_close_it_with_escape(page):
    page.fill("#filter", "lighttoken_paper 25x seed1")
    link = page.locator("#table tbody a[href^='#run=']")
    link.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert "#run=" in page.url
    for text in ("mrpc, lighttoken_paper at 25x, seed 1", "Bytes by part", "decoder", "learning_rate", "val/f1"):
        assert text in dialog.inner_text()
    dialog.locator(".panel").first.scroll_into_view_if_needed()
    page.wait_for_selector("dialog .panel .main-svg")
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.wait_for_url(lambda url: "#run=" not in url)
    assert link.evaluate("link => link === document.activeElement")


def test_a_run_is_opened_by_its_address(page, page_file):
    page.fill("#filter", "cola failed")
    address = page.locator("#table tbody a").first.get_attribute("href")
    page.goto("about:blank")
    page.goto(page_file.as_uri() + address)
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert "the smallest artifact is 60x" in dialog.inner_text()


def test_the_charts_are_drawn_and_fit_the_width(page):
    for name in ("score", "distortion", "frequency", "spectrum", "training"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#{name} .panel .main-svg .trace")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    traces = page.locator("#score .panel[aria-label^='mrpc'] .trace")
    before = traces.count()
    button = page.locator("#score .legend button", has_text="svd")
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator("#distortion .legend button", has_text="svd").get_attribute("aria-pressed") == "false"
    expect(traces).to_have_count(before - 1)


def test_the_page_prints_whole(page):
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    panels = page.locator("main .panel")
    assert panels.count() == page.locator("main .panel:has(.main-svg[viewBox] .trace)").count() > 5
    is_cut = "(element) => element.scrollHeight > element.clientHeight + 1"
    assert page.evaluate(f"[...document.querySelectorAll('.scroll, main .panel')].filter({is_cut}).length") == 0
    assert page.locator("#table tbody tr").count() == 23
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.locator(".main-svg[viewBox]").count() == 0


def test_the_theme_follows_the_system_until_the_reader_chooses(page):
    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert paper() == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    dark = paper()
    assert dark != "rgb(255, 255, 255)"
    page.click("#theme")
    assert paper() == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="light")
    page.click("#theme")
    assert paper() == dark


def test_text_of_records_is_shown_and_never_executed(page):
    page.fill("#filter", "onerror")
    link = page.locator("#table tbody a[href^='#run=']")
    assert NASTY in link.inner_text()
    link.click()
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert NASTY in dialog.inner_text()
    page.keyboard.press("Escape")
    page.locator("#score").scroll_into_view_if_needed()
    page.wait_for_selector("#score .panel .main-svg .trace")
    page.wait_for_timeout(200)
    assert page.locator("img").count() == 0
    assert page.title() == "lighttoken: runs"


def test_hostile_records_are_shown_as_text_and_nothing_runs(hostile_page):
    page = hostile_page
    count = page.locator("#table tbody tr").count()
    assert count > 30
    for name in ("score", "distortion", "spectrum"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#{name} .panel .main-svg .trace")
    addresses = page.locator("#table tbody a[href^='#run=']").evaluate_all("links => links.map((link) => link.hash)")
    for address in addresses[::4]:
        page.evaluate("address => { location.hash = address; }", address)
        page.wait_for_selector("dialog[open]")
        assert len(page.inner_text("dialog")) < 20_000
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
    page.fill("#filter", "lost")
    assert page.inner_text("#count") == f"1 of {count} runs"
    page.locator("#table tbody a[href^='#run=']").click()
    for text in (NASTY, "lost", "is gone and has not said why", "../../etc/passwd"):
        assert text in page.inner_text("dialog")
    page.keyboard.press("Escape")
    links = page.evaluate("[...document.links].map((link) => link.href)")
    root = page.evaluate("new URL('.', location).href")
    assert all(link.startswith(root) for link in links)
    assert page.locator("img").count() == page.locator("script:not([id])").count() - 2 == 0
    assert page.title() == "lighttoken: runs"


def test_what_is_left_out_is_named_on_the_page(hostile_page):
    note = hostile_page.locator("#left-out")
    assert "odd records are left out" in note.inner_text()
    note.locator("summary").click()
    assert f"{NASTY.replace('/', '_')}/record.json: it is nested more than 30 deep" in note.inner_text()
    width = hostile_page.evaluate("document.documentElement.scrollWidth")
    assert width <= hostile_page.viewport_size["width"]


def test_a_lost_run_has_a_colour_of_its_own(hostile_page):
    def colour(status: str) -> str:
        return hostile_page.locator(f"#table span.{status}").first.evaluate("it => getComputedStyle(it).color")

    assert colour("lost") != colour("done")
    assert "1 lost" in hostile_page.inner_text("#written")
    hostile_page.select_option("#filter-status", "lost")
    assert hostile_page.inner_text("#count").startswith("1 of ")
