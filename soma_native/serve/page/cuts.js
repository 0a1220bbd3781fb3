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

// The rows of a token's distribution, most likely first, and the probability of all tokens that are no row.
// A token that was drawn from beyond the listed ones is `outsider`; its probability is a part of `rest`.
export function distribution({ token, logprob, top }) {
  const rows = top.map((other) => ({ text: other.text, p: Math.exp(other.logprob), chosen: other.text === token }));
  rows.sort((a, b) => b.p - a.p);
  const rest = Math.max(0, rows.reduce((left, row) => left - row.p, 1));
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

// What may be left: the number of rows and the weight of the rest, at the ends of what is possible. The rules are in the
// order of the server (that of `transformers`): top-k, top-p, min-p. `sums[n]` is the weight of the first n rows.
function outcomes(weights, sums, [least, most], listed, { top_p, min_p }) {
  const whole = sums[listed];
  const last = weights[listed - 1];
  const after = (rest) => {
    if (top_p >= 1) return { count: listed, rest };
    const needed = top_p * (whole + rest);
    let count = 1;
    while (count < listed && sums[count] < needed) count++;
    return { count, rest: Math.max(0, Math.min(rest, needed - whole)) };
  };
  const [a, b] = [after(least), after(most)];
  const found = [];
  for (let count = a.count; count <= b.count; count++) if (count < listed || a.rest === 0) found.push({ count, rest: 0 });
  // The token that reaches top-p stays whole, so the rest can be one token more.
  if (b.rest > 0) found.push({ count: listed, rest: a.rest }, { count: listed, rest: Math.min(most, b.rest + (top_p < 1 ? last : 0)) });
  if (min_p === 0) return { found, count: b.count };
  const worthy = weights.filter((weight) => weight >= min_p).length;
  const cut = found.map(({ count, rest }) => ({ count: Math.min(count, worthy), rest: last < min_p ? 0 : rest }));
  return { found: [...cut, ...cut.map(({ count }) => ({ count, rest: 0 }))], count: b.count };
}

// What temperature and the cuts leave: for each row and for the rest the least and the greatest probability, and the
// rule that removes it. The ten most likely tokens are known one by one and the others as one sum, so some ends differ.
export function cut({ rows, rest }, knobs, vocabulary) {
  if (knobs.temperature === 0 || rows.length === 0) {
    const only = (row, index) => ({ ...row, low: +(index === 0), high: +(index === 0), reason: index ? "temperature 0" : "" });
    return { rows: rows.map(only), rest: { p: rest, low: 0, high: 0, reason: rest > 0 ? "temperature 0" : "" } };
  }
  const power = 1 / knobs.temperature;
  const best = rows[0].p;
  const weights = rows.map((row) => (row.p / best) ** power);
  const sums = weights.reduce((all, weight) => [...all, all[all.length - 1] + weight], [0]);
  const unseen = Math.max(1, (vocabulary || 50000) - rows.length);
  const more = knobs.top_k > 0 ? Math.min(unseen, Math.max(0, knobs.top_k - rows.length)) : unseen;
  const listed = knobs.top_k > 0 ? Math.min(knobs.top_k, rows.length) : rows.length;
  const bounds = restBounds(rest / best, rows[rows.length - 1].p / best, unseen, more, power);
  const { found, count } = outcomes(weights, sums, bounds, listed, knobs);
  const ends = (share) => {
    const shares = found.map((left) => share(left) / (sums[left.count] + left.rest));
    return { low: Math.min(...shares), high: Math.max(...shares) };
  };
  const why = (index) => (index >= listed ? "top-k" : index >= count ? "top-p" : "min-p");
  const drawn = rows.map((row, index) => {
    const share = ends((left) => (index < left.count ? weights[index] : 0));
    return { ...row, ...share, reason: share.high > 0 ? "" : why(index) };
  });
  const share = ends((left) => left.rest);
  const lost = bounds[1] <= 0 ? "top-k" : found.some((left) => left.rest > 0) ? "" : knobs.min_p > 0 && count === listed ? "min-p" : "top-p";
  return { rows: drawn, rest: { p: rest, ...share, reason: rest > 0 && share.high === 0 ? lost : "" } };
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
