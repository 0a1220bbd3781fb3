"""The page in a browser against the real server: what both say to each other, from the first word to a chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helpers.browser import Page, a_browser  # noqa: F401  a fixture
from helpers.serving import TEMPLATE, Client, make_served, serving
from soma_native.generation.generator import Generator
from soma_native.serve.models import Served

CONTROL, ENTER = "\ue009", "\ue007"


class Real:
    """Where the page of a real server is."""

    def __init__(self, client: Client) -> None:
        self.address = f"{client.url}/"


@pytest.fixture(scope="module")
def words() -> Served:
    return make_served("words", kind="word", special_tokens=("<UNK>",))


@pytest.fixture(scope="module")
def client(words: Served) -> Iterator[Client]:
    chats = make_served("chats", kind="char", special_tokens=("<UNK>", "<|s|>"), template=TEMPLATE.replace("|>", ">"))
    with serving(words, chats) as client:
        yield client


@pytest.fixture
def page(browser: Any, client: Client) -> Iterator[Page]:
    found = Page(browser, Real(client))
    browser.set_window_size(1280, 900)
    found.open(anew=True)
    found.set("[aria-label='Tokens, as a number']", 8)
    yield found
    wrong = [entry["message"] for entry in found.complaints() if "status of 400" not in entry["message"]]
    assert not wrong


def test_a_text_is_that_of_the_generator_and_all_of_it_is_known(page: Page, words: Served) -> None:
    written = page.go("the cat", seed=5)
    assert written == Generator(words.model, words.tok).generate("the cat", max_tokens=8, seed=5)
    shown = page.all(".ink .token")
    assert [element.get_attribute("textContent") for element in shown] == [f" {word}" for word in written.split()[2:]]
    page.until(lambda: "10 of 64 tokens" in page.one(".sheet-note").text)
    page.hover(shown[1])
    page.until(lambda: {"the", "cat", "sat", "on", "mat"} <= {*page.rows()})
    page.click("#measure")
    page.until(lambda: len(page.all(".ink .token")) == 9)
    assert not page.one("#problem").is_displayed()


def test_an_alternative_takes_the_place_of_a_word_that_the_prompt_began(page: Page) -> None:
    """The model reads "the c" as the beginning of a word. Another word in its place has no "c"."""
    page.go("the c", seed=2)
    page.until(lambda: page.text().startswith("the cat "))
    page.ended()
    page.hover(page.all(".ink .token")[0])
    page.until(lambda: page.one("#token-name").text == "cat")
    page.hover(page.one("#alternatives [data-text=mat]"))
    page.click("#alternatives [data-text=mat]")
    page.until(lambda: page.text().startswith("the mat "))
    page.ended()
    page.click("#branch-new")
    page.say("the c")
    page.click("#ahead")
    page.until(lambda: page.rows())
    page.keys("1")
    page.until(lambda: len(page.text().split()) == 10)
    assert page.text().split()[1] in ("the", "cat", "sat", "on", "mat")
    page.ended()


def test_two_models_and_a_chat(page: Page) -> None:
    page.go("the cat")
    page.click("#mode-compare")
    page.keys(ENTER, held=(CONTROL,))
    page.ended()
    assert len(page.text(0).split()) == 18 and len(page.text(1)) == len(page.text(0).rsplit(" ", 8)[0]) + 8
    page.run("const m = document.getElementById('model-0'); m.value = 'chats'; m.dispatchEvent(new Event('change'))")
    page.click("#mode-chat")
    page.click("#chat-input")
    page.driver.set_window_size(1280, 600)
    page.keys("the cat sat", ENTER)
    page.until(lambda: len(page.all("#messages .assistant .token")) == 8)
    page.ended()
    ends = "return ['#chat-input', '#actions'].map((s) => document.querySelector(s).getBoundingClientRect())"
    field, actions = page.run(f"{ends}.map((r) => [r.top, r.bottom])")
    assert field[1] <= actions[0], "the field of the next message is not covered"
    assert not page.one("#problem").is_displayed()


def test_the_servers_own_words_for_an_error(page: Page) -> None:
    page.set("[aria-label='Tokens, as a number']", 5000)
    page.go("<script>document.title = 'taken'</script>")
    page.until(lambda: page.one("#problem").is_displayed())
    assert page.one("#problem-text").text == "max_tokens must be from 0 to 4096, got 5000"
    assert page.text().startswith("<script>") and page.driver.title == "words – soma"
