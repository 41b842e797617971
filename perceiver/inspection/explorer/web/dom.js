// Document helpers: elements, memoized rendering, and messages for screen readers.

const ANNOUNCE_DELAY = 250; // milliseconds, so that of several messages in a row only the last one is read
const dependenciesOf = new Map();
let pendingAnnouncement = null;

const byId = (id) => document.getElementById(id);

// An element with attributes, or properties where a name begins with a dot; text is never parsed as HTML.
const element = (name, attributes, ...children) => assemble(document.createElement(name), attributes, children);

const svg = (name, attributes, ...children) =>
  assemble(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

function assemble(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key.startsWith(".")) node[key.slice(1)] = value;
    else if (key.startsWith("aria-")) node.setAttribute(key, value);
    else if (![null, undefined, false].includes(value)) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const tableHead = (names) =>
  element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));

const tableRow = (name, cells, attributes = {}) =>
  element("tr", attributes, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell)));

// Calls `render` unless the dependencies are those of its last call.
function renderOnChange(name, dependencies, render) {
  const key = JSON.stringify(dependencies);
  if (dependenciesOf.get(name) === key) return;
  dependenciesOf.set(name, key);
  render();
}

function announce(text) {
  clearTimeout(pendingAnnouncement);
  pendingAnnouncement = setTimeout(() => (byId("announcement").textContent = text), ANNOUNCE_DELAY);
}
