// The settings of sampling: a slider and a number each, with the defaults of the model's folder.

import { $, el } from "./dom.js";

// name, label, range of the slider, step, limits of the number, what it does
const KNOBS = [
  ["temperature", "Temperature", [0, 2], 0.05, [0, 100], "Below 1 the likely tokens gain, above 1 the unlikely ones. 0 takes the most likely."],
  ["top_k", "Top-k", [0, 100], 1, [0, 1000000], "Keep the k most likely tokens. 0 keeps all."],
  ["top_p", "Top-p", [0.05, 1], 0.01, [0.001, 1], "Keep the most likely tokens until their sum is p. 1 keeps all."],
  ["min_p", "Min-p", [0, 0.5], 0.01, [0, 1], "Keep tokens with at least this part of the best one's probability. 0 keeps all."],
  ["repetition_penalty", "Repetition", [1, 2], 0.05, [0.1, 100], "The penalty on tokens that the text has. 1 is none; the bars do not show it."],
  ["max_tokens", "Tokens", [1, 500], 1, [1, 100000], "How many tokens the model writes at most."],
];
const USUAL = { temperature: 0.7, top_k: 50, top_p: 0.95, min_p: 0, repetition_penalty: 1, max_tokens: 100 };

export class Knobs {
  #defaults = USUAL;

  constructor(changed) {
    this.inputs = {};
    const rows = KNOBS.map(([name, label, [least, most], step, [low, high], help]) => {
      const id = `knob-${name}`;
      const slider = el("input", { type: "range", id, min: least, max: most, step, "aria-describedby": `${id}-help` });
      const number = el("input", { type: "number", min: low, max: high, step: "any", "aria-label": `${label}, as a number` });
      slider.addEventListener("input", () => {
        number.value = slider.value;
        changed();
      });
      number.addEventListener("input", () => {
        if (number.checkValidity() && number.value !== "") slider.value = number.value;
        changed();
      });
      number.addEventListener("change", () => {
        if (!number.checkValidity() || number.value === "") this.#set(name, this.#defaults[name]);
        changed();
      });
      this.inputs[name] = { slider, number, low, high };
      return el("div", { class: "knob" }, el("label", { for: id }, label), slider, number, el("p", { id: `${id}-help` }, help));
    });
    $("knob-list").replaceChildren(...rows);
    $("knobs-reset").addEventListener("click", () => {
      this.defaults = this.#defaults;
      changed();
    });
    this.defaults = USUAL;
  }

  // Takes the defaults of a model, and sets them.
  set defaults(values) {
    const given = Object.entries(values ?? {}).filter(([name, value]) => name in USUAL && Number.isFinite(value));
    this.#defaults = { ...USUAL, ...Object.fromEntries(given) };
    for (const name of Object.keys(this.inputs)) this.#set(name, this.#defaults[name]);
  }

  // Takes the defaults of another model. Settings that a person has changed stay.
  offer(values) {
    const own = this.values;
    const changed = Object.keys(own).some((name) => own[name] !== this.#defaults[name]);
    this.defaults = values;
    if (changed) for (const [name, value] of Object.entries(own)) this.#set(name, value);
  }

  #set(name, value) {
    this.inputs[name].slider.value = this.inputs[name].number.value = value;
  }

  // The settings as numbers. One that cannot be read has its default.
  get values() {
    const read = ([name, { number }]) => [name, number.value !== "" && number.checkValidity() ? Number(number.value) : this.#defaults[name]];
    return Object.fromEntries(Object.entries(this.inputs).map(read));
  }

  // The seed of the next answer: the given one, or a fresh one.
  get seed() {
    const field = $("seed");
    if (field.value !== "" && field.checkValidity()) return Number(field.value);
    return crypto.getRandomValues(new Uint32Array(1))[0];
  }
}
