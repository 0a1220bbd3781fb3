"""The page in a browser: writing, hovering, branching, stopping, comparing, chatting, files, keys and errors."""

from __future__ import annotations

import json

import pytest

from helpers.browser import Page, a_browser, a_page, a_server  # noqa: F401  fixtures
from helpers.page_server import ATTACK, WORDS, words_of

ALT, CONTROL, ENTER, ESCAPE, SHIFT = "\ue00a", "\ue009", "\ue007", "\ue00c", "\ue008"
LEFT, UP, DOWN, HOME, TAB, DELETE, F2 = "\ue012", "\ue013", "\ue015", "\ue011", "\ue004", "\ue017", "\ue032"
EIGHT = "".join(words_of("alpha", 0, 8))


def test_a_text_streams_in_and_each_token_has_the_colour_of_its_surprise(page: Page) -> None:
    assert page.go("Once") == "Once" + EIGHT
    assert page.run("return document.querySelector('.ink').textContent") == "Once" + EIGHT
    classes = [element.get_attribute("class") for element in page.all(".ink .token")]
    # -log2 of 0.30, 0.20, 0.12, 0.08, 0.06, 0.05, 0.04 and 0.03: 1.7, 2.3, 3.1, 3.6, 4.1, 4.3, 4.6 and 5.1 bits
    assert [name.split()[1] for name in classes] == ["s2", "s3", "s4", "s4", "s4", "s4", "s4", "s5"]
    assert "wrote 8 tokens" in page.one("#status").text
    (asked,) = page.server.bodies("/v1/completions")
    known = {"model": "alpha", "prompt": "Once", "logprobs": 10, "stream": True, "seed": 0}
    settings = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0, "repetition_penalty": 1, "max_tokens": 8}
    assert (
        known.items() | settings.items()
        <= {key: value for key, value in asked.items() if key != "stream_options"}.items()
    )


def test_the_ink_lies_under_the_letters(page: Page) -> None:
    """At each width the text area is as high as its ink, so their lines break alike."""
    page.set(".pen", "A long beginning of many words, " * 12 + "\n\n")
    page.go("Once")
    for width in (400, 777, 1280):
        page.driver.set_window_size(width, 900)
        heights = "const [p, i] = ['.pen', '.ink'].map((s) => document.querySelector(s));"
        heights += "return [p.scrollHeight, p.clientHeight, i.scrollHeight, p.clientWidth - i.clientWidth]"
        wanted, shown, ink, wider = page.run(heights)
        assert (wanted, wider) == (ink, 0) and wanted <= shown


def test_a_token_under_the_pointer_shows_its_alternatives_and_a_click_continues_from_one(page: Page) -> None:
    page.go("Once")
    page.hover(page.all(".ink .token")[2])
    page.until(lambda: page.one("#token-name").text == "␣sea")
    assert page.rows() == [
        *["␣the", "␣a", "␣sea", "␣house", "␣cat", "␣was", "␣quiet", "↵", "␣and", "bytes:\\xe2\\x80"],
        "all the others",
    ]
    assert "12%" in page.one("#token-what").text and page.one("[aria-current] .text").text == "␣sea"
    page.hover(page.one("header h1"))
    page.hover(page.one("#alternatives [data-text=' cat']"))
    page.click("#alternatives [data-text=' cat']")
    page.until(lambda: page.text().startswith("Once the a cat"))
    page.ended()
    assert page.text() == "Once the a cat" + EIGHT
    asked = page.server.bodies("/v1/completions")[-1]
    assert asked["prompt"] == [*map(ord, "Once the a cat")], "tokens, so that the server changes nothing of them"
    assert page.one(".ink .picked").text == " cat"
    assert page.labels() == ["Once the a sea house cat was quiet", "cat the a sea house cat was quiet"]
    page.all("#branch-tree .branch-name")[0].click()
    assert page.text() == "Once" + EIGHT, "the branch that was left is whole"


def test_a_token_from_beyond_the_ten_has_a_row_of_its_own(page: Page) -> None:
    page.go("Once", seed=9)
    page.hover(page.all(".ink .token")[0])
    page.until(lambda: page.one("#token-name").text == "␣zephyr")
    assert page.rows()[10:] == ["all the others", "␣zephyr"]
    assert page.one("#alternatives [data-text='bytes:\\\\xe2\\\\x80']").get_attribute("aria-disabled") == "true"


def test_the_keyboard_alone_does_everything(page: Page) -> None:
    page.set("#seed", 0)
    page.keys("Once")
    page.keys(ENTER, held=(CONTROL,))
    page.until(lambda: page.text() == "Once" + EIGHT)
    page.ended()
    page.keys(HOME, held=(CONTROL,))
    page.keys("\ue014" * 6)  # right, into " the"
    page.until(lambda: page.one("#token-name").text == "␣the")
    page.keys(DOWN, held=(ALT,))
    assert page.run("return document.activeElement.dataset.text") == " the"
    page.keys(DOWN, DOWN)
    assert page.run("return document.activeElement.dataset.text") == " sea"
    page.keys(ENTER)
    page.until(lambda: page.text() == "Once sea" + EIGHT)
    page.ended()
    assert page.run("return document.activeElement.className") == "pen"
    page.keys(LEFT)
    page.keys(DOWN, held=(ALT,))
    page.keys("2")
    page.until(lambda: len(page.labels()) == 3)
    page.ended()
    tab_to(page, "[role=treeitem]")
    page.keys(HOME, ENTER)
    assert page.text() == "Once" + EIGHT
    page.keys(F2)
    page.keys("my beginning", ENTER)
    assert page.labels()[0] == "my beginning"
    page.keys(DELETE)
    assert len(page.labels()) == 2 and page.text() != "Once" + EIGHT
    tab_to(page, "#branch-undo")
    page.keys(ENTER)
    assert page.labels()[0] == "my beginning" and page.text() == "Once" + EIGHT
    page.keys("/", held=(CONTROL,))
    assert page.one("#help-dialog").is_displayed() and "Ctrl Enter" in page.one("#keys").text
    page.keys(ESCAPE)
    assert not page.one("#help-dialog").is_displayed()
    tab_to(page, "#help")
    page.keys("?")
    assert page.one("#help-dialog").is_displayed()
    tab_to(page, "#help-close")
    page.keys(ENTER)
    tab_to(page, "[name=mode]")
    page.keys("\ue014")
    assert len(page.all(".pen")) == 2


def tab_to(page: Page, selector: str) -> None:
    for _ in range(80):
        if page.run("return document.activeElement.matches(arguments[0])", selector):
            return
        page.keys(TAB)
    raise AssertionError(f"Tab never comes to {selector}")


@pytest.mark.parametrize("how", ["button", "escape", "typing"])
def test_a_text_without_end_is_stopped(how: str, page: Page) -> None:
    page.say("endless")
    page.click("#go")
    page.until(lambda: len(page.all(".ink .token")) == 3)
    written = page.text()
    if how == "button":
        page.click("#stop")
    else:
        page.say(ESCAPE if how == "escape" else "!")
    assert page.server.hung_up.wait(20)
    page.ended()
    assert page.text() == written + ("!" if how == "typing" else "")
    assert not page.one("#problem").is_displayed()


def test_text_of_a_model_or_a_person_is_never_markup(page: Page) -> None:
    typed = "<img src=x onerror=\"document.title='broken'\"> markup"
    text = page.go(typed)
    assert text == typed + "".join(ATTACK)
    page.hover(page.all(".ink .token")[0])
    page.until(lambda: page.one("#token-name").text == "<script>")
    page.click("#branch-rename")
    page.keys("<b>bold</b>", ENTER)
    assert page.labels() == ["<b>bold</b>"]
    page.click("#mode-chat")
    page.click("#chat-input")
    page.keys("markup <i>", ENTER)
    page.until(lambda: page.all("#messages .assistant .token"))
    page.ended()
    assert page.one("#messages .assistant .said").text == "".join(ATTACK)
    assert not page.all("main img, main script, main b, main i") and "broken" not in page.driver.title
    assert len(page.all("script")) == 2


def test_two_models_continue_the_same_text_with_the_same_seed(page: Page) -> None:
    page.set("#seed", 5)
    page.say("Once")
    page.click("#mode-compare")
    assert [page.text(0), page.text(1)] == ["Once", "Once"]
    page.click("#go")
    page.ended()
    texts = ["Once" + "".join(words_of(name, 5, 8)) for name in ("alpha", "beta")]
    assert [page.text(0), page.text(1)] == texts and texts[0] != texts[1]
    asked = page.server.bodies("/v1/completions")
    assert {body["model"] for body in asked} == {"alpha", "beta"}
    assert {(body["prompt"], body["seed"]) for body in asked} == {("Once", 5)}
    assert [element.text for element in page.all(".sheet-title")] == ["alpha", "beta"]
    assert sorted(element.text for element in page.all(".branch-model")) == ["alpha", "beta"]
    page.say("!")
    page.until(lambda: page.text(1) == texts[0] + "!")
    assert page.text(0) == texts[0] + "!", "an edit of one is an edit of both"


def test_of_a_long_text_the_model_reads_the_end(page: Page) -> None:
    page.set("#knob-max_tokens", 1)
    page.set(".pen", "\U0001f642" * 200 + "typed " * 20)
    page.keys(ENTER, held=(CONTROL,))
    page.ended()
    page.keys(ENTER, held=(CONTROL,))
    page.ended()
    typed, tokens = (body["prompt"] for body in page.server.bodies("/v1/completions"))
    assert typed == "\U0001f642" * 128 + "typed " * 20
    assert len(tokens) == 256 and "".join(map(chr, tokens)).startswith("\U0001f642") and len(page.text()) > 320
    page.until(lambda: "reads the last 256 of" in page.one(".sheet-note").text)


def test_another_try_is_a_branch_beside_the_first(page: Page) -> None:
    page.go("Once")
    page.set("#seed", 3)
    page.keys(ENTER, held=(CONTROL, SHIFT))
    page.until(lambda: page.text() == "Once" + "".join(words_of("alpha", 3, 8)))
    page.ended()
    assert len(page.labels()) == 2


def test_an_edit_inside_the_model_s_text_makes_a_branch_and_nothing_is_lost(page: Page) -> None:
    page.go("Once")
    page.run("const p = document.querySelector('.pen'); p.focus(); p.setSelectionRange(8, 8)")
    page.keys("X", "Y")
    assert page.text() == "Once theXY" + EIGHT[4:]
    assert len(page.labels()) == 2 and len(page.all(".ink .token")) == 1
    assert page.run("return document.querySelector('.pen').selectionStart") == 10
    page.all("#branch-tree .branch-name")[0].click()
    assert page.text() == "Once" + EIGHT and len(page.all(".ink .token")) == 8


def test_the_cuts_move_with_the_knobs(page: Page) -> None:
    page.go("Once")
    page.hover(page.all(".ink .token")[1])
    page.until(lambda: page.one("#token-name").text == "␣a")
    wide = page.run("return document.querySelector('#alternatives .bar').clientWidth")
    for field, value in (("temperature", 1), ("top_k", 0), ("top_p", 1)):
        page.set(f"#knob-{field}", value)
    assert [element.text for element in page.all("#alternatives .share")][:3] == ["30%", "20%", "12%"]
    page.set("#knob-top_k", 3)
    cut = page.all("#alternatives .cut")
    assert len(cut) == 8 and page.one("[data-cut]").get_attribute("data-cut") == "top-k"
    assert [element.text for element in page.all("#alternatives .share")][:4] == ["48%", "32%", "19%", "cut"]
    page.set("#knob-top_k", 0)
    page.set("#knob-top_p", 0.5)
    assert len(page.all("#alternatives .cut")) == 9
    page.set("#knob-top_p", 1)
    page.set("#knob-min_p", 0.25)
    assert page.one("[data-cut]").get_attribute("data-cut") == "min-p" and len(page.all("#alternatives .cut")) == 7
    page.set("#knob-min_p", 0)
    page.set("#knob-temperature", 2)
    assert "–" in page.one("#alternatives .share").text, "the others are one sum, so a share is a range"
    page.set("#knob-temperature", 0)
    assert page.one("#alternatives .share").text == "100%" and len(page.all("#alternatives .cut")) == 10
    assert wide > 30
    page.click("#knobs-reset")
    assert page.one("#knob-temperature").get_attribute("value") == "0.8"


def test_look_ahead_shows_what_would_come_and_writes_nothing(page: Page) -> None:
    page.say("Once")
    page.click("#ahead")
    page.until(lambda: len(page.rows()) == 11)
    assert page.text() == "Once"
    page.until(lambda: page.run("return document.activeElement.dataset.text") == " the")
    page.set("#seed", 0)
    page.keys(DOWN, ENTER)
    page.until(lambda: page.text() == "Once a" + EIGHT)
    page.ended()
    assert len(page.labels()) == 1, "nothing was lost, so there is no new branch"


def test_measure_colours_what_was_typed(page: Page) -> None:
    page.say("My own\u2003text was the sea")
    page.click("#measure")
    page.until(lambda: len(page.all(".ink .token")) == 4)
    assert page.run("return document.querySelector('.ink').textContent") == page.text()
    assert "1.234 bits per byte" in page.one(".sheet-note").text


def test_the_branches_outlive_a_reload_and_go_to_files_and_back(page: Page) -> None:
    page.go("Once")
    page.set("#seed", 2)
    page.click("#again")
    page.ended()
    second, labels = page.text(), page.labels()
    page.driver.refresh()
    page.until(lambda: page.labels() == labels)
    assert len(page.all(".ink .token")) == 8
    page.click("#export-json")
    file = page.driver.downloads / "branches.json"
    page.until(lambda: file.exists())
    assert len(json.loads(file.read_text(encoding="utf-8"))["branches"]) == 2
    page.all("#branch-tree .branch-name")[1].click()
    page.click("#export-text")
    page.until(lambda: list(page.driver.downloads.glob("*.txt")))
    (text,) = page.driver.downloads.glob("*.txt")
    assert text.read_bytes().decode() == second
    page.open(anew=True)
    assert page.text() == ""
    page.one("#import-file").send_keys(str(file))
    page.until(lambda: page.labels() == labels)
    assert page.text() == "Once" + EIGHT
    broken = page.driver.downloads / "broken.json"
    broken.write_text('{"soma_native_branches": 1, "branches": [{"id": 7}]}')
    page.one("#import-file").send_keys(str(broken))
    page.until(lambda: page.one("#problem").is_displayed())
    assert "has no id" in page.one("#problem").text and page.labels() == labels


def test_a_chat_where_the_model_has_a_template(page: Page) -> None:
    page.set("#seed", 0)
    page.click("#mode-chat")
    page.click("#chat-input")
    page.keys("Hello", ENTER)
    page.until(lambda: len(page.all("#messages .assistant .token")) == 8)
    page.ended()
    (asked,) = page.server.bodies("/v1/chat/completions")
    assert asked["messages"] == [{"role": "user", "content": "Hello"}] and asked["top_logprobs"] == 10
    page.hover(page.all("#messages .assistant .token")[0])
    page.until(lambda: page.one("#token-name").text == "␣the")
    assert len(page.all("#alternatives [aria-disabled]")) == 10, "a chat has no branches"
    page.click("#chat-input")
    page.keys("And then?", ENTER)
    page.until(lambda: len(page.all("#messages li")) == 4)
    page.ended()
    assert [m["role"] for m in page.server.bodies("/v1/chat/completions")[-1]["messages"]] == [
        "user",
        "assistant",
        "user",
    ]
    page.run("const s = document.getElementById('model-0'); s.value = 'beta'; s.dispatchEvent(new Event('change'))")
    assert not page.one("#mode-chat").is_displayed() and page.one(".pen").is_displayed()


def test_errors_are_said_in_plain_words(page: Page) -> None:
    page.say("refuse this")
    page.click("#go")
    page.until(lambda: page.one("#problem").is_displayed())
    assert page.one("#problem-text").text == "prompt has 999 tokens; the context of alpha holds 256: shorten it"
    assert page.text() == "refuse this"
    page.server.key = "secret"
    page.open()
    assert "API key" in page.one("#problem-text").text
    assert page.run("return document.activeElement.id") == "key"
    page.keys("secret", ENTER)
    page.until(lambda: page.one("#model-0").text.split() == ["alpha", "beta"])
    assert not page.one("#problem").is_displayed()
    assert page.run("return Object.values(sessionStorage).includes('secret')")
    assert not page.run("return Object.values(localStorage).includes('secret')")
    page.open()
    page.run("window.fetch = () => Promise.reject(new TypeError('gone'))")
    page.click("#go")
    page.until(lambda: "does not answer" in page.one("#problem-text").text)


def test_words_are_known_by_their_places() -> None:
    """The server of these tests: ten alternatives, and a cycle of words for each seed."""
    assert words_of("alpha", 8, 3) == [" and", " zephyr", " the"]
    assert words_of("beta", 0, 3) == [WORDS[0], WORDS[2], WORDS[4]]
