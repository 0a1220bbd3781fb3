// The desk: the tree of branches, the sheets that show two of them, and what the model does with their texts.

import { post, stream } from "./api.js";
import { bits } from "./cuts.js";
import { follow } from "./dom.js";
import { ALTERNATIVES, begun, ofCompletion, ofScores, Reader } from "./pieces.js";
import { Sheet } from "./sheet.js";
import { edited, textOf, Tree } from "./tree.js";

const COUNT_AFTER = 500; // ms without typing, before the server counts the tokens

// What a model reads of a text: as much of its end as the context holds. After a token of the model the text ends where
// a token ends. So the prompt is tokens then: of a text the server may take back the last token, as an unfinished word.
async function promptOf(pieces, model, context, signal) {
  const text = textOf(pieces);
  const { tokens, offsets } = await post("tokenize", { model, text }, signal);
  if ("logprob" in pieces[pieces.length - 1]) return tokens.slice(-context);
  if (tokens.length <= context) return text;
  // The tokens of a part can be a few more than in the whole.
  const from = tokens.length - Math.max(1, context - 8);
  return [...text].slice(offsets[from][0]).join("");
}

export class Desk {
  tree = new Tree();
  removed = null; // the last removed branch
  compared = false; // whether two sheets are shown
  active = 0; // the sheet with the focus

  // `page` has model(index), settings(), seed(), run(task), stop(), show(place), say(text), changed() and room(), the
  // lowest place in the window that a text may take.
  constructor(page) {
    this.page = page;
    this.sheets = ["Your text, and what the model adds", "The same text with another model"].map((label, index) => {
      const sheet = new Sheet(label, {
        edit: (text) => this.#edit(index, text),
        focus: (place) => index === this.active && page.show(place),
        enter: () => this.#activate(index),
      });
      sheet.branch = this.tree.all[0];
      return sheet;
    });
  }

  get sheet() {
    return this.sheets[this.active];
  }

  get onScreen() {
    return this.compared ? this.sheets : this.sheets.slice(0, 1);
  }

  #activate(index) {
    if (this.active === index) return;
    this.active = index;
    this.page.changed();
  }

  // Shows one sheet or two. Two begin with the same text.
  compare(value) {
    if (value && !this.compared) this.#put(1, this.sheets[0].branch);
    if (!value && this.active) this.#put(0, this.sheets[1].branch);
    this.compared = value;
    this.active = 0;
  }

  // Takes another tree, as from a file, and shows one of its branches.
  take(tree, id) {
    this.tree = tree;
    this.removed = null;
    this.sheets.forEach((_, index) => this.#put(index, tree.get(id) ?? tree.all[0]));
  }

  #put(index, branch, caret = textOf(branch.pieces).length) {
    const sheet = this.sheets[index];
    sheet.branch = branch;
    sheet.show(branch.pieces, caret);
    this.#note(sheet, { measured: "", used: "" });
  }

  // The line below a sheet. `more` has what is known of all of its text.
  #note(sheet, more = {}) {
    Object.assign(sheet.known, more);
    const said = sheet.branch.pieces.filter((piece) => "logprob" in piece);
    const tokens = said.reduce((all, piece) => all + (piece.count ?? 1), 0);
    const surprise = said.reduce((all, piece) => all + bits(piece.logprob), 0);
    const parts = tokens ? [`${tokens} ${tokens === 1 ? "token" : "tokens"}, ${(surprise / tokens).toFixed(2)} bits each`] : [];
    if (sheet.branch.seed !== undefined) parts.push(`seed ${sheet.branch.seed}`);
    sheet.note.textContent = [...parts, sheet.known.measured, sheet.known.used].filter(Boolean).join(" · ");
  }

  // ---------------------------------------------------------------------------------------------- what the model does

  async #body(index, pieces, seed, signal) {
    const { id, max_model_len } = this.page.model(index);
    const prompt = pieces.length ? await promptOf(pieces, id, max_model_len ?? Infinity, signal) : "";
    return { model: id, prompt, logprobs: ALTERNATIVES, ...this.page.settings(), seed };
  }

  // Lets the models continue: one sheet, or two with the same seed. From one text two sheets make a branch each.
  go() {
    const seed = this.page.seed();
    const shared = this.compared && this.sheets[0].branch === this.sheets[1].branch;
    this.onScreen.forEach((_, index) => this.#write(index, seed, shared));
  }

  // Another continuation from where the last one began, as a branch beside it.
  again() {
    const seed = this.page.seed();
    const shared = this.compared && this.sheets[0].branch === this.sheets[1].branch;
    this.onScreen.forEach((sheet, index) => {
      const { branch } = sheet;
      if (branch.from === branch.pieces.length) return this.#write(index, seed, shared);
      const beginning = branch.pieces.slice(0, branch.from);
      const parent = this.tree.get(branch.parent);
      const beside = parent && textOf(beginning).startsWith(textOf(parent.pieces)) ? parent : branch;
      this.#put(index, this.tree.add(beside.id, beginning));
      this.#write(index, seed, false, branch);
    });
  }

  // Continues from an alternative of a token: as a new branch, or at the end of the text in place. Where the token began
  // in the text before, the alternative takes the place of that end, too.
  pick({ piece, index }, { token, text }) {
    const { branch } = this.sheet;
    const chosen = piece.top.find((other) => other.text === token) ?? piece;
    const picked = { text, token, logprob: chosen.logprob, top: piece.top, picked: true };
    const pieces = branch.pieces.slice(0, index);
    const [before, begins] = [textOf(pieces), begun(piece)];
    const shared = begins && before.toLowerCase().endsWith(begins.toLowerCase()) ? begins.length : 0;
    const kept = shared ? edited(pieces, before.slice(0, -shared)).pieces : pieces;
    const next = shared || index < branch.pieces.length ? this.tree.add(branch.id, kept) : branch;
    this.tree.append(next, [picked]);
    this.#put(this.active, next);
    this.#write(this.active, this.page.seed(), false);
  }

  // `fork` asks for a branch of its own. A branch on which nothing was written gives way to `origin`.
  #write(index, seed, fork, origin = null) {
    const sheet = this.sheets[index];
    const model = this.page.model(index).id;
    if (fork || (sheet.branch.model ?? model) !== model) {
      origin = sheet.branch;
      this.#put(index, this.tree.add(origin.id, origin.pieces));
    }
    const { branch } = sheet;
    delete branch.draft;
    Object.assign(branch, { from: branch.pieces.length, model, seed, settings: this.page.settings() });
    return this.page.run(async (signal) => {
      const reader = new Reader();
      const began = performance.now();
      let count = 0;
      let finish = null;
      sheet.writes(signal);
      this.page.say("The model writes.");
      try {
        const body = await this.#body(index, branch.pieces, seed, signal);
        for await (const chunk of stream("v1/completions", body, signal)) {
          const choice = chunk.choices?.[0];
          if (!choice) continue;
          const tokens = ofCompletion(choice.logprobs);
          const pieces = reader.take(choice.text, tokens);
          count += tokens.length;
          finish = choice.finish_reason ?? finish;
          if (pieces.length === 0) continue;
          this.tree.append(branch, pieces);
          if (sheet.branch === branch) this.#follow(sheet, pieces);
        }
        const rate = Math.round(count / Math.max(0.001, (performance.now() - began) / 1000)).toLocaleString("en");
        const end = finish === "stop" ? " It ended its text." : "";
        this.page.say(`The model wrote ${count} ${count === 1 ? "token" : "tokens"}, ${rate} a second.${end}`, textOf(branch.pieces.slice(branch.from)));
      } catch (error) {
        if (error.name !== "AbortError") this.page.say("");
        throw error;
      } finally {
        sheet.ends(signal);
        const empty = origin !== null && this.tree.get(branch.id) && branch.from === branch.pieces.length && !branch.draft;
        if (empty) this.tree.remove(branch.id);
        if (empty && sheet.branch === branch) this.#put(index, this.tree.get(origin.id) ?? this.tree.all[0]);
        if (sheet.branch === branch) this.#note(sheet, { measured: "", used: "" });
        this.#count(index);
      }
    });
  }

  // Adds what arrived, and keeps the end in sight where it was.
  #follow(sheet, pieces) {
    follow(sheet.end, this.page.room(), () => sheet.append(pieces, sheet.branch.pieces));
  }

  // Asks what the model would write at the end of the text, without writing it.
  ahead() {
    const { sheet } = this;
    const { pieces } = sheet.branch;
    return this.page.run(async (signal) => {
      const body = { ...(await this.#body(this.active, pieces, 0, signal)), max_tokens: 1, temperature: 0 };
      const [choice] = (await post("v1/completions", body, signal)).choices;
      const [token] = ofCompletion(choice.logprobs);
      if (!token || sheet.branch.pieces !== pieces) return;
      const gap = choice.text.endsWith(token.token) ? choice.text.slice(0, choice.text.length - token.token.length) : "";
      const piece = { text: "", gap, begins: begun({ token: token.token, text: choice.text }), logprob: 0, top: token.top };
      this.page.show({ index: pieces.length, start: sheet.text.length, piece }, true);
    });
  }

  // Colours what was typed, too.
  measure() {
    this.onScreen.forEach((sheet, index) => {
      const { branch } = sheet;
      const { pieces } = branch;
      const text = textOf(pieces);
      if (text === "") return this.page.say("There is no text to measure.");
      this.page.run(async (signal) => {
        const scores = await post("score", { model: this.page.model(index).id, text, top: 10 }, signal);
        if (branch.pieces !== pieces) return;
        branch.pieces = ofScores(text, scores);
        branch.from = branch.pieces.length;
        if (sheet.branch !== branch) return;
        sheet.show(branch.pieces, sheet.caret);
        const all = scores.bits_per_byte;
        this.#note(sheet, { measured: Number.isFinite(all) ? `${all.toFixed(3)} bits per byte` : "" });
        this.page.say("Each token has the colour of its surprise.");
      });
    });
  }

  // --------------------------------------------------------------------------------------------- what a person does

  #edit(index, text) {
    this.page.stop();
    const branch = this.tree.edit(this.sheets[index].branch, text);
    // Two sheets have the same beginning: an edit of one is an edit of both. The caret stays where a person writes, also
    // in the middle of a character that takes several keys.
    this.onScreen.forEach((_, each) => this.#put(each, branch, each === index ? null : undefined));
    this.page.say("");
    this.page.changed();
    this.#count(index);
  }

  // Says how much of the context the text takes, once nobody types.
  #count(index) {
    const sheet = this.sheets[index];
    clearTimeout(sheet.counting);
    sheet.counting = setTimeout(async () => {
      const model = this.page.model(index);
      const { pieces } = sheet.branch;
      if (pieces.length === 0 || !model.max_model_len) return;
      try {
        const { tokens } = await post("tokenize", { model: model.id, text: textOf(pieces) });
        const [all, most] = [tokens.length, model.max_model_len];
        const used = all <= most ? `${all} of ${most} tokens` : `the model reads the last ${most} of ${all} tokens`;
        if (sheet.branch.pieces === pieces) this.#note(sheet, { used });
      } catch {
        // The number is an extra: the next request says what is wrong.
      }
    }, COUNT_AFTER);
  }

  open(id) {
    this.page.stop();
    this.#put(this.active, this.tree.get(id));
    this.page.changed();
  }

  // A branch without text, beside all others.
  start() {
    const empty = this.tree.all.find((branch) => branch.parent === null && branch.pieces.length === 0);
    this.open((empty ?? this.tree.add(null, [])).id);
  }

  rename(id, name) {
    const branch = this.tree.get(id);
    if (name !== null && name !== this.tree.label(branch)) branch.name = name;
    this.page.changed();
  }

  remove(id) {
    if (this.tree.all.length < 2) return;
    this.page.stop();
    this.removed = this.tree.remove(id);
    const next = this.tree.get(this.removed.branch.parent) ?? this.removed.children[0] ?? this.tree.all[0];
    this.sheets.forEach((sheet, index) => sheet.branch.id === id && this.#put(index, next));
    this.page.say("The branch is removed.");
    this.page.changed();
  }

  restore() {
    const { branch } = this.removed;
    this.tree.restore(this.removed);
    this.removed = null;
    this.open(branch.id);
  }
}
