// The page: it puts the parts together, and says what each button and key does. The parts know nothing of each other.

import { get, getKey, Refusal, setKey } from "./api.js";
import { Branches } from "./branches.js";
import { Chat } from "./chat.js";
import { STEPS } from "./cuts.js";
import { Desk } from "./desk.js";
import { $, download, el } from "./dom.js";
import { keep, restored } from "./keep.js";
import { Knobs } from "./knobs.js";
import { Panel } from "./panel.js";
import { textOf, Tree } from "./tree.js";

const KEYS = [
  ["Ctrl Enter", "Continue, or send"],
  ["Ctrl Shift Enter", "Try again from the same place"],
  ["Esc", "Stop; in the alternatives, go back to the text"],
  ["Alt ↓", "From a token of the text to its alternatives"],
  ["↑ ↓", "In the alternatives and branches, go from one to the next"],
  ["Enter", "Continue from the alternative; open the branch"],
  ["1 … 9, 0", "In the alternatives, continue from that one"],
  ["← →", "In the branches, to the parent or child; in an answer of the chat, from token to token"],
  ["F2, Delete", "In the branches, rename or remove"],
  ["Tab", "To the next part of the page"],
  ["? or Ctrl /", "This help"],
];
const COARSE = window.matchMedia("(pointer: coarse)");
const room = () => window.innerHeight - $("actions").offsetHeight - 8;

let models = [];
let mode = "write";
let keeping = 0; // the timer until the branches are kept
const jobs = new Set(); // one AbortController for each task that runs
const knobs = new Knobs(() => panel.knobs(knobs.values));
const panel = new Panel({
  pick: (place, alternative) => {
    stop();
    desk.pick(place, alternative);
    back();
  },
  leave: () => (mode === "chat" ? chat.input : desk.sheet.pen).focus(),
});
const chat = new Chat({ focus: show, send: () => go(), panel: () => panel.focus(), room });
const model = (index) => models.find((one) => one.id === $(`model-${index}`).value) ?? { id: "" };
const desk = new Desk({
  model,
  settings: () => knobs.values,
  seed: () => knobs.seed,
  room,
  run,
  stop,
  say,
  changed,
  show: (place, focus = false) => {
    if (mode !== "chat") show(place);
    if (focus) panel.focus();
  },
});
const branches = new Branches({ open: (id) => desk.open(id), remove: (id) => desk.remove(id), rename: (id, name) => desk.rename(id, name) });

// ---------------------------------------------------------------------------------------------------- what is shown

function show(place) {
  const index = mode === "chat" ? 0 : desk.active;
  panel.show(place, knobs.values, model(index), mode === "chat" ? "A chat has no branches: they are in “Write”." : "");
}

// After each change: what depends on the branches is drawn, and soon they are kept.
function changed() {
  draw();
  clearTimeout(keeping);
  keeping = setTimeout(keepAll, 500);
}

function keepAll() {
  keep({ tree: desk.tree, open: desk.sheets[0].branch.id, turns: chat.turns });
}

function draw() {
  const { compared, active, onScreen } = desk;
  onScreen.forEach((sheet, index) => {
    sheet.element.classList.toggle("active", compared && index === active);
    sheet.title.hidden = !compared;
    sheet.title.textContent = model(index).id;
  });
  const open = onScreen.map((sheet) => sheet.branch.id);
  $("branch-tree").setAttribute("aria-multiselectable", String(compared));
  branches.show(desk.tree, active ? open.reverse() : open, models.length > 1);
  const running = jobs.size > 0;
  $("stop").hidden = !running;
  $("go").hidden = running;
  $("go").textContent = mode === "chat" ? "Send" : compared ? "Continue both" : "Continue";
  for (const id of ["go", "again", "measure", "ahead"]) $(id).disabled = running || models.length === 0;
  $("branch-remove").disabled = desk.tree.all.length < 2;
  $("branch-undo").hidden = desk.removed === null;
}

// Says in a line what happened; `text` is read to those who do not see it appear.
function say(line, text = "") {
  $("status").textContent = line;
  $("spoken").textContent = text;
}

// Shows an error in words. Where a key is missing, its field is next.
function complain(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refusal)) console.error(error);
  $("problem-text").textContent = error.message;
  $("problem").hidden = false;
  if (error.status !== 401) return;
  $("connection").open = true;
  $("key").focus();
}

function quiet() {
  $("problem").hidden = true;
  $("problem-text").textContent = "";
}

// Back to the text; a finger would only get the keyboard of its screen.
function back() {
  if (!COARSE.matches) desk.sheet.pen.focus();
}

// ------------------------------------------------------------------------------------------------------- what it does

// Runs a task that can be stopped, and shows its error.
async function run(task) {
  const job = new AbortController();
  jobs.add(job);
  quiet();
  draw();
  try {
    await task(job.signal);
  } catch (error) {
    complain(error);
  } finally {
    jobs.delete(job);
    changed();
  }
}

// Stops what runs, and says whether anything did.
function stop() {
  if (jobs.size === 0) return false;
  for (const job of jobs) job.abort();
  jobs.clear();
  say("Stopped.");
  draw();
  return true;
}

function talk(repeat) {
  return run(async (signal) => {
    say("The model writes.");
    let last = null;
    for await (const state of chat.send(model(0).id, { ...knobs.values, seed: knobs.seed }, signal, repeat)) last = state;
    say(last ? `The model wrote ${last.tokens} tokens.` : "Write a message first.", last?.text);
  });
}

function go() {
  if (models.length === 0 || stop()) return;
  if (mode === "chat") talk(false);
  else desk.go();
}

function again() {
  if (models.length === 0) return;
  stop();
  if (mode === "chat") talk(true);
  else desk.again();
}

function choose(next) {
  stop();
  mode = next;
  document.querySelector(`input[name=mode][value=${mode}]`).checked = true;
  const talks = mode === "chat";
  desk.compare(mode === "compare");
  $("sheets").replaceChildren(...desk.onScreen.map((sheet) => sheet.element));
  $("sheets").classList.toggle("two", desk.compared);
  $("second").hidden = !desk.compared;
  $("write").hidden = talks;
  $("chat").hidden = !talks;
  for (const id of ["branches", "measure", "ahead"]) $(id).hidden = talks;
  show(talks ? null : desk.sheet.place);
  changed();
}

// Asks the server for its models. Their settings become those of the page, unless a person has changed them.
async function connect() {
  try {
    const { data } = await get("v1/models");
    models = data;
    quiet();
  } catch (error) {
    models = [];
    complain(error);
  }
  for (const index of [0, 1]) {
    const field = $(`model-${index}`);
    const chosen = field.value;
    field.replaceChildren(...models.map(({ id }) => el("option", { value: id }, id)));
    field.value = models.some(({ id }) => id === chosen) ? chosen : (models[index] ?? models[0])?.id;
  }
  chosen();
}

function chosen() {
  $("mode-compare").hidden = models.length < 2;
  $("mode-chat").hidden = !model(0).chat;
  $("modes").hidden = models.length < 2 && !model(0).chat;
  if (mode === "chat" && !model(0).chat) choose("write");
  document.title = models.length ? `${model(0).id} – soma` : "soma";
  knobs.offer(model(0).sampling);
  show(mode === "chat" ? null : desk.sheet.place);
  draw();
}

function save(all) {
  const { branch } = desk.sheet;
  const name = desk.tree.label(branch).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "text";
  if (all) download("branches.json", "application/json", JSON.stringify(desk.tree, null, 1));
  else download(`${name}.txt`, "text/plain;charset=utf-8", textOf(branch.pieces));
}

async function load(file) {
  stop();
  try {
    const tree = Tree.from(JSON.parse(await file.text()));
    desk.take(tree, tree.all[0].id);
    quiet();
    say("The branches of the file are open.");
    changed();
  } catch (error) {
    complain(new Refusal(error instanceof SyntaxError ? "This file is no JSON." : error.message));
  }
}

// ----------------------------------------------------------------------------------------------------------- the theme

const THEMES = ["system", "light", "dark"];

function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  localStorage.setItem("soma-theme", name);
  $("theme").textContent = `Theme: ${name}`;
}

// -------------------------------------------------------------------------------------------------------- the buttons

const press = (id, action) => $(id).addEventListener("click", action);
press("go", go);
press("stop", stop);
press("again", again);
press("measure", () => desk.measure());
press("ahead", () => desk.ahead());
press("problem-close", quiet);
press("branch-new", () => {
  desk.start();
  back();
});
press("branch-rename", () => branches.rename(desk.sheet.branch.id));
press("branch-remove", () => desk.remove(desk.sheet.branch.id));
press("branch-undo", () => desk.restore());
press("export-text", () => save(false));
press("export-json", () => save(true));
press("import", () => $("import-file").click());
press("help", () => $("help-dialog").showModal());
press("help-close", () => $("help-dialog").close());
press("theme", () => theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % 3]));
$("import-file").addEventListener("change", ({ target }) => {
  if (target.files.length) load(target.files[0]);
  target.value = "";
});
$("modes").addEventListener("change", ({ target }) => choose(target.value));
$("model-0").addEventListener("change", chosen);
$("model-1").addEventListener("change", draw);
$("key").addEventListener("change", ({ target }) => {
  setKey(target.value.trim());
  connect();
});

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  const control = event.ctrlKey || event.metaKey;
  const typing = target.matches("textarea, input:not([type=range], [type=radio])");
  if ($("help-dialog").open) return;
  if (control && key === "Enter") (event.shiftKey ? again : go)();
  else if (key === "Escape" && jobs.size > 0) stop();
  else if (event.altKey && key === "ArrowDown" && target === desk.sheet.pen) panel.focus();
  else if ((control && key === "/") || (key === "?" && !typing)) $("help-dialog").showModal();
  else return;
  event.preventDefault();
});

$("keys").append(...KEYS.flatMap(([key, meaning]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, meaning)]));
$("legend-steps").append(...[...STEPS, 0].map((_, index) => el("li", { class: `s${index}` })));
$("key").value = getKey();
theme(document.documentElement.dataset.theme ?? "system");
window.addEventListener("pagehide", keepAll);
const kept = restored();
if (kept) {
  desk.take(kept.tree, kept.open);
  chat.turns = kept.turns ?? [];
}
choose("write");
await connect();
if (models.length) back();
