"""The parts of the page in a browser: mathematics against numpy, pieces of text, the tree; colours, sizes, focus."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from helpers.browser import Page, a_browser, a_page, a_server  # noqa: F401  fixtures

VOCABULARY = 110


def sampled(p: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The distribution of a token after the rules of sampling, over the whole vocabulary, most likely first."""
    weights = p ** (1 / temperature)
    weights[top_k or len(p) :] = 0
    weights /= weights.sum()
    weights[np.concatenate(([0], np.cumsum(weights)[:-1])) >= top_p] = 0
    weights[weights < min_p * weights[0]] = 0
    return weights / weights.sum()


def test_the_drawn_cuts_hold_the_true_distribution(page: Page) -> None:
    """The page knows ten tokens and a sum. What it draws must hold the truth, and be exact where that decides all."""
    random = np.random.default_rng(0)
    cases, truths = [], []
    for number in range(300):
        p = np.sort(random.dirichlet(np.full(VOCABULARY, random.choice([0.05, 0.3, 2.0]))) + 1e-9)[::-1]
        p /= p.sum()
        knobs = {
            "temperature": float(random.choice([0.5, 0.8, 1.0, 1.5, 2.0])),
            "top_k": int(random.choice([0, 1, 5, 10, 30])),
            "top_p": float(random.choice([0.3, 0.7, 0.95, 1.0])),
            "min_p": float(random.choice([0.0, 0.05, 0.3])),
        }
        if number % 3 == 0:
            knobs |= {"top_k": 7}
        top = [{"text": str(i), "logprob": math.log(share)} for i, share in enumerate(p[:10])]
        cases.append([{"token": "0", "logprob": top[0]["logprob"], "top": top}, knobs])
        truths.append((sampled(p.copy(), **knobs), knobs))
    script = f"return a[0].map(([piece, knobs]) => m.cut(m.distribution(piece), knobs, {VOCABULARY}))"
    for found, (truth, knobs) in zip(page.module("cuts.js", script, cases), truths, strict=True):
        low, high = ([row[end] for row in found["rows"]] for end in ("low", "high"))
        # At the very edge of a cut, rounding decides in either program.
        wrong = [i for i in range(10) if not low[i] - 1e-6 <= truth[i] <= high[i] + 1e-6]
        assert not wrong, f"{knobs}\n{np.round([truth[:10], low, high], 3)}"
        assert found["rest"]["low"] - 1e-6 <= truth[10:].sum() <= found["rest"]["high"] + 1e-6, (knobs, found["rest"])
        assert all((row["high"] == 0) == bool(row["reason"]) for row in found["rows"])
        if knobs["top_k"] == 7:
            assert np.allclose(low, high) and [row["reason"] for row in found["rows"]][7:] == ["top-k"] * 3


@pytest.mark.parametrize(
    ("knobs", "kept", "reason"),
    [
        ({"temperature": 0}, 1, "temperature 0"),
        ({"top_k": 2}, 2, "top-k"),
        ({"top_p": 0.6}, 2, "top-p"),
        ({"min_p": 0.5}, 2, "min-p"),
    ],
)
def test_each_rule_says_what_it_cuts(knobs: dict[str, float], kept: int, reason: str, page: Page) -> None:
    top = [{"text": t, "logprob": math.log(p)} for t, p in (("a", 0.4), ("b", 0.25), ("c", 0.1))]
    given = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, **knobs}
    script = "return m.cut(m.distribution({token: 'a', logprob: -1, top: a[0]}), a[1], 50)"
    found = page.module("cuts.js", script, top, given)
    assert [row["reason"] for row in found["rows"]] == [""] * kept + [reason] * (3 - kept)
    assert found["rest"]["reason"] == reason and found["rest"]["p"] == pytest.approx(0.25)


def test_numbers_and_levels(page: Page) -> None:
    shares = [0, 0.0004, 0.001, 0.0123, 0.0994, 0.0996, 0.5, 1]
    assert page.module("cuts.js", "return a[0].map((p) => m.percent(p))", shares) == [
        *("0%", "<0.1%", "0.1%", "1.2%", "9.9%", "10%", "50%", "100%"),
    ]
    assert page.module("cuts.js", "return [m.percent(0.1, 0.2), m.percent(0.101, 0.104)]") == ["10–20%", "10%"]
    levels = page.module(
        "cuts.js", "return a[0].map((bits) => m.level(-bits * Math.LN2))", [0, 0.4, 0.9, 3.5, 9, 10.5, 99]
    )
    assert levels == [0, 0, 1, 4, 6, 7, 7]


def test_tokens_get_their_part_of_the_text(page: Page) -> None:
    """Whole tokens, words without their space, characters in parts, and a token that was partly in the prompt."""
    script = "const r = new m.Reader(); return a[0].flatMap(([text, tokens]) => r.take(text, tokens))"

    def take(*chunks: tuple[str, list[str]]) -> list[Any]:
        given = [
            (text, [{"token": t, "logprob": -1, "top": [{"text": t, "logprob": -1}]} for t in tokens])
            for text, tokens in chunks
        ]
        return [(piece["text"], piece.get("logprob")) for piece in page.module("pieces.js", script, given)]

    assert take((" sea", [" sea"]), (" a house", [" a", " house"])) == [(" sea", -1), (" a", -1), (" house", -1)]
    assert take((" the sea", ["the", "sea"])) == [(" the", -1), (" sea", -1)]
    assert take(("", ["bytes:\\xc3"]), ("é", ["bytes:\\xa9"])) == [("é", -2)]
    assert take(("use", [" house"])) == [("use", -1)]
    assert take(("use, a", [" house", ",", " a"]), ("b, a", [" b", ",", " a"])) == [
        *[("use", -1), (",", -1), (" a", -1)],
        ("b, a", -3),
    ], "the first token alone can begin in the prompt"
    assert take(("ab", ["a", "b", "bytes:\\xe2"])) == [("ab", -3)], "what cannot be told apart is one piece"
    assert take(("typed", [])) == [("typed", None)]


def test_an_alternative_is_written_as_it_stands_in_the_text(page: Page) -> None:
    script = "return a[0].map(([piece, text]) => m.written(piece, text, ['<|endoftext|>']))"
    word, token, ahead = {"token": "sea", "text": " sea"}, {"token": " sea", "text": " sea"}, {"gap": " ", "text": ""}
    cases = [
        (word, "house"),
        (token, " a"),
        (ahead, "word"),
        (token, "<|endoftext|>"),
        (token, ""),
        (token, "\ufffd"),
        (token, "bytes:\\xe2"),
    ]
    assert page.module("pieces.js", script, cases) == [" house", " a", " word", None, None, None, None]


def test_a_drawn_token_is_no_alternative_if_it_is_none_of_the_likeliest(page: Page) -> None:
    """The server's list of a completion has it too; the page shows it apart."""
    likeliest = {f"t{i}": -float(i) for i in range(1, 11)}
    said = {
        "tokens": ["drawn", "t2"],
        "token_logprobs": [-20.0, -2.0],
        "top_logprobs": [{"drawn": -20.0, **likeliest}, likeliest],
    }
    for piece in page.module("pieces.js", "return m.ofCompletion(a[0])", said):
        assert [other["text"] for other in piece["top"]] == [*likeliest]


def test_a_token_knows_what_of_it_stands_in_the_prompt(page: Page) -> None:
    pieces = [("rd", " lord"), ("at", "cat"), (" sea", "sea"), (" sea", " sea"), ("lord, good", "lord")]
    script = "return a[0].map(([text, token]) => m.begun({ text, token }))"
    assert page.module("pieces.js", script, pieces) == [" lo", "c", "", "", ""]
    assert page.module("pieces.js", "return [m.begun({ text: 'typed' }), m.begun({ text: '', begins: 'c' })]") == [
        "",
        "c",
    ]


def test_scores_count_code_points_and_the_page_counts_units(page: Page) -> None:
    scores = {"tokens": ["🙂", "x", "é"], "logprobs": [None, -1, -2], "offsets": [[0, 1], [1, 2], [3, 4]]}
    found = page.module("pieces.js", "return m.ofScores(a[0], a[1])", "🙂x é", scores)
    assert [piece["text"] for piece in found] == ["🙂", "x ", "é"]
    assert ["logprob" in piece for piece in found] == [False, True, True]


def test_an_edit_keeps_what_stands_before_it(page: Page) -> None:
    token = {"token": "x", "logprob": -1, "top": []}
    pieces = [{"text": "ab"}, {"text": "cd", **token}, {"text": "ef", **token}]
    script = (
        "return a[1].map((text) => { const e = m.edited(a[0], text); return [e.pieces.map((p) => p.text), e.lost]; })"
    )
    cases = ["abcdef!", "abcdXef", "abXcdef", "abcde", "", "abcdef"]
    assert page.module("tree.js", script, pieces, cases) == [
        [["ab", "cd", "ef", "!"], False],
        [["ab", "cd", "Xef"], True],
        [["abXcdef"], True],
        [["ab", "cd", "e"], True],
        [[], True],
        [["ab", "cd", "ef"], False],
    ]
    smile = [{"text": "🙂", **token}]
    assert page.module("tree.js", "return m.edited(a[0], a[1]).pieces", smile, "🙃") == [{"text": "🙃"}], (
        "no half of a pair"
    )


def test_a_removed_branch_comes_back_where_it_was(page: Page) -> None:
    script = """
      const t = new m.Tree(), root = t.all[0];
      const b = t.add(root.id, [{text: 'b'}]), c = t.add(b.id, [{text: 'bc'}]), d = t.add(root.id, [{text: 'd'}]);
      const shape = () => t.all.map((x) => [x.id, x.parent]);
      const before = shape(), gone = t.remove(b.id), without = shape();
      t.restore(gone);
      const copy = m.Tree.from(JSON.parse(JSON.stringify(t)));
      return [before, without, shape(), copy.all.map((x) => [x.id, x.parent]), copy.add(null, []).id, t.label(c)];"""
    before, without, after, copied, new, label = page.module("tree.js", script)
    assert before == after == copied == [["b1", None], ["b2", "b1"], ["b3", "b2"], ["b4", "b1"]]
    assert without == [["b1", None], ["b3", "b1"], ["b4", "b1"]]
    assert (new, label) == ("b5", "bc")


@pytest.mark.parametrize(
    "branch",
    [
        {"id": "b1", "parent": "b9", "pieces": []},
        {"id": "b1", "parent": None, "pieces": [{"text": 3}]},
        {"id": "b1", "parent": None, "pieces": [{"text": "a", "token": "a", "logprob": "x", "top": []}]},
        {"id": "b1", "parent": None, "pieces": [{"text": "a", "token": "a", "logprob": -1, "top": [{"text": "b"}]}]},
        {"id": "b1", "parent": None, "pieces": {}},
        None,
    ],
)
def test_a_file_that_is_no_tree_is_refused(branch: Any, page: Page) -> None:
    script = (
        "try { m.Tree.from({soma_native_branches: 1, branches: a}); return 'taken'; } catch (e) { return e.message; }"
    )
    assert "in this file has no" in page.module("tree.js", script, branch)


# ------------------------------------------------------------------------------------------------------------ the look

CONTRASTS = """
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!words && !e.matches('input, select')) continue;
    if (e.closest(':disabled, .unseen, .pen, option, .skip') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), [a, b] = [light(rgb(style.color)), light(behind(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([e.tagName + '.' + e.className, contrast, parseFloat(style.fontSize)]);
  }
  return found;"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read(theme: str, page: Page) -> None:
    """Contrast of WCAG AA (4.5 to 1) on every background, and letters of 16 pixels or more."""
    page.go("Once")
    page.run("document.querySelectorAll('.ink .token').forEach((e, i) => { e.className = `token s${7 - i}`; })")
    page.run("document.documentElement.dataset.theme = arguments[0]", theme)
    page.run(
        "document.getElementById('problem').hidden = false; document.getElementById('problem-text').textContent = 'x'"
    )
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = page.run(CONTRASTS)
    page.click("#help")
    found += page.run(CONTRASTS)
    assert len(found) > 100 and {f"SPAN.token s{level}" for level in range(1, 8)} <= {name for name, *_ in found}
    assert not [one for one in found if one[1] < 4.5]
    assert not [one for one in found if one[2] < 16]


@pytest.mark.parametrize("width", [320, 700, 1000, 1920])
def test_nothing_is_wider_than_the_window(width: int, page: Page) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.set(".pen", "W" * 400 + " words " * 40)
        page.keys("\ue007", held=("\ue009",))
        page.ended()
        for mode in ("write", "compare", "chat"):
            page.run("document.querySelector(`input[value=${arguments[0]}]`).click()", mode)
            assert page.run("return document.documentElement.scrollWidth") <= width, mode
            assert page.run(
                "return [...document.querySelectorAll('.pen')].every((p) => p.scrollWidth <= p.clientWidth)"
            )
        page.click("#help")
        assert page.run("return document.getElementById('help-dialog').getBoundingClientRect().right") <= width
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_theme_is_the_system_s_or_the_chosen_one(page: Page) -> None:
    def dark() -> bool:
        return bool(page.run("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(19, 20, 22)")

    def system(value: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": value}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    system("dark")
    assert dark()
    page.click("#theme")
    assert page.one("#theme").text == "Theme: light" and not dark()
    page.click("#theme")
    system("light")
    assert page.one("#theme").text == "Theme: dark" and dark()
    page.open()
    assert page.one("#theme").text == "Theme: dark" and dark(), "the choice outlives a reload"
    page.click("#theme")
    assert page.one("#theme").text == "Theme: system" and not dark()


def test_less_motion_where_the_system_wants_less(page: Page) -> None:
    page.say("endless")
    page.click("#go")
    page.until(lambda: page.all(".writing"))
    name = "return getComputedStyle(document.querySelector('.end'), '::after').animationName"
    assert page.run(name) == "blink"
    features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert page.run(name) == "none"
    page.click("#stop")
    page.ended()


def test_every_stop_of_the_tab_key_is_seen_and_has_a_name(page: Page) -> None:
    page.go("Once")
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; }); document.activeElement.blur()")
    seen = """
      const e = document.activeElement;
      const rings = [e, e.nextElementSibling, e.querySelector('.label')].filter(Boolean);
      const ring = rings.some((r) => getComputedStyle(r).outlineStyle === 'solid') || e.matches('.pen');
      const name = e.ariaLabel || e.labels?.[0]?.textContent || e.textContent || e.title;
      return [e.id || e.className || e.tagName, ring, name.trim() !== ''];"""
    stops: list[list[Any]] = []
    for _ in range(80):
        page.keys("\ue004")
        stops.append(page.run(seen))
        if len(stops) > 2 and stops[-1] == stops[0]:
            break
    assert len(stops) > 25 and {"go", "pen", "help", "knob-top_p", "key", "export-json"} <= {name for name, *_ in stops}
    assert not [stop for stop in stops if stop[0] != "BODY" and not (stop[1] and stop[2])]
