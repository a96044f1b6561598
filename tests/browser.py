"""Headless Chromium through its WebDriver, and what axe finds wrong with a page."""

import shutil
import time
from contextlib import contextmanager
from importlib import resources

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
DRIVER = shutil.which("chromedriver") or ""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip


@contextmanager
def chromium(profile):
    """A browser that keeps what its pages complain about; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium (extra dev)")
    if not BROWSER or not DRIVER:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.chrome.service.Service(DRIVER)
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_page_load_timeout(120)
        driver.set_script_timeout(120)
        yield driver


def show(driver, width, scheme="light", height=900):
    """A screen of a width, by day or by night; below 600 pixels that of a phone."""
    shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def violations(driver):
    """What axe calls serious or critical: its rule, and where, all that is folded unfolded."""
    pytest.importorskip("axe_core_python", reason="no axe-core-python (extra dev)")
    driver.execute_script((resources.files("axe_core_python") / "axe.min.js").read_text("utf-8"))
    driver.execute_script("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    for _ in range(2):  # on a busy machine the layout may still be moving
        found = driver.execute_async_script("axe.run().then(arguments[0], arguments[0])")
        assert len(found["passes"]) > 10, found
        bad = [(one["id"], node["target"], node["failureSummary"]) for one in found["violations"]
               if one["impact"] in ("serious", "critical") for node in one["nodes"]]  # fmt: skip
        if not bad:
            break
        time.sleep(2)
    return bad
