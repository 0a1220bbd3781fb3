// Elements made without markup: text is always textContent, so nothing that a model or a person wrote becomes an element.

export const $ = (id) => document.getElementById(id);

// An element. Attributes go through setAttribute, `on...` are listeners, a child is an element or a text.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Moves the one tab stop of a list: arrows, Home and End go from item to item. Returns whether the key was one.
export function rove(event, items) {
  const at = items.indexOf(document.activeElement);
  const steps = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 };
  if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return false;
  items[Math.max(0, Math.min(items.length - 1, steps[event.key]))]?.focus();
  event.preventDefault();
  return true;
}

// Makes a change. An element that was in sight stays above `room`, the lowest place that nothing covers.
export function follow(element, room, change) {
  const before = element.getBoundingClientRect().bottom;
  change();
  const beyond = element.getBoundingClientRect().bottom - room;
  if (before > 0 && before <= window.innerHeight && beyond > 0) window.scrollBy({ top: beyond, behavior: "instant" });
}

// Gives a file to the person.
export function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}
