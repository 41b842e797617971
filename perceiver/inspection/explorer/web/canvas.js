// Painting on canvases: maps, pictures, boxes, peaks and color bars.

const LABEL_WIDTH = 0.18; // of a color bar, as a fraction of the bar
const scratch = document.createElement("canvas");

// One modality of a map with one pixel per cell, transparent where it is marked, on a canvas that is reused.
function cellCanvas(map, { rows, columns, start }, colors, marks) {
  if (scratch.width !== columns) scratch.width = columns;
  if (scratch.height !== rows) scratch.height = rows;
  const image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let cell = 0; cell < pixels.length; cell++) {
    pixels[cell] = marks?.[start + cell] ? 0 : colors.pixel(map[start + cell]);
  }
  scratch.getContext("2d").putImageData(image, 0, 0);
  return scratch;
}

// A map without surroundings, one pixel per cell; the style sheet scales it.
function paintThumbnail(canvas, map, part, colors, marks) {
  canvas.width = part.columns;
  canvas.height = part.rows;
  canvas.getContext("2d").drawImage(cellCanvas(map, part, colors, marks), 0, 0);
}

// image: an Image or null; opacity: of the map over it; ratio: device pixels per CSS pixel.
function paintMap(canvas, { map, marks, part, shape, colors, image, opacity, boxes, showPeak, ratio }) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  if (image) {
    context.imageSmoothingEnabled = image.naturalWidth > width;
    context.drawImage(image, 0, 0, width, height);
  }
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = false;
  // The last cells may extend beyond the plane.
  const [rows, columns] = [shape[0] / part.pooled[0], shape[1] / part.pooled[1]];
  context.drawImage(cellCanvas(map, part, colors, marks), 0, 0, columns, rows, 0, 0, width, height);
  context.globalAlpha = 1;
  const labels = [];
  for (const box of boxes) paintBox(context, box, ratio, labels);
  const peak = showPeak && peakCell(map, part);
  if (peak) paintPeak(context, cellBounds(peak, part, shape), ratio);
}

// strokes: [[color, width in CSS pixels]], from the outermost to the innermost.
function strokeOutlined(context, path, strokes, ratio) {
  for (const [color, width] of strokes) {
    context.strokeStyle = color;
    context.lineWidth = width * ratio;
    context.stroke(path);
  }
}

function paintBox(context, { name, left, top, right, bottom, isAnswer }, ratio, labels) {
  const { width, height } = context.canvas;
  const sides = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  const path = new Path2D();
  path.rect(...sides);
  const strokes = isAnswer ? [["#000b", 5], [page.outline, 2.5]] : [["#000b", 3], ["#fff", 1]];
  context.setLineDash(isAnswer ? [] : [5 * ratio, 3 * ratio]);
  strokeOutlined(context, path, strokes, ratio);
  context.setLineDash([]);
  if (name) paintLabel(context, name, sides, isAnswer, ratio, labels);
}

// Above the box, below it or inside: the first position that overlaps no other label.
function paintLabel(context, name, [left, top, , boxHeight], isAnswer, ratio, labels) {
  const { width, height } = context.canvas;
  context.font = `${isAnswer ? "600 " : ""}${11 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "top";
  const [length, line] = [context.measureText(name).width + 6 * ratio, 15 * ratio];
  const x = Math.max(0, Math.min(left, width - length));
  const isFree = (y) =>
    labels.every((other) => Math.abs(other.y - y) >= line || other.x >= x + length || other.end <= x);
  const positions = [top - line, top + boxHeight + ratio, top + ratio].filter((y) => y >= 0 && y + line <= height);
  const y = positions.find(isFree) ?? positions[0] ?? 0;
  labels.push({ x, y, end: x + length });
  context.fillStyle = "#000b";
  context.fillRect(x, y, length, line - ratio);
  context.fillStyle = isAnswer ? "#ffb3ad" : "#fff";
  context.fillText(name, x + 3 * ratio, y + 1.5 * ratio);
}

// Cross hairs.
function paintPeak(context, bounds, ratio) {
  const { width, height } = context.canvas;
  const [y, x] = bounds.map(([low, high], axis) => ((low + high) / 2) * (axis ? width : height));
  const path = new Path2D();
  path.arc(x, y, 8 * ratio, 0, 2 * Math.PI);
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    path.moveTo(x + 5 * ratio * dx, y + 5 * ratio * dy);
    path.lineTo(x + 13 * ratio * dx, y + 13 * ratio * dy);
  }
  strokeOutlined(context, path, [["#000", 4], ["#fff", 1.5]], ratio);
}

// The labeled values of a color bar, ascending, with both ends.
function barTicks({ top, scale, isSigned, position }) {
  if (!(top > 0)) return [0];
  const ticks = scale === "log" ? decadesBelow(top) : niceTicks(0, top, 4);
  const ascending = [...ticks.filter((value) => value < top * 0.9999), top];
  if (!isSigned) return ascending;
  const positive = ascending.filter((value) => position(value) > 0.5);
  return [...positive.map((value) => -value).reverse(), 0, ...positive];
}

function decadesBelow(top) {
  const floor = top / 10 ** NUM_DECADES;
  const last = Math.floor(Math.log10(top));
  const powers = Array.from({ length: NUM_DECADES + 1 }, (_, i) => 10 ** (last - NUM_DECADES + i));
  return [floor, ...powers.filter((value) => value > floor * 1.01)];
}

// The labels of a color bar that do not overlap: [{value, position}].
function barLabels(colors) {
  const ticks = barTicks(colors).map((value) => ({ value, position: colors.position(value) }));
  const end = ticks.at(-1).position;
  let last = -Infinity;
  return ticks.filter(({ position }) => {
    const isShown = position === end || (position - last >= LABEL_WIDTH && end - position >= LABEL_WIDTH);
    if (isShown) last = position;
    return isShown;
  });
}

// All colors of a scale, with labels where they do not overlap.
function renderColorBar(node, colors, caption) {
  const canvas = element("canvas", { width: colors.pixels.length, height: 1, "aria-hidden": "true" });
  const image = new ImageData(colors.pixels.length, 1);
  new Uint32Array(image.data.buffer).set(colors.pixels);
  canvas.getContext("2d").putImageData(image, 0, 0);
  const spans = barLabels(colors).map(({ value, position }) =>
    element("span", { ".style": `left:${100 * position}%` }, short(value)),
  );
  node.replaceChildren(
    element("div", { class: "ramp" }, canvas, element("div", { class: "labels" }, ...spans)),
    element("p", {}, caption),
  );
}
