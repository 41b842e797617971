// Line charts as SVG; curves differ by dashes and labels as well as by color.

const WIDTH = 640;
const HEIGHT = 250;
const MARGIN = { left: 62, right: 134, top: 12, bottom: 40 };
const LABEL_DISTANCE = 15;
const LEAST_RANGE = 1e-3; // of values, relative to the largest one, below which they are drawn as one
const STUB_LENGTH = 60; // of the line that represents a single point
const [RIGHT, BOTTOM] = [WIDTH - MARGIN.right, HEIGHT - MARGIN.bottom];

// series: [{name, points: [[x, y]], style}]; markers: [{x, y, style, label, isSelected, select}]; parts: of file names.
function lineChart({ series, markers = [], xLabel, yLabel, description, parts, isPercentX = false }) {
  const shown = series.filter(({ points }) => points.length);
  const points = [...shown.flatMap((curve) => curve.points), ...markers.map(({ x, y }) => [x, y])];
  if (!points.length) return element("p", { class: "none" }, "No values.");
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const [x, xRange] = axisScale(xs, 0, MARGIN.left, RIGHT);
  const [y, yRange] = axisScale(ys, 0.06, BOTTOM, MARGIN.top);
  const text = (attributes, content) => svg("text", attributes, content);
  const line = (attributes) => svg("line", attributes);
  const yValues = niceTicks(...yRange, 4);
  const yTicks = yValues.flatMap((value) => [
    line({ class: "grid", x1: MARGIN.left, x2: RIGHT, y1: y(value), y2: y(value) }),
    text({ class: "number", x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value, figuresOf(yValues))),
  ]);
  const xValues = niceTicks(...xRange, 6).filter((value) => isPercentX || Number.isInteger(value));
  const xTicks = xValues.flatMap((value) => [
    line({ class: "grid", x1: x(value), x2: x(value), y1: BOTTOM, y2: BOTTOM + 4 }),
    text(
      { class: "number", x: x(value), y: BOTTOM + 17, "text-anchor": "middle" },
      isPercentX ? `${Math.round(100 * value)} %` : value,
    ),
  ]);
  const center = `translate(14 ${(MARGIN.top + BOTTOM) / 2}) rotate(-90)`;
  const chart = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": description, class: "chart" },
    ...yTicks,
    ...xTicks,
    line({ class: "axis", x1: MARGIN.left, x2: RIGHT, y1: BOTTOM, y2: BOTTOM }),
    text({ x: (MARGIN.left + RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, xLabel),
    text({ "text-anchor": "middle", transform: center }, yLabel),
    ...shown.map((curve) => svg("path", { class: `curve ${curve.style}`, d: pathOf(curve.points, x, y) })),
    ...curveLabels(shown, y),
    ...markers.map((marker) => markerNode(marker, x(marker.x), y(marker.y))),
  );
  const node = element("figure", {}, chart);
  const view = {
    label: `chart of ${yLabel}`,
    parts: () => parts,
    svg: () => chartDrawing(chart, description, page.title),
    csv: () => [["curve", xLabel, yLabel], ...shown.flatMap((curve) => curve.points.map((point) => [curve.name, ...point]))],
  };
  node.append(saveButtons(node, view));
  return node;
}

// Significant figures by which consecutive ticks differ.
function figuresOf(ticks) {
  const largest = Math.max(...ticks.map(Math.abs));
  return ticks.length > 1 ? Math.max(3, Math.ceil(Math.log10(largest / (ticks[1] - ticks[0]))) + 1) : 3;
}

// The function from values to positions between `from` and `to`, and the range of the axis.
function axisScale(values, margin, from, to) {
  const [min, max] = [Math.min(...values), Math.max(...values)];
  const isOne = max - min <= (margin && LEAST_RANGE) * Math.max(Math.abs(min), Math.abs(max));
  const padding = isOne ? 0.5 * (Math.abs(max) || 1) : margin * (max - min);
  const [low, high] = [min - padding, max + padding];
  return [(value) => from + ((value - low) / (high - low)) * (to - from), [low, high]];
}

function pathOf(points, x, y) {
  const path = points.map(([px, py], i) => `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
  return points.length === 1 ? `${path}m${-STUB_LENGTH / 2} 0h${STUB_LENGTH}` : path;
}

// Names at the ends of the curves, moved apart where they would overlap.
function curveLabels(series, y) {
  const labels = series.map(({ name, style, points }) => ({ name, style, y: y(points.at(-1)[1]) }));
  labels.sort((a, b) => a.y - b.y);
  let last = -Infinity;
  for (const label of labels) last = label.y = Math.max(label.y, last + LABEL_DISTANCE);
  const excess = Math.max(0, last - BOTTOM);
  return labels.map((label) =>
    svg("text", { class: `name ${label.style}`, x: RIGHT + 16, y: label.y - excess + 4 }, label.name),
  );
}

function markerNode({ style, label, isSelected, select }, x, y) {
  const attributes = { class: `marker ${style}`, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` };
  if (!select) return svg("g", attributes, svg("circle", { r: 2.5 }), svg("title", {}, label));
  const node = svg(
    "g",
    { ...attributes, role: "button", tabindex: 0, "aria-label": label, "aria-pressed": isSelected },
    isSelected ? svg("circle", { r: 9, class: "ring" }) : null,
    svg("circle", { r: 12, class: "target" }),
    svg("circle", { r: 5 }),
    svg("title", {}, label),
  );
  node.addEventListener("click", select);
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    select();
  });
  return node;
}
