// Charts as SVG: curves with axes and numbers, told apart by dashes and names as well as by colours.

const WIDTH = 640;
const HEIGHT = 250;
const SIDES = { left: 62, right: 134, top: 12, bottom: 40 };
const NAME_DISTANCE = 15;
const STUB = 60;

// series: [{name, points: [[x, y]], style, isChance}]; marks: [{x, y, style, label, isChosen, choose}].
function chart({ series, marks = [], xLabel, yLabel, description, percentX = false }) {
  const all = [...series.flatMap(({ points }) => points), ...marks.map(({ x, y }) => [x, y])];
  if (!all.length) return element("p", { class: "none" }, "No numbers.");
  const horizontal = extent(
    all.map(([x]) => x),
    0,
  );
  const vertical = extent(
    all.map(([, y]) => y),
    0.06,
  );
  const right = WIDTH - SIDES.right;
  const bottom = HEIGHT - SIDES.bottom;
  const x = (value) => SIDES.left + ((value - horizontal[0]) / (horizontal[1] - horizontal[0])) * (right - SIDES.left);
  const y = (value) => bottom - ((value - vertical[0]) / (vertical[1] - vertical[0])) * (bottom - SIDES.top);
  const node = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "group",
    "aria-label": description,
    class: "chart",
  });
  for (const value of niceTicks(...vertical, 4)) {
    node.append(svg("line", { class: "grid", x1: SIDES.left, x2: right, y1: y(value), y2: y(value) }));
    node.append(
      svg("text", { class: "number", x: SIDES.left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
  for (const value of niceTicks(...horizontal, 6).filter((tick) => percentX || Number.isInteger(tick))) {
    node.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }));
    const text = percentX ? `${Math.round(100 * value)} %` : String(value);
    node.append(svg("text", { class: "number", x: x(value), y: bottom + 17, "text-anchor": "middle" }, text));
  }
  node.append(svg("line", { class: "axis", x1: SIDES.left, x2: right, y1: bottom, y2: bottom }));
  node.append(svg("text", { x: (SIDES.left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, xLabel));
  const middle = (SIDES.top + bottom) / 2;
  node.append(
    svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(14 ${middle}) rotate(-90)` }, yLabel),
  );
  for (const { points, style } of series) {
    const path = points.map(([px, py], i) => `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
    // A single point has no line; a short one stands for it.
    const stub = points.length === 1 ? `m${-STUB / 2} 0h${STUB}` : "";
    node.append(svg("path", { class: `curve ${style}`, d: path + stub }));
  }
  const drawn = series.filter(({ points }) => points.length);
  node.append(...names(drawn, x, y, right));
  for (const mark of marks) node.append(markOf(mark, x(mark.x), y(mark.y)));
  return node;
}

function extent(values, margin) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * (high > low ? margin : 0.5);
  return [low - room, high + room];
}

// Names at the ends of the curves, pushed apart where they would overlap.
function names(series, x, y, right) {
  const ends = series.map(({ name, points, style }) => ({
    name,
    style,
    x: x(points.at(-1)[0]),
    y: y(points.at(-1)[1]),
  }));
  ends.sort((a, b) => a.y - b.y);
  let last = -Infinity;
  const places = ends.map((end) => (last = Math.max(end.y, last + NAME_DISTANCE)));
  const beyond = Math.max(0, (places.at(-1) ?? 0) - (HEIGHT - SIDES.bottom));
  return ends.map(({ name, style }, i) =>
    svg("text", { class: `name ${style}`, x: right + 16, y: places[i] - beyond + 4 }, name),
  );
}

function markOf({ style, label, isChosen, choose: chosen }, cx, cy) {
  const attributes = { class: `mark ${style}`, transform: `translate(${cx.toFixed(1)} ${cy.toFixed(1)})` };
  if (!chosen) return svg("g", attributes, svg("circle", { r: 2.5 }), svg("title", {}, label));
  const node = svg(
    "g",
    { ...attributes, role: "button", tabindex: 0, "aria-label": label, "aria-pressed": isChosen },
    isChosen ? svg("circle", { r: 9, class: "ring" }) : null,
    svg("circle", { r: 12, class: "target" }),
    svg("circle", { r: 5 }),
    svg("title", {}, label),
  );
  node.addEventListener("click", chosen);
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    chosen();
  });
  return node;
}
