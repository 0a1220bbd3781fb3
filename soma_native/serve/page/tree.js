// The tree of branches: each branch is a whole text in pieces, and knows the branch that it left.
// This module touches no document, so a test can import it alone.

export const textOf = (pieces) => pieces.map((piece) => piece.text).join("");

// Adds pieces; typed text joins typed text.
function joined(pieces, more) {
  const all = pieces.slice();
  for (const piece of more) {
    const last = all[all.length - 1];
    if (piece.text === "") continue;
    if (last && !("logprob" in last) && !("logprob" in piece)) all[all.length - 1] = { text: last.text + piece.text };
    else all.push(piece);
  }
  return all;
}

const inPair = (text, at) => at > 0 && at < text.length && /[\uD800-\uDBFF]/.test(text[at - 1]) && /[\uDC00-\uDFFF]/.test(text[at]);

// The pieces of an edited text. Pieces before the edit stay; after it the model said its tokens of another text, so
// they become typed text. `lost` says whether tokens of the model were given up.
export function edited(pieces, text) {
  const before = textOf(pieces);
  const shortest = Math.min(before.length, text.length);
  let same = 0;
  while (same < shortest && before[same] === text[same]) same++;
  if (inPair(before, same) || inPair(text, same)) same--;
  const kept = [];
  let at = 0;
  for (const piece of pieces) {
    if (at + piece.text.length > same) break;
    kept.push(piece);
    at += piece.text.length;
  }
  const lost = pieces.slice(kept.length).some((piece) => "logprob" in piece);
  return { pieces: joined(kept, [{ text: text.slice(at) }]), lost };
}

// The piece at a place of the text: {index, start, piece}. The end of the text belongs to the last piece.
export function pieceAt(pieces, offset) {
  let start = 0;
  for (let index = 0; index < pieces.length; index++) {
    const end = start + pieces[index].text.length;
    if (offset < end || (index === pieces.length - 1 && offset === end)) return { index, start, piece: pieces[index] };
    start = end;
  }
  return null;
}

export class Tree {
  #branches = new Map();
  #next = 1;

  constructor() {
    this.add(null, []);
  }

  get all() {
    return [...this.#branches.values()];
  }

  get(id) {
    return this.#branches.get(id);
  }

  children(parent) {
    return this.all.filter((branch) => branch.parent === parent);
  }

  // A new branch. `from` is the number of its pieces before the model's last answer.
  add(parent, pieces, more = {}) {
    const own = joined([], pieces);
    const branch = { id: `b${this.#next++}`, parent, name: "", pieces: own, from: own.length, ...more };
    this.#branches.set(branch.id, branch);
    return branch;
  }

  append(branch, pieces) {
    branch.pieces = joined(branch.pieces, pieces);
  }

  // Takes a person's edit and returns the branch that has it. The first edit that gives up tokens makes a new branch,
  // so that nothing is lost; `draft` marks it, and later edits change it in place.
  edit(branch, text) {
    const { pieces, lost } = edited(branch.pieces, text);
    if (lost && !branch.draft) return this.add(branch.id, pieces, { draft: true });
    branch.pieces = pieces;
    branch.from = pieces.length;
    return branch;
  }

  // Removes a branch; its children move to its parent. Returns what `restore` needs.
  remove(id) {
    const branch = this.get(id);
    const children = this.children(id);
    const order = [...this.#branches.keys()];
    for (const child of children) child.parent = branch.parent;
    this.#branches.delete(id);
    return { branch, children, order };
  }

  restore({ branch, children, order }) {
    for (const child of children) if (this.get(child.id)) child.parent = branch.id;
    if (branch.parent !== null && !this.get(branch.parent)) branch.parent = null;
    this.#branches.set(branch.id, branch);
    const place = (id) => (order.includes(id) ? order.indexOf(id) : order.length);
    this.#branches = new Map([...this.#branches].sort(([a], [b]) => place(a) - place(b)));
  }

  // The name, or else the beginning of what the branch has of its own.
  label(branch) {
    if (branch.name) return branch.name;
    const text = textOf(branch.pieces);
    const parent = this.get(branch.parent);
    let same = 0;
    if (parent) {
      const other = textOf(parent.pieces);
      while (same < text.length && text[same] === other[same]) same++;
      while (same > 0 && /\S/.test(text[same - 1])) same--;
    }
    const own = text.slice(same).replace(/\s+/g, " ").trim();
    if (own === "") return parent ? "the same text" : "an empty page";
    return own.length > 48 ? `${/^.{1,46}(?= )|^.{1,46}/u.exec(own)[0].trim()}…` : own;
  }

  toJSON() {
    return { soma_native_branches: 1, branches: this.all };
  }

  // A tree from what toJSON made, which a person may have changed. Raises an Error that says what is wrong.
  static from(document) {
    if (document?.soma_native_branches !== 1 || !Array.isArray(document.branches) || document.branches.length === 0) {
      throw new Error("This file is no export of branches.");
    }
    const tree = new Tree();
    tree.#branches.clear();
    for (const given of document.branches) {
      const { id, parent, name, pieces, from } = given ?? {};
      const whole = typeof id === "string" && !tree.get(id) && (parent === null || tree.get(parent)) && Array.isArray(pieces);
      if (!whole || typeof (name ?? "") !== "string") throw new Error("A branch in this file has no id, parent or pieces.");
      const branch = { id, parent, name: name ?? "", pieces: joined([], pieces.map(checked)), from: pieces.length };
      if (Number.isInteger(from) && from >= 0 && from < branch.from) branch.from = from;
      for (const key of ["model", "seed", "settings", "draft"]) if (key in given) branch[key] = given[key];
      tree.#branches.set(id, branch);
      tree.#next = Math.max(tree.#next, 1 + (Number(/^b(\d{1,9})$/.exec(id)?.[1]) || 0));
    }
    return tree;
  }
}

// A piece of a file, with its known fields alone.
function checked(piece) {
  const isToken = (value) => typeof value?.text === "string" && Number.isFinite(value.logprob) && value.logprob <= 0.01;
  if (typeof piece?.text !== "string") throw new Error("A piece in this file has no text.");
  if (!("logprob" in piece)) return { text: piece.text };
  const { text, token, logprob, top, count, picked } = piece;
  if (!isToken(piece) || typeof token !== "string" || !Array.isArray(top) || !top.every(isToken)) {
    throw new Error("A piece in this file has no token or log-probability.");
  }
  const more = { ...(Number.isInteger(count) && { count }), ...(picked === true && { picked }) };
  return { text, token, logprob, top: top.map((other) => ({ text: other.text, logprob: other.logprob })), ...more };
}
