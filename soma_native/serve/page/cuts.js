// What the page computes: surprise, the distribution of a token, and what the sampling rules leave of it.
// This module touches no document, so a test can import it alone.

// Upper ends of the levels of surprise, in bits. A token of 1 bit had probability 1/2, one of 10 bits 1/1024.
export const STEPS = [0.5, 1, 2, 3, 5, 7, 10];

export const bits = (logprob) => -logprob / Math.LN2;

// The level of surprise of a log-probability in nats: 0 (expected) to STEPS.length.
export function level(logprob) {
  const surprise = bits(logprob);
  const found = STEPS.findIndex((step) => surprise <= step);
  return found < 0 ? STEPS.length : found;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

// The rows of a token's distribution, most likely first, and the probability of all tokens that are no row.
// A token that was drawn from beyond the listed ones is `outsider`; its probability is a part of `rest`.
export function distribution({ token, logprob, top }) {
  const rows = top.map((other) => ({ text: other.text, p: Math.exp(other.logprob), chosen: other.text === token }));
  rows.sort((a, b) => b.p - a.p);
  const rest = Math.max(0, 1 - sum(rows.map((row) => row.p)));
  const inside = token === undefined || rows.some((row) => row.chosen);
  return { rows, rest, outsider: inside ? null : { text: token, p: Math.exp(logprob), chosen: true } };
}

// What the unlisted tokens weigh after temperature, at least and at most. Weights are relative to the best token's.
// Known are their number, their sum and that none exceeds the last row; extremes are even and bunched shares.
function restBounds(share, largest, unseen, most, power) {
  if (share <= 0 || most <= 0) return [0, 0];
  const bunched = Math.min(most, share / largest) * largest ** power;
  const even = most * Math.min(share / most, largest) ** power;
  const spread = most * (share / unseen) ** power;
  return [Math.min(bunched, even, spread), Math.max(bunched, even, spread)];
}

// The rules in the order of the server (that of `transformers`): temperature, top-k, top-p, min-p.
function rules(weights, rest, { top_k, top_p, min_p }, sure) {
  const reasons = weights.map((_, index) => (top_k > 0 && index >= top_k ? "top-k" : ""));
  let restReason = rest > 0 ? "" : "top-k";
  const kept = weights.map((weight, index) => (reasons[index] ? 0 : weight));
  const needed = top_p * (sum(kept) + rest);
  if (top_p < 1) {
    let reached = 0;
    for (let index = 0; index < kept.length && !reasons[index]; index++) {
      if (reached >= needed) {
        kept[index] = 0;
        reasons[index] = "top-p";
      }
      reached += kept[index];
    }
    if (rest > 0 && reached >= needed) restReason = "top-p";
    rest = Math.max(0, Math.min(rest, needed - reached));
  }
  for (let index = 0; index < kept.length; index++) {
    if (!reasons[index] && kept[index] < min_p) {
      kept[index] = 0;
      reasons[index] = "min-p";
    }
  }
  if (min_p > 0 && rest > 0) {
    const all = weights[weights.length - 1] < min_p;
    if (all) restReason = "min-p";
    if (all || sure) rest = 0;
  }
  const total = sum(kept) + rest;
  return { shares: kept.map((weight) => weight / total), rest: rest / total, reasons, restReason };
}

// What temperature and the cuts leave: for each row and for the rest the least and the greatest probability, and the
// rule that removes it. The ten most likely tokens are known one by one and the others as one sum, so some ends differ.
export function cut({ rows, rest }, knobs, vocabulary) {
  const greedy = knobs.temperature === 0;
  if (greedy || rows.length === 0) {
    const only = (row, index) => ({ ...row, low: +(index === 0), high: +(index === 0), reason: index ? "temperature 0" : "" });
    return { rows: rows.map(only), rest: { p: rest, low: 0, high: 0, reason: rest > 0 ? "temperature 0" : "" } };
  }
  const power = 1 / knobs.temperature;
  const best = rows[0].p;
  const weights = rows.map((row) => (row.p / best) ** power);
  const unseen = Math.max(1, (vocabulary || 50000) - rows.length);
  const most = knobs.top_k > 0 ? Math.min(unseen, Math.max(0, knobs.top_k - rows.length)) : unseen;
  const bounds = restBounds(rest / best, rows[rows.length - 1].p / best, unseen, most, power);
  const [a, b] = bounds.map((bound, index) => rules(weights, bound, knobs, index === 0));
  const ends = (x, y) => ({ low: Math.min(x, y), high: Math.max(x, y) });
  const reason = (x, y, why) => (Math.max(x, y) > 0 ? "" : why);
  return {
    rows: rows.map((row, i) => ({
      ...row,
      ...ends(a.shares[i], b.shares[i]),
      reason: reason(a.shares[i], b.shares[i], b.reasons[i] || a.reasons[i]),
    })),
    rest: { p: rest, ...ends(a.rest, b.rest), reason: rest > 0 ? reason(a.rest, b.rest, b.restReason) : "" },
  };
}

// 0.1234 -> "12.3%", and a range where the ends differ after rounding.
export function percent(low, high = low) {
  const text = (p) => {
    const value = 100 * p;
    if (value < 0.1) return value > 0 ? "<0.1" : "0";
    return value >= 9.95 ? value.toFixed(0) : value.toFixed(1);
  };
  return text(low) === text(high) ? `${text(low)}%` : `${text(low)}–${text(high)}%`;
}
