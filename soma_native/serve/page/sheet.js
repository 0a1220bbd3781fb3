// A sheet: a text area whose text is coloured. The text area holds the text and the caret, and its own letters are
// transparent. Behind it lies the same text in pieces (the ink), in the same place, letter for letter.

import { level } from "./cuts.js";
import { el } from "./dom.js";
import { pieceAt, textOf } from "./tree.js";

const RESTS = 60; // ms

// A text area makes every "\r" a "\n", and places would shift. A sign of the same length stands for it.
const shown = (text) => text.replaceAll("\r", "␍");
const meant = (text) => text.replaceAll("␍", "\r");

export class Sheet {
  #pieces = [];
  #focused = null;
  #hovered = null;
  #resting = 0;
  #task = null;

  // `on` has edit(text), focus(place) with the piece at the caret or under the pointer, and enter().
  constructor(label, on) {
    this.ink = el("div", { class: "ink", "aria-hidden": "true" });
    this.end = el("span", { class: "end" });
    this.pen = el("textarea", { class: "pen", "aria-label": label, placeholder: "Write a beginning…", spellcheck: "false", autocapitalize: "off", rows: "1" });
    this.title = el("h2", { class: "sheet-title" });
    this.note = el("p", { class: "sheet-note" });
    this.element = el("section", { class: "sheet" }, this.title, el("div", { class: "paper" }, this.ink, this.pen), this.note);
    this.counting = 0; // the timer of the tokens below it
    this.known = {};
    this.on = on;
    this.pen.addEventListener("input", () => on.edit(meant(this.pen.value)));
    for (const name of ["keyup", "click", "focus"]) this.pen.addEventListener(name, () => this.#follow(true));
    this.pen.addEventListener("pointermove", (event) => this.#rest(event));
    this.pen.addEventListener("pointerleave", () => clearTimeout(this.#resting));
    this.pen.addEventListener("focus", on.enter);
    this.ink.append(this.end);
  }

  get text() {
    return textOf(this.#pieces);
  }

  get caret() {
    return this.pen.selectionStart;
  }

  // Replaces everything. A caret at the old end goes to the new one.
  show(pieces, caret = null) {
    this.#pieces = pieces;
    this.#focused = this.#hovered = null;
    this.ink.replaceChildren(...pieces.map(span), this.end);
    const text = shown(this.text);
    if (this.pen.value !== text) this.pen.value = text;
    if (caret !== null) this.pen.setSelectionRange(caret, caret);
    this.#follow();
  }

  // Adds what the model wrote. The ink grows, nothing else is touched, and a caret at the end stays there.
  append(pieces, all) {
    const length = this.pen.value.length;
    const atEnd = this.pen.selectionStart === length;
    const text = shown(textOf(pieces));
    const more = pieces.filter((piece) => piece.text !== "");
    this.end.before(...more.map(span));
    this.#pieces = all;
    if (this.ink.childElementCount !== all.length + 1) return this.show(all, atEnd ? length + text.length : null);
    this.pen.setRangeText(text, length, length, "preserve");
    if (atEnd) this.pen.setSelectionRange(length + text.length, length + text.length);
    this.#follow();
  }

  // While a task writes here, the end of the text shows it. A task that ends late ends no other.
  writes(task) {
    this.#task = task;
    this.element.classList.add("writing");
    this.pen.setAttribute("aria-busy", "true");
  }

  ends(task) {
    if (this.#task !== task) return;
    this.element.classList.remove("writing");
    this.pen.removeAttribute("aria-busy");
  }

  // The place that the margin shows: the last one under the pointer, or the caret's once that has moved.
  get place() {
    return this.#hovered ?? this.#focused;
  }

  #follow(moved = false) {
    if (moved) this.#hovered = null;
    this.#focused = pieceAt(this.#pieces, this.caret);
    this.#mark();
  }

  // A pointer that rests on a token shows it. One that is on its way to the margin passes others.
  #rest({ clientX, clientY }) {
    clearTimeout(this.#resting);
    this.#resting = setTimeout(() => this.#hover(clientX, clientY), RESTS);
  }

  #hover(x, y) {
    const under = document.elementsFromPoint(x, y).find((element) => element.parentNode === this.ink);
    const index = [...this.ink.children].indexOf(under);
    const piece = this.#pieces[index];
    if (!piece || !("logprob" in piece) || this.#hovered?.piece === piece) return;
    this.on.enter();
    this.#hovered = { index, piece, start: textOf(this.#pieces.slice(0, index)).length };
    this.#mark();
  }

  #mark() {
    for (const element of this.ink.querySelectorAll(".here")) element.classList.remove("here");
    const { place } = this;
    if (place && "logprob" in place.piece) this.ink.children[place.index]?.classList.add("here");
    this.on.focus(place);
  }
}

function span(piece) {
  if (!("logprob" in piece)) return el("span", { class: "typed" }, shown(piece.text));
  return el("span", { class: `token s${level(piece.logprob)}${piece.picked ? " picked" : ""}` }, shown(piece.text));
}
