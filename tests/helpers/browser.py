"""A browser for the tests of the page: Debian's chromium without a window, driven through selenium.

A test file imports the three fixtures. `browser` is one browser for the file. `page` opens the page anew for each test,
and fails if the browser complained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from helpers.page_server import PageServer, page_server

if TYPE_CHECKING:
    from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)
SECONDS = 20  # for a condition to hold


@pytest.fixture(name="browser", scope="module")
def a_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser with an empty profile. Its downloads go to `browser.downloads`."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra `browser`)")
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture(name="running_server", scope="module")
def a_server() -> Iterator[PageServer]:
    """One server for a test file."""
    with page_server() as running:
        yield running


@pytest.fixture(name="page")
def a_page(browser: Any, running_server: PageServer) -> Iterator[Page]:
    """The page as a person finds it who comes for the first time."""
    running_server.key = None
    running_server.asked.clear()
    running_server.hung_up.clear()
    browser.set_window_size(1280, 900)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    found = Page(browser, running_server)
    found.open(anew=True)
    yield found
    # The browser logs each answer with an error status too; a test of errors expects those.
    wrong = [entry["message"] for entry in found.complaints() if "Failed to load resource" not in entry["message"]]
    assert not wrong


class Page:
    """What a person does with the page, and sees."""

    def __init__(self, driver: Any, server: PageServer) -> None:
        self.driver, self.server = driver, server

    def open(self, anew: bool = False) -> None:
        """Open the page, or open it again; `anew` forgets what the tab keeps."""
        if anew:
            self.driver.get(f"{self.server.address}page/icon.svg")  # the page keeps its texts when it is left
            self.run("sessionStorage.clear(); localStorage.clear();")
        self.driver.get(self.server.address)
        self.complaints()
        self.until(lambda: self.run("return document.activeElement.matches('.pen, #key')"))

    def complaints(self) -> list[dict[str, Any]]:
        """What the browser logged since the last call: errors of scripts, breaches of the policy."""
        return [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def run(self, script: str, *arguments: Any) -> Any:
        """The result of a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def module(self, name: str, script: str, *arguments: Any) -> Any:
        """The JSON of what a script returns that gets a module of the page as `m` and the arguments as `a`."""
        code = (
            f"const [name, a, done] = arguments; import(name).then((m) => {{ {script} }})"
            ".then((value) => done(JSON.stringify(value)), (error) => done(JSON.stringify({error: String(error)})))"
        )
        found = json.loads(self.driver.execute_async_script(code, f"/page/{name}", arguments))
        assert not (isinstance(found, dict) and "error" in found), found
        return found

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds; returns its value. Elements that were replaced meanwhile count as false."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        wait = WebDriverWait(self.driver, SECONDS, 0.02, (StaleElementReferenceException,))
        return wait.until(lambda _: condition())

    def all(self, selector: str) -> list[WebElement]:
        """The elements that a selector finds."""
        found: list[WebElement] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> WebElement:
        """The first of them."""
        found: WebElement = self.driver.find_element("css selector", selector)
        return found

    def click(self, selector: str) -> None:
        """Click on an element."""
        self.one(selector).click()

    def keys(self, *keys: str, held: tuple[str, ...] = ()) -> None:
        """Press keys where the focus is, while others are held."""
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.driver, duration=0)
        for key in held:
            actions.key_down(key)
        actions.send_keys(*keys)
        for key in reversed(held):
            actions.key_up(key)
        actions.perform()

    def hover(self, element: WebElement) -> None:
        """Move the pointer over an element."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).move_to_element(element).perform()

    def set(self, selector: str, value: object) -> None:
        """Give a field a value, as a person's input does."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"
        self.run(script, self.one(selector), str(value))

    def text(self, sheet: int = 0) -> str:
        """The text in a sheet."""
        return str(self.run("return document.querySelectorAll('.pen')[arguments[0]].value", sheet))

    def say(self, text: str) -> None:
        """Type into the first sheet at its end."""
        self.run(
            "const p = document.querySelector('.pen'); p.focus(); p.setSelectionRange(p.value.length, p.value.length)"
        )
        self.keys(text)

    def go(self, text: str, seed: int = 0) -> str:
        """Type a text, let the model continue, wait for its end; returns all of the text."""
        self.set("#seed", seed)
        self.say(text)
        self.click("#go")
        self.ended()
        return self.text()

    def ended(self) -> None:
        """Wait until nothing runs."""
        self.until(lambda: self.one("#stop").get_attribute("hidden") and not self.one("#go").get_attribute("disabled"))

    def rows(self) -> list[str]:
        """The names of the alternatives, as shown."""
        return [str(element.text) for element in self.all("#alternatives .text")]

    def labels(self) -> list[str]:
        """The names of the branches, as shown."""
        return [str(element.text) for element in self.all("#branch-tree .branch-name")]
