// From the chunks of a stream to pieces of text: {text, token, logprob, top}, where top is [{text, logprob}].
// A piece that a person typed is {text} alone. This module touches no document, so a test can import it alone.

// The part of the text that each token added, or null. A token's own text can differ: a word gets its space.
export function align(text, tokens) {
  const parts = [];
  let at = 0;
  for (const token of tokens) {
    const found = text.indexOf(token, at);
    if (found < 0 || text.slice(at, found).trim() !== "") return null;
    parts.push(text.slice(at, found + token.length));
    at = found + token.length;
  }
  return at === text.length ? parts : null;
}

// One piece of several tokens. It has the alternatives of its first token and the log-probability of all.
function join(text, tokens) {
  return { ...tokens[0], text, logprob: tokens.reduce((total, token) => total + token.logprob, 0), count: tokens.length };
}

// The end of a token that a text begins with. The first token of an answer can begin with the end of the prompt.
function endOf(token, text) {
  let at = 0;
  while (!text.startsWith(token.slice(at))) at++;
  return token.slice(at);
}

// What a piece's token has before the piece's text: the end of the prompt, which the model read as a part of the token.
export function begun({ token, text, begins }) {
  return begins ?? (token?.endsWith(text) ? token.slice(0, token.length - text.length) : "");
}

// Collects the tokens of a stream. Tokens that end inside a character wait for the text that they make.
export class Reader {
  #waiting = [];
  #first = true;

  // The pieces that a chunk of text and tokens completes.
  take(text, tokens) {
    if (text === "") {
      this.#waiting.push(...tokens);
      return [];
    }
    if (tokens.length === 0 && this.#waiting.length === 0) return [{ text }];
    const all = [...this.#waiting, ...tokens];
    this.#waiting = [];
    const [own, ...others] = all.map((token) => token.token);
    let parts = others.length === 0 ? [text] : align(text, [own, ...others]);
    if (!parts && this.#first) parts = align(text, [endOf(own, text), ...others]);
    this.#first = false;
    if (!parts || parts.includes("")) return [join(text, all)];
    return all.map((token, index) => ({ text: parts[index], ...token }));
  }
}

// How many of the likeliest tokens the page asks for.
export const ALTERNATIVES = 10;

const alternative = (text, logprob) => ({ text, logprob });

// The server adds the drawn token where it is none of the likeliest; the page shows that one apart.
const likeliest = (top) => [...top].sort((a, b) => b.logprob - a.logprob).slice(0, ALTERNATIVES);

// The tokens of a chunk of /v1/completions.
export function ofCompletion(logprobs) {
  return (logprobs?.tokens ?? []).map((token, index) => ({
    token,
    logprob: logprobs.token_logprobs[index],
    // The keys of an object that look like numbers come first, so their order says nothing.
    top: likeliest(Object.entries(logprobs.top_logprobs?.[index] ?? {}).map(([text, logprob]) => alternative(text, logprob))),
  }));
}

// The tokens of a chunk of /v1/chat/completions.
export function ofChat(logprobs) {
  return (logprobs?.content ?? []).map(({ token, logprob, top_logprobs }) => ({
    token,
    logprob,
    top: (top_logprobs ?? []).map((other) => alternative(other.token, other.logprob)),
  }));
}

// The pieces of a text that /score has measured. Its offsets count code points, those of a string UTF-16 units.
export function ofScores(text, { tokens, logprobs, top, offsets }) {
  const units = [0];
  for (const character of text) units.push(units[units.length - 1] + character.length);
  const pieces = [];
  let at = 0;
  tokens.forEach((token, index) => {
    const end = index + 1 < tokens.length ? units[offsets[index + 1][0]] : text.length;
    if (end <= at) return;
    const piece = { text: text.slice(at, end) };
    if (logprobs[index] !== null) {
      piece.token = token;
      piece.logprob = logprobs[index];
      piece.top = (top?.[index] ?? []).map((other) => alternative(other.token, other.logprob));
    }
    pieces.push(piece);
    at = end;
  });
  return pieces;
}

// What an alternative adds to the text in the place of a piece, or null where it cannot be written as text.
export function written(piece, text, special) {
  if (text === "" || special.includes(text) || text.includes("\uFFFD") || /^bytes:(\\x[0-9a-f]{2})+$/i.test(text)) return null;
  if (piece.gap !== undefined) return piece.gap + text;
  const gap = piece.token && piece.text.endsWith(piece.token) ? piece.text.slice(0, -piece.token.length) : "";
  return gap.trim() === "" ? gap + text : text;
}

// A token's text with its spaces and controls made visible.
export function visible(text) {
  if (text === "") return "∅";
  return text
    .replaceAll(" ", "␣")
    .replaceAll("\n", "↵")
    .replaceAll("\t", "⇥")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, (c) => `U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
}

// The same for a screen reader.
export function spoken(text) {
  const words = { " ": " space ", "\n": " line break ", "\t": " tab " };
  return text === "" ? "nothing" : text.replace(/[ \n\t]/g, (c) => words[c]).trim();
}
