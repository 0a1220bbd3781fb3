// The chat: messages in turns, each token of the model coloured; alternatives are shown, for a chat has no branches.

import { stream } from "./api.js";
import { level } from "./cuts.js";
import { $, el, follow } from "./dom.js";
import { ALTERNATIVES, Reader, ofChat } from "./pieces.js";
import { textOf } from "./tree.js";

export class Chat {
  #turns = []; // {role, pieces}
  #marked = null;

  // `on` has focus(place), send(), panel() and room(), the lowest place in the window that the message's field may take.
  constructor(on) {
    this.on = on;
    this.input = $("chat-input");
    this.list = $("messages");
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
      event.preventDefault();
      on.send();
    });
    this.list.addEventListener("pointerover", (event) => this.#mark(event.target.closest(".token")));
    this.list.addEventListener("keydown", (event) => this.#key(event));
    this.list.addEventListener("focusin", (event) => this.#mark(event.target.querySelector?.(".token.here") ?? event.target.querySelector?.(".token")));
  }

  get turns() {
    return this.#turns;
  }

  set turns(turns) {
    this.#turns = turns;
    this.list.replaceChildren(...turns.map((turn) => message(turn)));
  }

  // Sends what is in the field, or with `again` the last question once more. Yields after each chunk.
  async *send(model, settings, signal, again = false) {
    const last = this.#turns[this.#turns.length - 1];
    const text = this.input.value.trim();
    if (again && last?.role === "assistant") this.turns = this.#turns.slice(0, -1);
    else if (text !== "") {
      this.#add({ role: "user", pieces: [{ text }] });
      this.input.value = "";
    } else if (last?.role !== "user") return;
    const system = $("chat-system").value.trim();
    const asked = this.#turns.map(({ role, pieces }) => ({ role, content: textOf(pieces) }));
    const messages = [...(system ? [{ role: "system", content: system }] : []), ...asked];
    const answer = { role: "assistant", pieces: [] };
    const body = this.#add(answer).querySelector(".said");
    const reader = new Reader();
    try {
      for await (const chunk of stream("v1/chat/completions", { model, messages, logprobs: true, top_logprobs: ALTERNATIVES, ...settings }, signal)) {
        const choice = chunk.choices?.[0];
        const pieces = choice ? reader.take(choice.delta?.content ?? "", ofChat(choice.logprobs)) : [];
        answer.pieces.push(...pieces);
        follow(this.input, this.on.room(), () => body.append(...pieces.map(span)));
        yield { tokens: answer.pieces.length, text: textOf(answer.pieces) };
      }
    } finally {
      if (answer.pieces.length === 0) this.turns = this.#turns.filter((turn) => turn !== answer);
    }
  }

  #add(turn) {
    this.#turns.push(turn);
    const item = message(turn);
    follow(this.input, this.on.room(), () => this.list.append(item));
    return item;
  }

  #mark(token) {
    if (!token || token === this.#marked) return;
    this.#marked?.classList.remove("here");
    this.#marked = token;
    token.classList.add("here");
    const item = token.closest("li");
    const turn = this.#turns[[...this.list.children].indexOf(item)];
    const index = [...token.parentNode.children].indexOf(token);
    const piece = turn?.pieces[index];
    if (piece && "logprob" in piece) this.on.focus({ piece, index, start: textOf(turn.pieces.slice(0, index)).length });
  }

  // In a message, left and right go from token to token.
  #key(event) {
    const said = event.target.closest(".said");
    if (!said) return;
    if (event.key === "ArrowDown" && event.altKey) {
      event.preventDefault();
      return this.on.panel();
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    const tokens = [...said.querySelectorAll(".token")];
    const at = tokens.indexOf(this.#marked);
    event.preventDefault();
    this.#mark(tokens[Math.max(0, Math.min(tokens.length - 1, at + step))]);
  }
}

function message({ role, pieces }) {
  const own = role === "user";
  const reading = { tabindex: "0", role: "group", "aria-label": "Answer: left and right go from token to token" };
  const said = el("p", { class: "said", ...(!own && reading) }, ...pieces.map(span));
  return el("li", { class: role }, el("h3", {}, own ? "You" : "Model"), said);
}

function span(piece) {
  const known = "logprob" in piece;
  return el("span", { class: known ? `token s${level(piece.logprob)}` : "typed" }, piece.text);
}
