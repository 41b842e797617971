// Everything that is painted on a canvas: maps, pictures, boxes, marks and colour bars.

const MARK = page.outline; // a colour that none of the maps has
const SCRATCH = document.createElement("canvas");
let scratchPixels = null;
const LABEL_WIDTH = 0.18; // of a number at a colour bar, as a share of the bar

// The cells of one part of a map, a pixel each, on a canvas that is used again and again.
function cellPixels(map, part, tones) {
  const { rows, columns, start } = part;
  if (SCRATCH.width !== columns || SCRATCH.height !== rows || !scratchPixels) {
    SCRATCH.width = columns;
    SCRATCH.height = rows;
    scratchPixels = new ImageData(columns, rows);
  }
  const pixels = new Uint32Array(scratchPixels.data.buffer);
  for (let cell = 0; cell < rows * columns; cell++) pixels[cell] = tones.pixel(map[start + cell]);
  SCRATCH.getContext("2d").putImageData(scratchPixels, 0, 0);
  return SCRATCH;
}

// A map over its plane. The last cells may be cut off, so that less than the whole of them is taken.
function paintCells(context, map, part, shape, tones) {
  const { width, height } = context.canvas;
  context.imageSmoothingEnabled = false;
  const [rows, columns] = [shape[0] / part.pooled[0], shape[1] / part.pooled[1]];
  context.drawImage(cellPixels(map, part, tones), 0, 0, columns, rows, 0, 0, width, height);
}

// picture: an image or null; alpha: how strongly the map covers it (1 where there is no picture to be seen).
function paintPlane(canvas, { map, part, shape, tones, picture, alpha, boxes, mark, ratio }) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.globalAlpha = 1;
  context.clearRect(0, 0, width, height);
  if (picture) {
    context.imageSmoothingEnabled = picture.naturalWidth > width;
    context.drawImage(picture, 0, 0, width, height);
  }
  context.globalAlpha = alpha;
  paintCells(context, map, part, shape, tones);
  context.globalAlpha = 1;
  const labels = [];
  for (const box of boxes) paintBox(context, box, ratio, labels);
  if (mark) paintMark(context, markPlace(map, part, shape), ratio);
}

// The middle of the brightest cell, from 0 to 1, as [row, column]; null where nothing is bright.
function markPlace(map, part, shape) {
  const cell = brightest(map, part);
  if (!(map[part.start + cell] > 0)) return null;
  const places = [Math.floor(cell / part.columns), cell % part.columns];
  return places.map((index, axis) => {
    const [low, high] = cellSpan(index, part.pooled[axis], shape[axis]);
    return (low + high) / 2;
  });
}

function paintBox(context, { name, left, top, right, bottom, isAnswer }, ratio, labels) {
  const { width, height } = context.canvas;
  const sides = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  context.setLineDash(isAnswer ? [] : [5 * ratio, 3 * ratio]);
  const lines = [
    ["#000b", isAnswer ? 5 : 3],
    [isAnswer ? MARK : "#fff", isAnswer ? 2.5 : 1],
  ];
  for (const [colour, thickness] of lines) {
    context.strokeStyle = colour;
    context.lineWidth = thickness * ratio;
    context.strokeRect(...sides);
  }
  context.setLineDash([]);
  if (name) paintLabel(context, name, sides, isAnswer, ratio, labels);
}

// Above the box, below it or within: at the first place that no other label has.
function paintLabel(context, name, [left, top, , tall], isAnswer, ratio, labels) {
  const { width, height } = context.canvas;
  context.font = `${isAnswer ? "600 " : ""}${11 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "top";
  const [length, line] = [context.measureText(name).width + 6 * ratio, 15 * ratio];
  const x = Math.max(0, Math.min(left, width - length));
  const isFree = (y) =>
    labels.every((other) => Math.abs(other.y - y) >= line || other.x >= x + length || other.end <= x);
  const places = [top - line, top + tall + ratio, top + ratio].filter((y) => y >= 0 && y + line <= height);
  const y = places.find(isFree) ?? places[0] ?? 0;
  labels.push({ x, y, end: x + length });
  context.fillStyle = "#000b";
  context.fillRect(x, y, length, line - ratio);
  context.fillStyle = isAnswer ? "#ffb3ad" : "#fff";
  context.fillText(name, x + 3 * ratio, y + 1.5 * ratio);
}

function paintMark(context, place, ratio) {
  if (!place) return;
  const { width, height } = context.canvas;
  const [y, x] = [place[0] * height, place[1] * width];
  for (const [colour, thickness] of [
    ["#000", 4],
    ["#fff", 1.5],
  ]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness * ratio;
    context.beginPath();
    context.arc(x, y, 8 * ratio, 0, 2 * Math.PI);
    for (const [dx, dy] of [
      [1, 0],
      [-1, 0],
      [0, 1],
      [0, -1],
    ]) {
      context.moveTo(x + 5 * ratio * dx, y + 5 * ratio * dy);
      context.lineTo(x + 13 * ratio * dx, y + 13 * ratio * dy);
    }
    context.stroke();
  }
}

// A small map without anything around it: a pixel for each cell, which the style sheet enlarges.
function paintThumbnail(canvas, map, part, tones) {
  const cells = cellPixels(map, part, tones);
  if (canvas.width !== cells.width) canvas.width = cells.width;
  if (canvas.height !== cells.height) canvas.height = cells.height;
  canvas.getContext("2d").drawImage(cells, 0, 0);
}

// The values at which a colour bar is labelled, ascending, with its end.
function barTicks({ top, scale, isSigned }) {
  if (!(top > 0)) return [0];
  const ends = scale === "log" ? decades(top) : niceTicks(0, top, 4);
  const rising = [...ends.filter((value) => value < top * 0.9999), top];
  if (!isSigned) return rising;
  const above = rising.filter((value) => value > 0);
  return [...above.map((value) => -value).reverse(), 0, ...above];
}

// Powers of ten below `top`, behind the value where the bar begins.
function decades(top) {
  const floor = top / 10 ** DECADES;
  const last = Math.floor(Math.log10(top));
  const powers = Array.from({ length: DECADES + 1 }, (_, i) => 10 ** (last - DECADES + i));
  return [floor, ...powers.filter((value) => value > floor * 1.01)];
}

// A bar of all colours, with labels where they do not overlap.
function paintBar(node, tones, caption) {
  const canvas = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(256, 1);
  const colours = palette(tones.isSigned ? "difference" : tones.colours).pixels;
  new Uint32Array(pixels.data.buffer).set(colours);
  context.putImageData(pixels, 0, 0);
  const labels = element("div", { class: "labels" });
  const ticks = barTicks(tones).map((value) => ({ value, place: tones.place(value) }));
  const [low, high] = [ticks[0], ticks.at(-1)];
  let last = low.place;
  for (const { value, place } of ticks) {
    const isEnd = value === low.value || value === high.value;
    if (!isEnd && (place - last < LABEL_WIDTH || high.place - place < LABEL_WIDTH)) continue;
    labels.append(element("span", { ".style": `left:${100 * place}%` }, short(value)));
    last = place;
  }
  node.replaceChildren(element("div", { class: "ramp" }, canvas, labels), element("p", {}, caption));
}
