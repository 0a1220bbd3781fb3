// Keeps the branches and the chat in this tab: they live as long as it does, and no other tab reads them.

import { Tree } from "./tree.js";

const NAME = "soma-kept";

// Where it is too much for the browser, it is kept without alternatives, or not at all.
export function keep(state) {
  const small = (name, value) => (name === "top" ? [] : value);
  for (const replacer of [null, small]) {
    try {
      return sessionStorage.setItem(NAME, JSON.stringify(state, replacer));
    } catch {
      sessionStorage.removeItem(NAME);
    }
  }
}

// What was kept: {tree, open, turns}, or null.
export function restored() {
  try {
    const { tree, open, turns } = JSON.parse(sessionStorage.getItem(NAME));
    return { tree: Tree.from(tree), open, turns };
  } catch {
    return null;
  }
}
