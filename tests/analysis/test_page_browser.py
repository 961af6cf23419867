"""The page in a headless Chromium, opened from disk: it sorts, filters, searches and opens samples, and runs nothing
that a model wrote. The tests skip if Chromium, ChromeDriver or selenium is not installed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest

from helpers.page_data import HOSTILE, hostile_page, large_page, sample, small_page
from lm_eval_aft.analysis.report.page.data import Chart, ChartPoint, Curve, PageData
from lm_eval_aft.analysis.report.page.write import write_page

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1200,900",
)  # fmt: skip
SHOWS_HIDDEN = str.maketrans(
    {"\x00": "NUL", "\x1b": "ESC", "\x07": "BEL", "\r": "CR", "\u202e": "U+202E", "\u200b": "U+200B"}
    | {"\U000e0041": "U+E0041", "\ud800": "U+D800", "\u2028": "U+2028"}
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory):
    """One browser for all tests, with a log of its network requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver_path = shutil.which("chromedriver")
    if not CHROMIUM or not driver_path:
        pytest.skip("Chromium and ChromeDriver are not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()


class Page:
    """A page in the browser."""

    def __init__(self, driver, path: Path):
        self.driver, self.path = driver, path
        driver.get("about:blank")
        for log in ("performance", "browser"):
            driver.get_log(log)
        driver.get(path.as_uri())

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, ready: Callable[[], object], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, "the page did not get there"
            time.sleep(0.02)

    def status(self) -> str:
        return self.one(".status").text

    def choose(self, kind: str) -> None:
        self.run("document.querySelector(`input[value=${arguments[0]}]`).click()", kind)

    def search(self, words: str) -> None:
        self.one("input[type=search]").clear()
        self.one("input[type=search]").send_keys(words)

    def open(self, number: int) -> str:
        """Open the n-th question of the list and return its text."""
        before = self.one(".detail").id, self.run("return document.querySelector('.detail').firstChild")
        button = self.all(".list button")[number]
        self.run("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        self.wait(lambda: self.run("return document.querySelector('.detail').firstChild") != before[1])
        return self.run("return document.querySelector('.detail').textContent")

    def press(self, label: str) -> None:
        """Press the button of the open question with this label, and wait for the question to be drawn again."""
        before = self.run("return document.querySelector('.detail').firstChild")
        button = next(each for each in self.all(".detail button") if label in each.text)
        button.click()
        self.wait(lambda: self.run("return document.querySelector('.detail').firstChild") != before)

    def pick(self, label: str, value: str) -> None:
        """Choose a value of the filter with this label."""
        script = """
            const fields = [...document.querySelectorAll('.field')];
            const select = fields.find((e) => e.firstChild.textContent === arguments[0]).querySelector('select');
            select.value = [...select.options].find((e) => e.textContent === arguments[1]).value;
            select.dispatchEvent(new Event('change'));
        """
        self.run(script, label, value)

    def requests(self) -> list[str]:
        """Every address that the browser requested since the page was opened."""
        events = [json.loads(row["message"])["message"] for row in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        return [row["message"] for row in self.driver.get_log("browser")]


@pytest.fixture
def opened(chromium, tmp_path: Path) -> Callable[[PageData], Page]:
    return lambda data: Page(chromium, write_page(tmp_path / "page.html", data))


@pytest.fixture
def small(opened) -> Page:
    return opened(small_page())


def test_every_part_is_there_and_nothing_is_fetched(small: Page):
    assert small.texts("h2") == [
        "Verdict",
        "Scores and cost",
        "Comparisons",
        "What aggregation did",
        "Samples",
        "Curves",
        "Settings and commands",
    ]
    assert small.texts("nav.parts a") == small.texts("h2")
    assert small.driver.title == "A small page"
    assert small.complaints() == []
    assert small.requests() == [small.path.as_uri()]


def test_the_first_screen_has_the_verdict_and_all_scores_with_their_cost(small: Page):
    screen = small.run("return innerHeight")
    for selector in ("h1", ".headline", ".strip tbody tr:last-child"):
        box = small.one(selector).rect
        assert box["y"] + box["height"] < screen
    assert small.texts(".headline p") == [
        "▼ worse gsm8k: aft is 3.6 points worse than sft.",
        "This is the best of 2 runs against sft: 2 worse.",
    ]
    assert small.texts(".strip tbody th") == ["sft baseline", "aft ▼ worse", "other"]
    assert small.texts(".strip tbody tr:nth-child(2) .number") == [
        "24.4 [23.2, 25.6]",
        "1,056 tokens",
        "\u00d7\u20099.6",
    ]
    # 25 lies in the middle of the axis, and 28 to its right.
    circle, square = small.one(".strip circle").rect, small.one(".strip .square").rect
    track = small.one(".strip .track").rect
    assert circle["x"] + circle["width"] / 2 == pytest.approx(track["x"] + 0.44 * track["width"], abs=1)
    assert square["x"] == pytest.approx(track["x"] + 0.8 * track["width"], abs=5)
    assert "lm_eval --model aft" in small.one("#settings").get_attribute("textContent")


def test_a_click_sorts_by_value_and_another_turns_it_round(small: Page):
    names = "#leaderboard tbody th"

    def order() -> list[str]:
        return [name.split("4 questions")[0] for name in small.texts(names)]

    heads = small.all("#leaderboard thead button")
    assert order() == ["beta", "alpha 10", "alpha 9"]
    heads[2].click()
    # It sorts by value: as text, "9.0" would be above "28.0".
    assert order() == ["alpha 10", "beta", "alpha 9"]
    heads[2].click()
    assert order() == ["alpha 9", "beta", "alpha 10"]
    # A cell without a value is last in both directions.
    for _ in range(2):
        heads[1].click()
        assert order()[-1] == "alpha 10"
    enter = "\ue007"
    heads[0].send_keys(enter)
    assert order() == ["alpha 9", "alpha 10", "beta"]
    marked = [head.get_attribute("aria-sort") for head in small.all("#leaderboard th[aria-sort]")]
    assert marked == ["ascending", "none", "none"]
    assert "4 questions instead of 12." in small.texts("#leaderboard tr.apart th")[0]


def test_curves_are_drawn_with_their_intervals(small: Page):
    small.wait(lambda: small.all("#curves .canvas svg"))
    assert len(small.all(".canvas .series .line")) == 2
    assert len(small.all(".canvas .mark")) == 4
    assert len(small.all(".canvas .mark .interval")) == 2
    labels = [mark.get_attribute("aria-label") for mark in small.all(".canvas .mark")]
    assert labels[0] == "K=5, L=0: 100, 20 [18, 22]"
    box = small.one(".canvas svg").rect
    for mark in small.all(".canvas .mark"):
        assert box["x"] <= mark.rect["x"]
        assert mark.rect["x"] + mark.rect["width"] <= box["x"] + box["width"]
        assert box["y"] <= mark.rect["y"]


def test_comparisons_say_what_was_measured(small: Page):
    group, run, vote, _, graded = small.texts("#comparisons tbody tr")
    assert "gsm8k exact_match, %" in group
    numbers = ("28.0 \u2192 24.4", "\u22123.6 [\u22126.1, \u22121.1]", "worse", "0.005", "0.010", "118 / 1,035 / 166",
               "\u00d7\u20099.6", "\u221212.0 [\u221220.0, \u22123.0]", "Another seed.")  # fmt: skip
    assert [words for words in numbers if words not in run] == []
    assert "against majority vote of 9, sft" in vote
    assert "+1.10" in graded
    # An interval without an end is not shown.
    assert "[" not in graded
    assert len(small.all("#comparisons .forest.worse .interval")) == 3
    # Each axis has its ticks, since the units differ.
    assert small.texts("#comparisons .ticks text") == ["\u22125", "0", "+5", "0"]
    zero, five = (line.rect["x"] for line in small.all("#comparisons tr.run .forest.worse line")[1:3])
    circle = small.one("#comparisons tr.run .forest.worse circle").rect
    assert circle["x"] + circle["width"] / 2 == pytest.approx(zero - 3.6 / 5 * (five - zero), abs=1)


def test_comparisons_take_the_side_that_the_data_say(opened):
    effects = small_page().effects
    effect = effects.groups[0].effects[0]
    turned = (("worse", 118), ("level", 1035), ("better", 166))
    neutral = (("level", 118), ("level", 1035), ("level", 166))
    less = replace(effect, verdict="better", outcomes=turned)
    # The interval leaves out zero, and the verdict is the data's all the same.
    doubtful = replace(effect, verdict="no difference shown")
    neither = replace(effect, verdict="neither better nor worse", outcomes=neutral)
    group = replace(effects.groups[0], effects=(less, doubtful, neither))
    page = opened(PageData("effects", effects=replace(effects, groups=(group,))))
    better, unclear, level = page.texts("#comparisons tr.run th")
    assert "better" in better
    assert "no difference shown" in unclear
    assert "neither better nor worse" in level
    bars = page.run("return [...document.querySelectorAll('.bar rect')].map((e) => e.getAttribute('class'))")
    assert bars == ["worse", "level", "better", "better", "level", "worse", "level", "level", "level"]
    forests = page.run("return [...document.querySelectorAll('svg.forest')].map((e) => e.getAttribute('class'))")
    assert forests == ["track forest better", "track forest level", "track forest level"]


def test_aggregation_is_three_sentences_two_pictures_and_folded_tables(small: Page):
    panel = small.one("#diagnostics .panel")
    assert small.texts("#diagnostics .findings li") == [
        "2 fixed, 1 broken.",
        "Drafts disagree on 3 questions.",
        "81.0% of the answers repeat a draft.",
    ]
    # No vote was counted on the questions with two right drafts.
    assert [bar.get_attribute("textContent") for bar in small.all("figure svg[role=img] rect")] == [
        "answer right on 0%", "vote right on 0%", "answer right on 75%", "vote right on 25%", "answer right on 100%",
    ]  # fmt: skip
    heights = [bar.rect["height"] for bar in small.all("figure svg[role=img] rect")]
    assert heights == pytest.approx([1, 1, 112.5, 37.5, 150])
    first, second = (bar.rect["width"] for bar in small.all(".copies rect"))
    assert second == pytest.approx(2 * first, abs=1)
    assert small.texts(".copies td.number") == ["20.0% (1)", "40.0% (2)"]
    assert not panel.find_element("css selector", ".data table").is_displayed()
    panel.find_element("css selector", ".data summary").click()
    assert panel.find_element("css selector", ".data table").is_displayed()


def test_filters_count_and_choose(small: Page):
    small.wait(lambda: small.status() == "5 of 5 samples")
    assert [text.split()[-1] for text in small.texts(".kind")] == ["5", "2", "2", "1", "1"]
    expected = {"right": ["#0", "#1"], "wrong": ["#2", "#3"], "fixed": ["#1"], "broken": ["#2"]}
    for kind, documents in expected.items():
        small.choose(kind)
        assert [where.split(" ")[0] for where in small.texts(".list .where")] == documents
    small.choose("all")
    small.run("const s = document.querySelectorAll('select')[1]; s.value = 'run B'; s.onchange = 0;"
              "s.dispatchEvent(new Event('change'))")  # fmt: skip
    assert small.texts(".list .where") == ["#0"]
    assert small.status() == "1 of 5 samples"


def test_search_goes_through_the_transcripts(small: Page):
    small.search("DRAFT ONE OF 2")
    small.wait(lambda: small.status() == "1 of 5 samples")
    assert small.texts(".list .snippet") == ["question 2?"]
    small.search("nowhere")
    small.wait(lambda: small.status() == "0 of 5 samples")
    # These words stand in an earlier message.
    small.search("be brief")
    small.wait(lambda: small.status() == "5 of 5 samples")


def test_a_sample_shows_drafts_layers_answer_seeds_and_tokens(small: Page):
    text = small.open(2)
    for words in ("gsm8k #2", "broken", "gold answer", "Drafts (2)", "Draft 1", "seed 4611686018427387905",
                  "12 tokens", "ended by itself", "cut at the token limit", "copies draft 2", "one of 2",
                  "answer found: 8"):  # fmt: skip
        assert words in text
    # Seeds and tokens wait behind a button, and stay for the next question.
    assert not any(footer.is_displayed() for footer in small.all(".card footer"))
    small.press("Seeds and tokens")
    assert all(footer.is_displayed() for footer in small.all(".card footer"))
    small.open(3)
    assert all(footer.is_displayed() for footer in small.all(".card footer"))
    small.open(2)
    assert small.texts(".detail h4") == ["Question", "Drafts (2)", "Answer"]
    left, right = (card.rect for card in small.all(".cards")[0].find_elements("css selector", ".card"))
    # The drafts stand side by side.
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


@pytest.mark.long
def test_from_one_question_to_the_next_and_to_another_run(small: Page):
    assert "The same question in" in small.open(0)
    small.one(".twins button").click()
    small.wait(lambda: "run B" in small.texts(".detail dd"))
    small.open(1)
    small.all(".steps button")[2].click()
    small.wait(lambda: "gsm8k #2" in small.texts(".detail h3"))
    assert small.one(".list [aria-current]").get_attribute("data-place") == "2"
    assert small.run("return location.hash") == "#sample-2"
    again = Page(small.driver, small.path)
    again.driver.get(small.path.as_uri() + "#sample-2")
    again.driver.refresh()
    again.wait(lambda: "gsm8k #2" in again.texts(".detail h3"))


def test_filters_by_drafts_layers_and_category(small: Page):
    documents = "return [...document.querySelectorAll('.list .where')].map((e) => e.textContent.split(' ')[0])"
    for label, value, expected in (
        ("Right drafts", "2", ["#2"]),
        ("Answer changed in", "no layer", ["#0"]),
        ("Answer changed in", "layer 1", ["#1", "#2"]),
    ):
        small.pick(label, value)
        assert small.run(documents) == expected
        small.pick(label, "all")
    # There is one category, which is no choice.
    assert "Category" not in [field.text.split("\n")[0] for field in small.all(".field") if field.is_displayed()]


def test_the_page_opens_at_the_featured_question_of_its_run(opened):
    page = opened(replace(small_page(), featured=1))
    page.wait(lambda: page.texts(".detail h3") == ["gsm8k #1"])
    assert page.status() == "4 of 5 samples"
    assert page.one(".list [aria-current]").get_attribute("data-place") == "1"
    # The page starts at its top, and its address is as it was.
    assert page.run("return [scrollY, location.hash]") == [0, ""]


@pytest.mark.long
def test_a_deep_link_chooses_the_question_and_scrolls_the_list_to_it(opened):
    many = tuple(sample(doc, right=doc % 2 == 0) for doc in range(300))
    page = opened(replace(small_page(), samples=many))
    page.choose("wrong")
    page.run("location.hash = '#sample-250'")
    page.wait(lambda: page.texts(".detail h3") == ["gsm8k #250"])
    # The filter would hide the question, so it is gone.
    assert page.status() == "300 of 300 samples"
    current, side = page.one(".list [aria-current]"), page.one(".side").rect
    assert current.get_attribute("data-place") == "250"
    assert side["y"] <= current.rect["y"]
    assert current.rect["y"] + current.rect["height"] <= side["y"] + side["height"]
    again = Page(page.driver, page.path)
    again.driver.get(page.path.as_uri() + "#sample-270")
    again.driver.refresh()
    again.wait(lambda: again.texts(".detail h3") == ["gsm8k #270"])
    assert again.one(".list [aria-current]").is_displayed()


def test_keys_go_through_the_questions_and_to_the_search(small: Page):
    def press(key: str) -> None:
        small.driver.switch_to.active_element.send_keys(key)

    press("j")
    small.wait(lambda: small.texts(".detail h3") == ["gsm8k #0"])
    press("j")
    small.wait(lambda: small.texts(".detail h3") == ["gsm8k #1"])
    press("k")
    small.wait(lambda: small.texts(".detail h3") == ["gsm8k #0"])
    press("/")
    assert small.driver.switch_to.active_element.get_attribute("type") == "search"
    # In the search field they are letters.
    press("j")
    assert small.one("input[type=search]").get_attribute("value") == "j"
    assert small.texts(".detail h3") == ["gsm8k #0"]


def test_an_answer_is_shown_as_changes_from_the_draft_it_resembles(small: Page):
    small.open(1)
    small.press("Show changes from draft 1")
    assert small.texts(".answer .diff del") == [":"]
    assert small.texts(".answer .diff ins") == [" is"]
    assert small.texts(".answer .diff") == ["draft one of 1: is 7"]
    small.press("Show the answer alone")
    assert small.texts(".answer pre") == ["draft one of 1 is 7"]
    # A copy has no changes to show.
    assert "Show changes" not in small.open(2)


def test_thoughts_and_prompts_are_folded(small: Page):
    assert "<think>" not in small.open(4)
    assert small.texts(".detail article pre") == ["it is 6"]
    small.one(".detail article .fold summary").click()
    small.wait(lambda: small.texts(".detail article pre") == ["it is 6", "<think>hard</think>it is 6"])
    assert "<user>" not in small.open(2)
    small.all(".detail .fold summary")[1].click()
    small.wait(lambda: "<user>question 2?" in small.texts(".detail .fold pre"))
    small.one(".detail .answer > .fold summary").click()
    small.wait(lambda: small.texts(".detail .answer > .fold pre") == ["2 drafts:"])


def test_one_question_in_all_runs_side_by_side(small: Page):
    small.open(0)
    small.press("All runs side by side")
    assert small.texts(".detail .cards h5") == ["run A", "run B"]
    assert small.texts(".detail .cards pre") == ["draft two of 0: 8", "it is 6"]
    left, right = (card.rect for card in small.all(".detail .cards .card"))
    assert left["y"] == right["y"]
    small.press("run B")
    assert "run B" in small.texts(".detail dd")


@pytest.mark.long
def test_the_keyboard_is_enough(small: Page):
    first = small.all(".list button")[0]
    arrow_down, enter = "\ue015", "\ue007"
    first.send_keys(arrow_down)
    assert small.driver.switch_to.active_element.get_attribute("data-place") == "1"
    small.driver.switch_to.active_element.send_keys(enter)
    small.wait(lambda: "gsm8k #1" in small.texts(".detail h3"))
    # A screen reader continues at the heading.
    assert small.driver.switch_to.active_element.tag_name == "h3"


def test_hostile_text_is_text(opened):
    page = opened(hostile_page())
    for panel in page.all("details:not([open]) > summary"):
        panel.click()
    seen = ""
    for number in range(len(page.all(".list button"))):
        seen += page.open(number)
        page.run("for (const d of document.querySelectorAll('details')) d.open = true;")
    for text in HOSTILE:
        assert text.translate(SHOWS_HIDDEN) in seen
    for selector in (*page.all("h1, h2, .noted, td, figcaption"), page.one("body")):
        page.run("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))", selector)
    page.search("window.hacked")
    page.wait(lambda: "searching" not in page.status())
    assert page.run("return window.hacked") is None
    assert (
        page.run("return document.querySelectorAll('main :is(img, iframe, script, style, link, meta, a)').length") == 0
    )
    assert page.requests() == [page.path.as_uri()]
    # Nothing was attempted, so the policy had nothing to refuse.
    assert page.complaints() == []


@pytest.fixture
def beacon() -> Iterator[tuple[str, list[str]]]:
    """The address of a local server, and the paths that were requested from it."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requested
        server.shutdown()


@pytest.mark.long
def test_the_policy_would_hold_if_the_script_did_not(opened, beacon, tmp_path: Path):
    address, requested = beacon
    page = opened(small_page())
    injected = """
        const node = document.createElement(arguments[0]);
        for (const [name, value] of Object.entries(arguments[1])) node.setAttribute(name, value);
        document.body.append(node);
        return true;
    """
    handler = "try { document.body.setAttribute('onclick', '1'); return 'set' } catch (error) { return error.name }"
    assert page.run(handler) == "TypeError"
    page.run(injected, "img", {"src": address + "/image"})
    page.run(injected, "iframe", {"src": address + "/frame"})
    page.run(injected, "link", {"rel": "stylesheet", "href": address + "/style"})
    assert page.run("return fetch(arguments[0]).then(() => 'sent', () => 'refused')", address + "/fetch") == "refused"
    refused = "try { document.body.innerHTML = '<b>x</b>'; return 'set' } catch (error) { return error.name }"
    assert page.run(refused) == "TypeError"
    time.sleep(0.3)
    assert requested == []
    # Without the policy the same element does reach the server.
    (tmp_path / "open.html").write_text("<body>no policy")
    open_page = Page(page.driver, tmp_path / "open.html")
    open_page.run(injected, "img", {"src": address + "/image"})
    open_page.wait(lambda: requested == ["/image"])


@pytest.mark.long
def test_a_mebibyte_is_clipped_until_a_click(opened):
    page = opened(hostile_page())
    text = page.open(len(page.all(".list button")) - 1)
    assert "<b>xxx" in text
    assert "THE END" not in text
    assert len(text) < 60_000
    button = next(each for each in page.all(".detail .more") if "1,048,587" in each.text)
    button.click()
    assert page.run("return document.querySelector('.answer pre').textContent").endswith("x THE END")


def test_a_phone_gets_one_pane_and_no_sideways_scrolling(opened):
    page = opened(small_page())
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.run("return document.documentElement.scrollWidth") == 390
        page.open(0)
        assert not page.one(".side").is_displayed()
        assert page.run("return document.documentElement.scrollWidth") == 390
        page.one(".back").click()
        assert page.one(".side").is_displayed()
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.long
def test_both_colour_schemes_are_readable(small: Page):
    """The contrast of text on its background, by the formula of WCAG 2, is at least 4.5 in both schemes."""
    pairs = [("ink", "paper"), ("soft", "paper"), ("soft", "card"), ("good", "good-paper"), ("bad", "bad-paper"),
             ("warn", "warn-paper"), ("warn", "paper"), ("link", "paper"), ("link", "card"), ("good", "paper"),
             ("bad", "paper"), *((f"s{number}", "paper") for number in range(8))]  # fmt: skip
    style = "const style = getComputedStyle(document.documentElement);"
    read = style + "return arguments[0].map((name) => style.getPropertyValue('--' + name))"
    for scheme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        small.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        for pair in pairs:
            front, back = (_luminance(colour) for colour in small.run(read, pair))
            contrast = (max(front, back) + 0.05) / (min(front, back) + 0.05)
            assert contrast >= 4.5, (scheme, pair)
    small.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


SMALLEST = """
    const sizes = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('script')) continue;
      sizes.push([parseFloat(getComputedStyle(element).fontSize), element.tagName + '.' + element.className]);
    }
    return sizes.sort((a, b) => a[0] - b[0])[0];
"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.long
def test_no_text_is_smaller_than_12_pixels(opened, width: int):
    page = opened(hostile_page())
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.wait(lambda: page.all(".canvas svg"))
        page.run("for (const each of document.querySelectorAll('details')) each.open = true;")
        smallest = [page.run(SMALLEST)]
        page.run("document.querySelectorAll('.list button')[2].click()")
        page.wait(lambda: page.all(".detail h3"))
        page.run("document.querySelector('.detail').classList.add('technical')")
        smallest.append(page.run(SMALLEST))
        assert all(pixels >= 12 for pixels, _ in smallest), smallest
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.long
def test_everything_that_can_be_used_has_a_name_and_shows_the_focus(small: Page):
    small.open(0)
    nameless = """
        const named = (e) => e.getAttribute('aria-label') || e.labels?.[0]?.textContent.trim() || e.textContent.trim();
        const used = document.querySelectorAll('button, select, input, summary, a, [tabindex="0"], [role=img]');
        return [...used].filter((e) => !named(e)).map((e) => e.outerHTML.slice(0, 80));
    """
    assert small.run(nameless) == []
    tab = "\ue004"
    for _ in range(12):
        small.driver.switch_to.active_element.send_keys(tab)
        shown = small.run(
            "return [document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert shown[0] == "INPUT" or shown[1] != "none", shown


@pytest.mark.long
def test_a_toggle_keeps_the_focus(small: Page):
    small.open(0)
    small.press("Seeds and tokens")
    assert small.driver.switch_to.active_element.text == "Seeds and tokens"
    assert small.driver.switch_to.active_element.get_attribute("aria-pressed") == "true"


@pytest.mark.long
def test_nothing_moves_if_the_user_prefers_less_motion(small: Page):
    small.run("Object.assign(document.body.style, {transition: 'all 9s', scrollBehavior: 'smooth'})")
    motion = "const style = getComputedStyle(document.body); return [style.transitionProperty, style.scrollBehavior]"
    assert small.run(motion) == ["all", "smooth"]
    reduce = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    small.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": reduce})
    assert small.run(motion) == ["none", "auto"]
    small.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.long
def test_paper_gets_the_open_question_and_the_settings_in_dark_ink(small: Page):
    small.open(1)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    small.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    try:
        small.run("dispatchEvent(new Event('beforeprint'))")
        shown = {
            name: small.one(name).is_displayed()
            for name in (".side", ".filters", "nav.parts", ".detail", "#settings pre")
        }
        assert shown == {
            ".side": False, ".filters": False, "nav.parts": False, ".detail": True, "#settings pre": True,
        }  # fmt: skip
        paper = "return getComputedStyle(document.documentElement).getPropertyValue('--paper')"
        assert small.run(paper).strip() == "#fff"
        # No table is wider than the paper.
        size = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        small.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        widths = "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
        assert len(set(small.run(widths))) == 1
    finally:
        small.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        small.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def _luminance(colour: str) -> float:
    digits = colour.strip().lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.long
def test_a_whole_benchmark_opens_in_two_seconds(opened):
    """1,319 questions at k=5, layers=2: time until the page reacts and shows the tenth question from the end.

    The best of up to five times counts, because the machine may be busy.
    """
    page = opened(large_page())
    assert page.path.stat().st_size < 10_000_000
    times: list[int] = []
    while len(times) < 5 and min(times, default=2000) >= 2000:
        page.driver.refresh()
        page.wait(lambda: page.texts(".detail h3") == ["gsm8k #1309"])
        times.append(int(page.run("return document.documentElement.dataset.shown")))
    assert min(times) < 2000, times
    assert page.status() == "1,319 of 1,319 samples"
    assert "Answer" in page.open(50)
    page.search("the needle")
    page.wait(lambda: page.status() == "1 of 1,319 samples", 30)
    assert page.texts(".list .where") == ["#1318"]


@pytest.mark.long
def test_curves_over_the_same_few_places_stand_apart(opened):
    curves = tuple(
        Curve(f"K={k}", tuple(ChartPoint(layers, k, k - 1, k + 1) for layers in range(3))) for k in (1, 3, 5)
    )
    page = opened(PageData("curves", charts=(Chart("depth", "layers", "score", curves),)))
    page.wait(lambda: page.all(".canvas svg"))
    lines = page.run("return [...document.querySelectorAll('.mark .interval')].map((e) => +e.getAttribute('x1'))")
    assert len(set(lines)) == 9
    ticks = page.run("return [...document.querySelectorAll('.canvas text')].map((e) => e.textContent)")
    assert not {"0.5", "1.5"} & set(ticks)
    # The names are beside the last points, one below the other.
    names = page.all(".canvas text.name")
    assert [name.text for name in names] == ["K=5", "K=3", "K=1"]
    tops = [name.rect["y"] for name in names]
    assert all(below - above >= 13 for above, below in pairwise(tops))


@pytest.mark.long
def test_an_axis_that_does_not_start_at_zero_says_so(opened):
    page = opened(small_page())
    page.wait(lambda: page.all(".canvas svg"))
    assert page.texts(".canvas text.label")[-1] == "accuracy, % (axis cut below)"


@pytest.mark.long
def test_many_votes_wait_for_a_click(opened):
    effects = small_page().effects
    run, vote = effects.groups[0].effects
    group = replace(effects.groups[0], effects=(run, *[vote] * 17))
    page = opened(PageData("votes", effects=replace(effects, groups=(group,))))
    votes = page.all("#comparisons tr.vote")
    assert not any(row.is_displayed() for row in votes)
    page.one("#comparisons button").click()
    assert all(row.is_displayed() for row in votes)
    assert page.one("#comparisons button").text == "Show 17 votes of equal cost"
