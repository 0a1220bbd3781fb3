// The list of branches: a tree for eyes, keyboard and screen reader, with names, removal, and files.

import { $, el, rove } from "./dom.js";

export class Branches {
  // `on` has open(id), remove(id), rename(id, name).
  constructor(on) {
    this.on = on;
    this.list = $("branch-tree");
    this.list.addEventListener("keydown", (event) => this.#key(event));
  }

  // Draws the tree. `open` holds the ids on the sheets, the active one first; `named` tells whose text each is.
  show(tree, open, named) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const draw = (parent, level) =>
      tree.children(parent).map((branch) => {
        const inner = draw(branch.id, level + 1);
        const here = open.includes(branch.id);
        const item = el(
          "li",
          {
            role: "treeitem",
            "aria-level": level,
            "aria-selected": String(here),
            "aria-expanded": inner.length > 0 && "true",
            "data-id": branch.id,
            tabindex: branch.id === open[0] ? "0" : "-1",
            class: branch.id === open[0] ? "active" : false,
            onclick: (event) => {
              event.stopPropagation();
              this.on.open(branch.id);
            },
            ondblclick: (event) => {
              event.stopPropagation();
              this.rename(branch.id);
            },
          },
          el("span", { class: "label" }, el("span", { class: "branch-name" }, tree.label(branch)), named && branch.model ? el("span", { class: "branch-model" }, branch.model) : null),
        );
        if (inner.length) item.append(el("ul", { role: "group" }, ...inner));
        return item;
      });
    this.list.replaceChildren(...draw(null, 1));
    if (focused) (this.#item(focused) ?? this.#item(open[0]))?.focus();
  }

  #item(id) {
    return this.#items().find((item) => item.dataset.id === id);
  }

  #items() {
    return [...this.list.querySelectorAll("[role=treeitem]")];
  }

  // Lets the person write a name in the place of the label. Enter takes it, Escape leaves the old one.
  rename(id) {
    const item = this.#item(id);
    if (!item || item.querySelector(":scope > .label input")) return;
    const label = item.querySelector(":scope > .label");
    const field = el("input", { type: "text", "aria-label": "Name of the branch", maxlength: "80" });
    field.value = label.querySelector(".branch-name").textContent;
    let done = false;
    const finish = (take) => {
      if (done) return;
      done = true;
      this.on.rename(id, take ? field.value.trim() : null);
      this.#item(id)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") finish(event.key === "Enter");
    });
    field.addEventListener("click", (event) => event.stopPropagation());
    field.addEventListener("blur", () => finish(true));
    label.replaceChildren(field);
    field.select();
  }

  #key(event) {
    const { id } = event.target.dataset;
    const items = this.#items();
    if (!id || rove(event, items)) return;
    const above = event.target.parentElement.closest("[role=treeitem]");
    const actions = {
      Enter: () => this.on.open(id),
      " ": () => this.on.open(id),
      F2: () => this.rename(id),
      Delete: () => this.on.remove(id),
      ArrowLeft: () => above?.focus(),
      ArrowRight: () => event.target.querySelector("[role=treeitem]")?.focus(),
    };
    if (!(event.key in actions) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  }
}
