"""The search page in a real browser: headless Chromium, driven through its WebDriver."""

import base64
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.worlds import HOSTILE, World, served

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""
DRIVER = shutil.which("chromedriver") or ""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip
PHONE, WIDE = 420, 1200

selenium = pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")
if not BROWSER or not DRIVER:
    pytest.skip("chromium or chromedriver is not installed", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
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
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, address):
    """The empty page at 1200 pixels; whatever the browser complained about fails the test."""
    resize(chromium, WIDE)
    chromium.get(address)
    chromium.get_log("browser")
    yield chromium
    complaints = [entry["message"] for entry in chromium.get_log("browser")]
    assert not [text for text in complaints if "status of 4" not in text]


def resize(driver, width, height=900):
    shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)


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
        "return all.length > 0 && all.every(i => i.complete && i.naturalWidth > 0);"
    )


def typed(driver, text):
    box = one(driver, "#q")
    box.send_keys(text, Keys.ENTER)
    until(driver, lambda d: many(d, ".card") or many(d, ".problem"))


def sections(driver):
    return [element.rect for element in many(driver, "section")]


def test_a_typed_query_by_keyboard_alone(browser):
    browser.execute_script("document.querySelector('a.skip').focus()")
    order = []
    for _ in range(9):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        order.append(active(browser))
    assert order[1:] == [
        "q",
        "file",
        "instruction",
        "own",
        "modality",
        "own_picture",
        "k",
        "submit",
    ]
    one(browser, "#q").send_keys("red number 5")
    one(browser, "#submit").send_keys(Keys.ENTER)
    until(browser, lambda d: len(many(d, ".card")) == 24)
    assert [e.text.split()[0] for e in many(browser, "h2")] == ["raw", "enriched"]
    assert one(browser, "#q").get_attribute("value") == "red number 5"
    assert one(browser, ".read").text == "Find it. red number 5"
    assert [e.text for e in many(browser, "#r1 .rank")] == [str(n) for n in range(1, 13)]
    until(browser, loaded)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_phone_and_wide_screens_light_and_dark(browser, dark):
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    typed(browser, "word " * 30)
    first, second = sections(browser)
    assert first["y"] == second["y"]
    assert second["x"] >= first["x"] + first["width"]
    for width in (WIDE, PHONE):
        resize(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    first, second = sections(browser)
    assert first["x"] == second["x"]
    assert second["y"] > first["y"]
    assert one(browser, ".jump").is_displayed()
    ink, ground = (contrast_parts(browser, name) for name in ("color", "background-color"))
    assert (sum(ink) > sum(ground)) is dark
    for selector in ("body", ".hint", ".main", ".label", ".also", ".score"):
        assert contrast(browser, selector) >= 4.5, selector


def contrast_parts(driver, name, selector="body"):
    value = one(driver, selector).value_of_css_property(name)
    return [float(part) for part in value[value.index("(") + 1 : -1].split(",")][:3]


def contrast(driver, selector):
    """WCAG 2.1's contrast ratio between a text and what lies behind it."""
    behind = driver.execute_script(
        "let e = document.querySelector(arguments[0]);"
        "for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;"
        " if (c !== 'rgba(0, 0, 0, 0)') return c.match(/\\d+/g).map(Number); }",
        selector,
    )
    one_, other = sorted(map(luminance, (contrast_parts(driver, "color", selector), behind)))
    return (other + 0.05) / (one_ + 0.05)


def luminance(colour):
    parts = [c / 255 for c in colour[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_chosen_picture_is_searched_with_and_removed(browser, tmp_path):
    file = tmp_path / "query.png"
    file.write_bytes(encoded())
    one(browser, "#file").send_keys(str(file))
    until(browser, lambda d: one(d, "#preview").is_displayed())
    assert one(browser, "#status").text == "The picture is part of the query."
    assert active(browser) == "remove"
    one(browser, "#submit").click()
    until(browser, lambda d: many(d, ".card"))
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
    one(browser, "#k").send_keys("48")
    one(browser, "#submit").click()
    until(browser, lambda d: len(many(d, ".card")) == 82)
    assert HOSTILE in browser.title
    assert HOSTILE in [element.text for element in many(browser, ".original p")]
    assert not browser.execute_script("return document.querySelectorAll('img[src=\"x\"]').length")
    assert all(image.get_attribute("alt") for image in many(browser, "img"))
    assert browser.execute_script(
        "return [...document.querySelectorAll('textarea, select, input:not([type=hidden])')]"
        ".every(field => field.labels.length === 1)"
    )
    folded = one(browser, "details")
    folded.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert folded.get_attribute("open")
