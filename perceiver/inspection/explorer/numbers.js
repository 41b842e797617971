// Numbers as people read them, places along axes, and small parts of the document.

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

// Three figures, with a power of ten where that is shorter.
function short(value, figures = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) {
    const text = size >= 10 ** figures ? value.toFixed(0) : value.toPrecision(figures);
    return text
      .replace(/(\.\d*?)0+$/, "$1")
      .replace(/\.$/, "")
      .replace("-", "−");
  }
  const [digits, power] = value.toExponential(figures - 1).split("e");
  const raised = [...String(Math.abs(power))].map((digit) => SUPERSCRIPTS[digit]).join("");
  const plain = digits.replace(/\.?0+$/, "").replace("-", "−");
  return `${plain}·10${power < 0 ? "⁻" : ""}${raised}`;
}

function signed(value) {
  return value > 0 ? `+${short(value)}` : short(value);
}

function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const value = 100 * share;
  if (value !== 0 && Math.abs(value) < 0.1) return "< 0.1 %";
  return `${Math.abs(value) < 9.95 ? value.toFixed(1) : value.toFixed(0)} %`;
}

const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const hertzOf = (value) => 700 * (10 ** (value / 2595) - 1);

// The value at a place from 0 to 1 along an axis.
function valueAt({ start, stop, scale }, place) {
  if (scale === "mel") return hertzOf(mel(start) + (mel(stop) - mel(start)) * place);
  return start + (stop - start) * place;
}

// Where a cell begins and ends, from 0 to 1: the last one may be cut off by the end of the plane.
function cellSpan(index, factor, size) {
  return [(index * factor) / size, Math.min((index + 1) * factor, size) / size];
}

function cellText(axis, index, factor, size) {
  return spanText(axis, ...cellSpan(index, factor, size));
}

// From one place of an axis to another, in its unit.
function spanText(axis, ...places) {
  const ends = places.map((place) => valueAt(axis, place));
  const [low, high] = ends.sort((a, b) => a - b);
  return `${axis.name} ${short(low)}–${short(high)}${axis.unit ? ` ${axis.unit}` : ""}`;
}

// Round numbers from low to high, about so many.
function niceTicks(low, high, about) {
  if (!(high > low)) return [low];
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

// An element with attributes, or properties where a name begins with a dot. Texts in it are never read as html.
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith(".")) node[key.slice(1)] = value;
    else if (key.startsWith("aria-")) node.setAttribute(key, value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const byId = (id) => document.getElementById(id);
