// Numbers, axes and cells as text.

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

const quoted = (name) => `“${name}”`;
const capitalized = (text) => text[0].toUpperCase() + text.slice(1);
const plural = (noun) => (noun === "query" ? "queries" : `${noun}s`);
const counted = (count, noun) => `${count} ${count === 1 ? noun : plural(noun)}`;

// Three significant figures, with a power of ten for very small and very large numbers.
function short(value, figures = 3) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const trimmed = (digits) => digits.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "").replace("-", "−");
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return trimmed(size >= 10 ** figures ? value.toFixed(0) : value.toPrecision(figures));
  const [digits, power] = value.toExponential(figures - 1).split("e");
  const raised = [...String(Math.abs(power))].map((digit) => SUPERSCRIPTS[digit]).join("");
  return `${trimmed(digits)}·10${power < 0 ? "⁻" : ""}${raised}`;
}

const signed = (value) => (value > 0 ? `+${short(value)}` : short(value));

function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const value = 100 * share;
  if (value !== 0 && Math.abs(value) < 0.1) return "< 0.1 %";
  return `${value.toFixed(Math.abs(value) < 9.95 ? 1 : 0)} %`;
}

const melOf = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const hertzOf = (mel) => 700 * (10 ** (mel / 2595) - 1);

// The values of an axis at two fractions of its length, with its name and unit.
function spanText({ name, unit, start, stop, scale }, ...fractions) {
  const valueAt = (fraction) =>
    scale === "mel"
      ? hertzOf(melOf(start) + (melOf(stop) - melOf(start)) * fraction)
      : start + (stop - start) * fraction;
  const [low, high] = fractions.map(valueAt).sort((a, b) => a - b);
  return `${name} ${short(low)}–${short(high)}${unit ? ` ${unit}` : ""}`;
}

// [[top, bottom], [left, right]] of a cell as fractions of its plane; the last row and column may be cut off.
function cellBounds(cell, { pooled }, shape) {
  return cell.map((index, axis) => {
    const [factor, size] = [pooled[axis], shape[axis]];
    return [(index * factor) / size, Math.min((index + 1) * factor, size) / size];
  });
}

const cellIndex = (part, [row, column]) => part.start + row * part.columns + column;

function cellText({ axes, shape, tokens, strip }, part, cell) {
  const [first, last] = [cell[1] * part.pooled[1], Math.min((cell[1] + 1) * part.pooled[1], shape[1]) - 1];
  if (tokens) return `${quoted(tokens.slice(first, last + 1).join(" "))} (token ${first + 1})`;
  const bounds = cellBounds(cell, part, shape);
  const texts = axes.map((axis, i) => (axis.name ? spanText(axis, ...bounds[i]) : null));
  if (strip) texts[1] = stripText(strip, first, last);
  return texts.filter(Boolean).join(", ");
}

// Columns of a strip of frames along each axis that forms it, of which the innermost changes fastest.
function stripText(strip, first, last) {
  const texts = [];
  for (const { axis, count } of [...strip].reverse()) {
    const isWithin = Math.floor(first / count) === Math.floor(last / count);
    const [from, to] = isWithin ? [first % count, last % count] : [0, count - 1]; // of several frames all columns
    texts.unshift(spanText(axis, from / count, (to + 1) / count));
    [first, last] = [first, last].map((column) => Math.floor(column / count));
  }
  return texts.join(", ");
}

// About `count` round numbers from low to high.
function niceTicks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}
