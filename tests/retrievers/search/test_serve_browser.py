"""The search page in a real browser: headless Chromium, driven through its WebDriver."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.browser import chromium as started
from tests.browser import show, violations
from tests.worlds import HOSTILE, World, served

PHONE, WIDE = 390, 1280

pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")

from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.slow


def encoded(size=(40, 60)):
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("browser"))
    with served(world.searchers(max_bytes=100_000)) as found:
        yield found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def browser(chromium, address):
    """The empty page at 1280 pixels; whatever the browser complained about fails the test."""
    show(chromium, WIDE)
    chromium.get(address)
    chromium.get_log("browser")
    yield chromium
    complaints = [entry["message"] for entry in chromium.get_log("browser")]
    assert not [text for text in complaints if "status of 4" not in text]


def until(driver, condition):
    return WebDriverWait(driver, 60, poll_frequency=0.1).until(condition)


def one(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector)


def many(driver, selector):
    return driver.find_elements(By.CSS_SELECTOR, selector)


def active(driver):
    return driver.switch_to.active_element.get_attribute("id")


def loaded(driver):
    """Whether all pictures of results have pixels, once each was scrolled to."""
    return driver.execute_script(
        "const all = [...document.querySelectorAll('.card img')];"
        "all.forEach(i => { i.loading = 'eager'; });"
        "return all.length > 0 && all.every(i => i.complete && (i.naturalWidth > 0"
        " || i.src.endsWith('7%3A99')));"  # its path leads out of the root
    )


def typed(driver, text):
    box = one(driver, "#q")
    box.send_keys(text, Keys.ENTER)
    until(driver, lambda d: many(d, "section .card") or many(d, ".problem"))


def sections(driver):
    return [element.rect for element in many(driver, "section")]


def test_a_typed_query_by_keyboard_alone(browser):
    browser.execute_script("document.querySelector('a.skip').focus()")
    order = []
    for _ in range(5):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        order.append(active(browser))
    assert order[1:4] == ["q", "file", "submit"]
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    for _ in range(5):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        order.append(active(browser))
    assert order[5:] == ["instruction", "own", "modality", "own_picture", "k"]
    one(browser, "#q").send_keys("red number 5")
    one(browser, "#submit").send_keys(Keys.ENTER)
    until(browser, lambda d: len(many(d, "section .card")) == 24)
    assert [e.text.split()[0] for e in many(browser, "h2")] == ["raw", "enriched"]
    assert one(browser, "#q").get_attribute("value") == "red number 5"
    assert one(browser, ".read").text == "Find it. red number 5"
    assert [e.text for e in many(browser, "#r1 .rank")] == [str(n) for n in range(1, 13)]
    until(browser, loaded)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_phone_and_wide_screens_and_shuts_nobody_out(browser, address, scheme):
    for width in (WIDE, PHONE):
        show(browser, width, scheme)
        browser.get(address)
        assert len(many(browser, ".cards > .card")) == 24
        assert len(many(browser, ".examples a")) == 8
        until(browser, loaded)
        assert not violations(browser)
        typed(browser, "word " * 30)
        until(browser, loaded)
        first, second = (element.rect for element in many(browser, "section"))
        assert first["y"] == second["y"]
        assert second["x"] >= first["x"] + first["width"] > width / 3, "side by side"
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert not overlaps(browser)
        assert not violations(browser)
    ink, ground = (parts(browser, name) for name in ("color", "background-color"))
    assert (sum(ink) > sum(ground)) is (scheme == "dark")


def parts(driver, name):
    value = one(driver, "body").value_of_css_property(name)
    return [float(part) for part in value[value.index("(") + 1 : -1].split(",")][:3]


def overlaps(driver):
    """Cards that lie over others, or leave more than a gap between them and those below."""
    return driver.execute_script(
        "const all = [...document.querySelectorAll('#r1 .card')]"
        "  .map(e => e.getBoundingClientRect());"
        "return all.filter((a, i) => {"
        "  const below = all.slice(i + 1).filter(b => b.left === a.left);"
        "  const gap = below.length ? below[0].top - a.bottom : 9; return gap < 4 || gap > 20; });"
    )  # fmt: skip


def test_it_leads_from_an_example_to_more_like_what_it_found(browser):
    link = next(e for e in many(browser, ".examples a") if e.find_elements(By.TAG_NAME, "img"))
    link.click()
    until(browser, lambda d: many(d, "section .card"))
    assert one(browser, "#preview").is_displayed()
    assert one(browser, ".read").text.startswith(("Find it.", "Name it."))
    known = one(browser, "#r2 .id").text
    one(browser, "#r2 .foot a").click()
    until(browser, lambda d: many(d, ".like"))
    assert known in one(browser, ".like").text
    assert known not in [element.text for element in many(browser, ".id")]
    one(browser, "#submit").click()
    until(browser, lambda d: d.execute_script("return document.readyState === 'complete'"))
    assert known in one(browser, ".like").text, "asked again"


def test_a_chosen_picture_is_searched_with_and_removed(browser, tmp_path):
    file = tmp_path / "query.png"
    file.write_bytes(encoded())
    one(browser, "#file").send_keys(str(file))
    until(browser, lambda d: one(d, "#preview").is_displayed())
    assert one(browser, "#status").text == "The picture is part of the query."
    assert active(browser) == "remove"
    one(browser, "#submit").click()
    until(browser, lambda d: many(d, "section .card"))
    assert one(browser, "#r2 .rewritten").text.startswith("answer to")
    assert one(browser, "#preview").is_displayed()
    one(browser, "#remove").click()
    assert not one(browser, "#preview").is_displayed()
    assert one(browser, "#picture").get_attribute("value") == ""


@pytest.mark.parametrize(("event", "carrier"), [
    ("drop", "dataTransfer"), ("paste", "clipboardData"),
])  # fmt: skip
def test_a_picture_is_dropped_or_pasted(browser, event, carrier):
    browser.execute_script(
        "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));"
        "const carried = new DataTransfer();"
        "carried.items.add(new File([bytes], 'x.png', { type: 'image/png' }));"
        "const kind = arguments[1] === 'drop' ? DragEvent : ClipboardEvent;"
        "document.getElementById('drop').dispatchEvent(new kind(arguments[1],"
        " { bubbles: true, cancelable: true, [arguments[2]]: carried }));",
        base64.b64encode(encoded()).decode(), event, carrier,
    )  # fmt: skip
    until(browser, lambda d: one(d, "#preview").is_displayed())
    until(browser, lambda d: d.execute_script("return preview.naturalWidth === 60"))


def test_bad_input_is_told_where_it_happens(browser, tmp_path):
    one(browser, "#submit").click()
    assert one(browser, "#status").text == "Type a query or give a picture."
    assert active(browser) == "q"
    for name, data, told in (
        ("broken.png", b"no picture", "is no picture that can be read"),
        ("large.png", b"x" * 100_001, "the most is"),
        ("notes.txt", b"words", "That is no picture"),
    ):
        (tmp_path / name).write_bytes(data)
        one(browser, "#file").send_keys(str(tmp_path / name))
        until(browser, lambda d, told=told: told in one(d, "#status").text)
        assert one(browser, "#status").get_attribute("class") == "status bad"


def test_nothing_of_the_data_runs_and_everything_is_named(browser):
    typed(browser, HOSTILE)
    one(browser, "#settings summary").click()
    one(browser, "#k").send_keys("48")
    one(browser, "#submit").click()
    until(browser, lambda d: len(many(d, ".card")) == 82)
    assert HOSTILE in browser.title
    assert HOSTILE in [element.text for element in many(browser, ".original p")]
    assert not browser.execute_script("return document.querySelectorAll('img[src=\"x\"]').length")
    assert "script" in [element.text for element in many(browser, ".original mark")]
    assert all(image.get_attribute("alt") for image in many(browser, "img"))
    assert browser.execute_script(
        "return [...document.querySelectorAll('textarea, select, input:not([type=hidden])')]"
        ".every(field => field.labels.length === 1)"
    )
    folded = one(browser, ".card details")
    folded.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert folded.get_attribute("open")
