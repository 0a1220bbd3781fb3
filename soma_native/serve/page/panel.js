// The margin: the alternatives of one token as bars, with what temperature and the cuts leave of them.

import { bits, cut, distribution, percent } from "./cuts.js";
import { $, el, rove } from "./dom.js";
import { spoken, visible, written } from "./pieces.js";

export class Panel {
  #shown = null;

  // `on` has pick(place, text), leave() for the way back to the text, and ahead().
  constructor(on) {
    this.on = on;
    this.list = $("alternatives");
    this.list.addEventListener("keydown", (event) => this.#key(event));
  }

  // Shows the piece at a place: {piece, start, context}, or null. `fixed` says why nothing can be picked.
  show(place, knobs, model, fixed = "") {
    const same = this.#shown?.place?.piece === place?.piece && this.#shown?.place?.start === place?.start && place;
    this.#shown = { place, knobs, model, fixed };
    const known = place && "logprob" in place.piece && place.piece.top.length > 0;
    $("token-name").textContent = known ? title(place) : "Next token";
    $("token-what").textContent = known ? facts(place, fixed) : nothing(place);
    $("alternatives-legend").hidden = !known;
    if (!known) return this.list.replaceChildren();
    this.#draw(same);
  }

  // Draws again while the knobs move. Buttons stay, so that the focus stays.
  knobs(knobs) {
    if (!this.#shown) return;
    this.#shown.knobs = knobs;
    if (this.list.childElementCount) this.#draw(true);
  }

  focus() {
    (this.list.querySelector("[aria-current]") ?? this.list.querySelector("button"))?.focus();
  }

  #draw(keep) {
    const { place, knobs, model, fixed } = this.#shown;
    const all = distribution(place.piece);
    const { rows, rest } = cut(all, knobs, model.vocab_size);
    const greatest = Math.max(rest.p, rest.high, ...rows.flatMap((row) => [row.p, row.high]), 1e-9);
    if (!keep || this.list.childElementCount !== rows.length + (rest.p > 0 ? 1 : 0) + (all.outsider ? 1 : 0)) {
      this.list.replaceChildren(...rows.map((row, index) => this.#row(row, index, place, model, fixed)));
      if (rest.p > 0) this.list.append(el("li", { class: "rest" }, ...cells("all the others")));
      if (all.outsider) this.list.append(this.#row(all.outsider, rows.length, place, model, fixed));
    }
    const drawn = [...rows, ...(rest.p > 0 ? [rest] : [])];
    let before = "";
    drawn.forEach((row, index) => {
      fill(this.list.children[index], row, greatest, row.reason && !before ? row.reason : "");
      before = row.reason;
    });
    if (all.outsider) fill(this.list.lastElementChild, { p: all.outsider.p, outside: true, reason: "" }, greatest, "");
  }

  #row(row, index, place, model, fixed) {
    const text = fixed ? null : written(place.piece, row.text, model.special_tokens ?? []);
    const button = el(
      "button",
      {
        type: "button",
        "data-text": row.text,
        "aria-current": row.chosen && "true",
        "aria-disabled": text === null && "true",
        tabindex: row.chosen || (index === 0 && !place.piece.token) ? "0" : "-1",
        title: text === null ? (fixed || "This token is no text that can be continued.") : "Continue from this token",
        onclick: () => text !== null && this.on.pick(place, { token: row.text, text }),
      },
      ...cells(visible(row.text), index < 10 ? String((index + 1) % 10) : ""),
    );
    return el("li", {}, button);
  }

  #key(event) {
    const buttons = [...this.list.querySelectorAll("button")];
    if (rove(event, buttons)) return;
    if (event.key === "Escape") this.on.leave();
    else if (/^[0-9]$/.test(event.key) && !event.ctrlKey && !event.altKey && !event.metaKey) buttons[(Number(event.key) + 9) % 10]?.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function cells(text, number = "") {
  const bar = el("span", { class: "bar" }, el("span", { class: "after" }), el("span", { class: "own" }));
  return [el("span", { class: "number", "aria-hidden": "true" }, number), el("span", { class: "text" }, text), bar, el("span", { class: "share" })];
}

// Gives a row its numbers. `begins` names the rule whose cut begins with this row.
function fill(item, row, greatest, begins) {
  const { p, low = 0, high = 0, reason, outside } = row;
  item.classList.toggle("cut", reason !== "");
  if (begins) item.setAttribute("data-cut", begins);
  else item.removeAttribute("data-cut");
  const width = (share) => `${((100 * share) / greatest).toFixed(2)}%`;
  for (const [name, share] of [["--own-share", p], ["--low", low], ["--high", high]]) item.style.setProperty(name, width(share));
  const share = outside ? percent(p) : reason ? "cut" : percent(low, high);
  item.querySelector(".share").textContent = share;
  const target = item.querySelector("button") ?? item;
  const name = target === item ? "all the others" : spoken(target.dataset.text);
  const after = outside ? "drawn from the others" : reason ? `cut by ${reason}` : `${share} after the settings`;
  if (target !== item) target.setAttribute("aria-label", `${name}, ${percent(p)}, ${after}`);
}

const title = ({ piece }) => (piece.token === undefined ? "Next token" : visible(piece.token));

function facts({ piece }, fixed) {
  if (piece.token === undefined) return "What the model would write here.";
  const own = `${percent(Math.exp(piece.logprob))}, ${bits(piece.logprob).toFixed(1)} bits of surprise`;
  const tokens = piece.count > 1 ? ` Here ${piece.count} tokens make one text; the list is for the first.` : "";
  return `${own}.${tokens}${fixed ? ` ${fixed}` : ""}`;
}

function nothing(place) {
  if (place === null) return "Write a beginning, and let the model go on.";
  return "This text is typed. “Measure” says how it surprises the model.";
}
