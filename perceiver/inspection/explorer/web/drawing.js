// Drawings of views as SVG for files: cells are rectangles, texts are texts; only a photo or a spectrogram is an image.

const [PAPER, INK, GRAY] = ["#ffffff", "#1a1d21", "#59616b"];
const FONT = "system-ui, sans-serif";
const DRAWING_MARGIN = 16;
const HEAD_HEIGHT = 52; // title and subtitle
const AXIS_WIDTH = 58;
const AXIS_HEIGHT = 40;
const BAR_WIDTH = 320;
const BAR_HEIGHT = 62;
const NUM_STOPS = 33; // of the gradient of a color bar
const TEXT_WIDTH = 720;
const [TOKEN_SIZE, TOKEN_HEIGHT, LINE_HEIGHT] = [15, 22, 30];
const SERIES = ["#0b5cad", "#b04a00", "#6b3fa0", "#3d6b1f"]; // --run0 to --run3 in the light theme
const [GRID_WIDTH, THUMBNAIL_WIDTH, THUMBNAIL_GAP, THUMBNAIL_TOKENS] = [900, 80, 10, 12];
const WIDE = 1.8; // ratio of width and height above which thumbnails are wider
const TRACK_WIDTH = 300; // of bars
const measuring = document.createElement("canvas").getContext("2d");

const rgb = ([r, g, b]) => `rgb(${r},${g},${b})`;

function widthOf(text, size, weight = 400) {
  measuring.font = `${weight} ${size}px ${FONT}`;
  return measuring.measureText(text).width;
}

const drawnText = (x, y, content, { size = 12, fill = INK, ...attributes } = {}) =>
  svg("text", { x, y, "font-size": size, fill, ...attributes }, content);

// A drawing of some content below a title and a subtitle.
function drawing(width, height, title, subtitle, ...content) {
  const total = Math.max(width, widthOf(title, 14, 600) + 2 * DRAWING_MARGIN, widthOf(subtitle, 12) + 2 * DRAWING_MARGIN);
  const size = { width: Math.ceil(total), height: Math.ceil(height) };
  return svg(
    "svg",
    { xmlns: "http://www.w3.org/2000/svg", ...size, viewBox: `0 0 ${size.width} ${size.height}`, "font-family": FONT },
    svg("title", {}, `${title}, ${subtitle}`),
    svg("rect", { ...size, fill: PAPER }),
    drawnText(DRAWING_MARGIN, 22, title, { size: 14, "font-weight": 600 }),
    drawnText(DRAWING_MARGIN, 40, subtitle, { fill: GRAY }),
    ...content.flat(),
  );
}

// The cells of a map as rectangles, those of one color in a row as one; nothing where they are marked.
function cellRects({ rows, columns, start }, map, marks, colors) {
  const rects = [];
  for (let row = 0; row < rows; row++) {
    let last = null;
    for (let column = 0; column < columns; column++) {
      const index = start + row * columns + column;
      const fill = marks?.[index] ? null : rgb(colors.color(map[index]));
      if (last && fill === last.fill) last.width += 1;
      else if (fill) rects.push((last = { x: column, y: row, width: 1, height: 1, fill }));
      else last = null;
    }
  }
  return rects.map((rect) => svg("rect", rect));
}

function colorBarDrawing(x, y, colors, caption, id = "colors") {
  const channels = new Uint8Array(colors.pixels.buffer);
  const stops = Array.from({ length: NUM_STOPS }, (_, i) => {
    const step = Math.round((i / (NUM_STOPS - 1)) * (colors.pixels.length - 1));
    return svg("stop", { offset: i / (NUM_STOPS - 1), "stop-color": rgb(channels.subarray(4 * step, 4 * step + 3)) });
  });
  const labels = barLabels(colors).flatMap(({ value, position }) => [
    svg("line", { x1: x + BAR_WIDTH * position, x2: x + BAR_WIDTH * position, y1: y + 12, y2: y + 16, stroke: INK }),
    drawnText(x + BAR_WIDTH * position, y + 28, short(value), { size: 11, "text-anchor": "middle" }),
  ]);
  return [
    svg("defs", {}, svg("linearGradient", { id }, ...stops)),
    svg("rect", { x, y, width: BAR_WIDTH, height: 12, fill: `url(#${id})`, stroke: GRAY, "stroke-width": 0.5 }),
    ...labels,
    drawnText(x, y + 46, caption, { fill: GRAY }),
  ];
}

function boxDrawing({ name, left, top, right, bottom, isAnswer }, width, height) {
  const sides = { x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height };
  const strokes = isAnswer ? [["#000", 5], [page.outline, 2.5]] : [["#000", 3], ["#fff", 1]];
  const dashes = isAnswer ? null : "5 3";
  const outlines = strokes.map(([stroke, strokeWidth]) =>
    svg("rect", { ...sides, fill: "none", stroke, "stroke-width": strokeWidth, "stroke-dasharray": dashes }),
  );
  if (!name) return outlines;
  const y = sides.y >= 15 ? sides.y - 4 : sides.y + 12;
  return [...outlines, drawnText(sides.x + 3, y, name, { size: 11, fill: "#fff", stroke: "#000", "stroke-width": 3, "paint-order": "stroke" })];
}

function peakDrawing([[top, bottom], [left, right]], width, height) {
  const [x, y] = [((left + right) / 2) * width, ((top + bottom) / 2) * height];
  const lines = [[1, 0], [-1, 0], [0, 1], [0, -1]].map(([dx, dy]) => `M${x + 5 * dx} ${y + 5 * dy}L${x + 13 * dx} ${y + 13 * dy}`);
  const path = `M${x - 8} ${y}a8 8 0 1 0 16 0a8 8 0 1 0 -16 0${lines.join("")}`;
  return [["#000", 4], ["#fff", 1.5]].map(([stroke, width]) => svg("path", { d: path, fill: "none", stroke, "stroke-width": width }));
}

function axisDrawing(description, index, left, top, width, height) {
  const { name, unit } = description.axes[index];
  if (!name) return [];
  const title = unit ? `${name} (${unit})` : name;
  const ticks = axisTicks(description, index);
  if (index) {
    const labels = ticks.flatMap(({ place, label }) => [
      svg("line", { x1: left + place * width, x2: left + place * width, y1: top + height, y2: top + height + 4, stroke: GRAY }),
      drawnText(left + place * width, top + height + 16, label, { size: 11, fill: GRAY, "text-anchor": "middle" }),
    ]);
    return [...labels, drawnText(left + width / 2, top + height + 32, title, { size: 11, fill: GRAY, "text-anchor": "middle" })];
  }
  const labels = ticks.flatMap(({ place, label }) => [
    svg("line", { x1: left - 4, x2: left, y1: top + place * height, y2: top + place * height, stroke: GRAY }),
    drawnText(left - 7, top + place * height + 4, label, { size: 11, fill: GRAY, "text-anchor": "end" }),
  ]);
  const turned = `translate(${left - 44} ${top + height / 2}) rotate(-90)`;
  return [...labels, drawnText(0, 0, title, { size: 11, fill: GRAY, "text-anchor": "middle", transform: turned })];
}

// One panel of the figure; of a video the frame that is shown.
function panelDrawing(panel) {
  return panel.description.tokens ? textDrawing(panel) : mapDrawing(panel);
}

function mapDrawing({ part, description, painted, frameWidth, kind }) {
  const { map, marks, colors, image, opacity, boxes, showPeak, title, subtitle, barCaption } = painted;
  const frame = selectedFrame(description);
  const count = frame === null ? 1 : numFrames(description);
  const [width, height] = [frameWidth, (frameWidth * count * description.size[1]) / description.size[0]];
  const full = frameWidth * count;
  const [left, top] = [DRAWING_MARGIN + AXIS_WIDTH, HEAD_HEIGHT];
  const cells = cellRects(part, map, marks, colors);
  const scale = [full / (description.shape[1] / part.pooled[1]), height / (description.shape[0] / part.pooled[0])];
  const peak = showPeak && peakCell(map, part);
  const view = svg(
    "svg",
    { x: left, y: top, width, height, viewBox: `${(frame ?? 0) * width} 0 ${width} ${height}`, overflow: "hidden" },
    svg("rect", { width: full, height, fill: "#f5f6f8" }),
    image ? svg("image", { href: description.picture, width: full, height, preserveAspectRatio: "none", style: "image-rendering:pixelated" }) : null,
    svg("g", { transform: `scale(${scale.join(" ")})`, opacity, "shape-rendering": "crispEdges" }, ...cells),
    ...boxes.flatMap((box) => boxDrawing(box, full, height)),
    ...(peak ? peakDrawing(cellBounds(peak, part, description.shape), full, height) : []),
  );
  const axes = [0, ...(frame === null ? [1] : [])].flatMap((index) => axisDrawing(description, index, left, top, width, height));
  const below = top + height + AXIS_HEIGHT;
  const total = Math.max(width, BAR_WIDTH, widthOf(barCaption, 12)) + left + 2 * DRAWING_MARGIN;
  return drawing(total, below + BAR_HEIGHT, title, subtitle, view, axes, colorBarDrawing(left, below, colors, barCaption));
}

function textDrawing({ tokens, part, painted: { map, marks, colors, opacity, showPeak, title, subtitle, barCaption } }) {
  const peak = showPeak ? peakCell(map, part)?.[1] : null;
  let [x, y] = [DRAWING_MARGIN, HEAD_HEIGHT];
  const nodes = tokens.flatMap(({ textContent: text }, token) => {
    const cell = Math.floor(token / part.pooled[1]);
    const width = widthOf(text, TOKEN_SIZE) + 6;
    if (x > DRAWING_MARGIN && x + width > TEXT_WIDTH) [x, y] = [DRAWING_MARGIN, y + LINE_HEIGHT];
    const place = { x, y, width, height: TOKEN_HEIGHT, rx: 3 };
    x += width + 6;
    const isBlank = Boolean(marks?.[part.start + cell]);
    const mixed = colors.color(map[part.start + cell]).map((channel) => Math.round(opacity * channel + (1 - opacity) * 255));
    const look = isBlank
      ? { fill: "none", stroke: GRAY, "stroke-dasharray": "3 2" }
      : { fill: rgb(mixed), stroke: cell === peak ? "#ff5a4f" : "none", "stroke-width": 2 };
    const ink = isBlank ? INK : textColorOn(mixed);
    return [svg("rect", { ...place, ...look }), drawnText(place.x + 3, y + 16, text, { size: TOKEN_SIZE, fill: ink })];
  });
  const below = y + LINE_HEIGHT + 6;
  const bar = colorBarDrawing(DRAWING_MARGIN + 10, below, colors, barCaption);
  return drawing(TEXT_WIDTH + DRAWING_MARGIN, below + BAR_HEIGHT, title, subtitle, nodes, bar);
}

function matrixDrawing({ names, columns, values, blanks, links, label, unit, modality }, colors) {
  const longest = (texts) => Math.max(...texts.map((text) => widthOf(text, 13)));
  const [left, top] = [longest(names) + 2 * DRAWING_MARGIN, HEAD_HEIGHT + longest(columns) + DRAWING_MARGIN];
  const cell = Math.max(2, Math.min(MATRIX_CELL, MATRIX_WIDTH / columns.length));
  const step = Math.ceil(columns.length / MOST_COLUMN_LABELS);
  const rows = names.flatMap((name, word) => [
    drawnText(left - MATRIX_MARGIN, top + MATRIX_CELL * (word + 0.5) + 4, name, { size: 13, "text-anchor": "end" }),
    ...[...values[word]].map((value, column) => {
      const place = { x: left + cell * column, y: top + MATRIX_CELL * word, width: cell, height: MATRIX_CELL };
      return blanks[column] ? null : svg("rect", { ...place, fill: rgb(colors.color(value)), "shape-rendering": "crispEdges" });
    }),
  ]);
  const heads = columns.map((text, column) => {
    const turned = `translate(${left + cell * (column + 0.5) + 4} ${top - MATRIX_MARGIN / 2}) rotate(-90)`;
    return column % step ? null : drawnText(0, 0, text, { size: 13, transform: turned });
  });
  const outlines = links.flatMap((row, word) =>
    row.map((isLink, column) => {
      if (!isLink || !state.boxes) return null;
      const place = { x: left + cell * column + 1, y: top + MATRIX_CELL * word + 1, width: cell - 2, height: MATRIX_CELL - 2 };
      return svg("rect", { ...place, fill: "none", stroke: page.outline, "stroke-width": 2 });
    }),
  );
  const below = top + MATRIX_CELL * names.length + DRAWING_MARGIN;
  const bar = colorBarDrawing(left, below, colors, `${label}: ${unit}, ${state.scale} scale`);
  const width = left + Math.max(cell * columns.length, BAR_WIDTH, widthOf(`${label}: ${unit}`, 12) + 100) + DRAWING_MARGIN;
  const title = `Alignment of words with ${modality}: ${label}`;
  const nodes = [rows, heads, outlines].map((some) => some.filter(Boolean));
  return drawing(width, below + BAR_HEIGHT, title, `${page.samples[state.sample].id}, ${eventName(state)}`, ...nodes, bar);
}

// Thumbnails of the maps of queries; color bars, where they share a range.
function gridDrawing({ explanation, layer, queries, unit, head }) {
  const descriptions = layer.maps.cells.map(({ modality }) => page.samples[state.sample].modalities[modality]);
  const isWide = descriptions.some(({ size: [width, height] }) => width > WIDE * height);
  const width = isWide ? 1.4 * THUMBNAIL_WIDTH : THUMBNAIL_WIDTH;
  const heights = descriptions.map(({ size, tokens }) => (tokens ? THUMBNAIL_TOKENS : (width * size[1]) / size[0]));
  const [across, down] = [width + THUMBNAIL_GAP, heights.reduce((sum, height) => sum + height + 2, LINE_HEIGHT)];
  const columns = Math.min(queries.length, Math.max(1, Math.floor(GRID_WIDTH / across)));
  const maps = queries.map((query) => gridMap(explanation, layer, query));
  const nodes = maps.map(({ map, stack, marks, colors }, place) => {
    let y = HEAD_HEIGHT + down * Math.floor(place / columns);
    const x = DRAWING_MARGIN + across * (place % columns);
    const cells = stack.layout.map((part, index) => {
      const scale = `translate(${x} ${y}) scale(${width / part.columns} ${heights[index] / part.rows})`;
      y += heights[index] + 2;
      return svg("g", { transform: scale, "shape-rendering": "crispEdges" }, ...cellRects(part, map, marks, colors[index]));
    });
    return [...cells, drawnText(x + width / 2, y + 12, String(queries[place]), { size: 11, "text-anchor": "middle" })];
  });
  const below = HEAD_HEIGHT + down * Math.ceil(queries.length / columns) + DRAWING_MARGIN;
  const isShared = state.range === "shared";
  const ranges = { own: "each map has its own range", clipped: "each map up to its 99th percentile", map: "one range for all modalities of a map" };
  const bars = isShared
    ? maps[0].stack.layout.map(({ modality }, index) => {
        const caption = `${modality}: ${unit}, ${state.scale} scale`;
        return colorBarDrawing(DRAWING_MARGIN + 10, below + BAR_HEIGHT * index, maps[0].colors[index], caption, `colors${index}`);
      })
    : [drawnText(DRAWING_MARGIN, below, `${unit}, ${state.scale} scale; ${ranges[state.range]}`, { fill: GRAY })];
  const title = `${capitalized(plural(layer.query_kind))} of ${layer.name}, ${head}: ${unit}`;
  const height = below + (isShared ? BAR_HEIGHT * bars.length : DRAWING_MARGIN);
  return drawing(across * columns + 2 * DRAWING_MARGIN, height, title, viewSubtitle(), nodes.flat(), bars.flat());
}

const viewSubtitle = () => `${page.samples[state.sample].id}, ${eventName(state)}`;

// Bars of changes to both sides of the middle.
function changesDrawing({ title, items }) {
  const left = DRAWING_MARGIN + Math.max(...items.map(({ name }) => widthOf(name, 12))) + THUMBNAIL_GAP;
  const [middle, right] = [left + TRACK_WIDTH / 2, left + TRACK_WIDTH + THUMBNAIL_GAP];
  const rows = items.flatMap((item, row) => {
    const y = HEAD_HEIGHT + TOKEN_HEIGHT * row;
    const width = (Math.abs(item.share) * TRACK_WIDTH) / 2;
    const bar = { x: item.change < 0 ? middle - width : middle, y: y + 3, width, height: TOKEN_HEIGHT - 8 };
    return [
      drawnText(left - THUMBNAIL_GAP, y + 14, item.name, { "text-anchor": "end" }),
      svg("rect", { ...bar, fill: SERIES[item.change < 0 ? 0 : 1] }),
      drawnText(right, y + 14, changeText(item)),
    ];
  });
  const bottom = HEAD_HEIGHT + TOKEN_HEIGHT * items.length;
  const axis = svg("line", { x1: middle, x2: middle, y1: HEAD_HEIGHT, y2: bottom, stroke: GRAY });
  const longest = Math.max(...items.map((item) => widthOf(changeText(item), 12)));
  return drawing(right + longest + DRAWING_MARGIN, bottom + DRAWING_MARGIN, title, viewSubtitle(), rows, axis);
}

// A bar for each map, divided by the shares of the modalities.
function sharesDrawing({ title, titleOfWeights = title, stack: { layout } }, rows) {
  const left = DRAWING_MARGIN + Math.max(...rows.map(([name]) => widthOf(name, 12))) + THUMBNAIL_GAP;
  const nodes = rows.flatMap(([name, shares], row) => {
    const y = HEAD_HEIGHT + TOKEN_HEIGHT * row;
    let x = left;
    const parts = shares.map((share, index) => {
      const part = { x, y: y + 3, width: TRACK_WIDTH * share, height: TOKEN_HEIGHT - 8, fill: SERIES[index % SERIES.length] };
      x += part.width;
      return svg("rect", { ...part, stroke: PAPER });
    });
    const text = drawnText(left + TRACK_WIDTH + THUMBNAIL_GAP, y + 14, shareText(layout, shares));
    return [drawnText(left - THUMBNAIL_GAP, y + 14, name, { "text-anchor": "end" }), ...parts, text];
  });
  const longest = Math.max(...rows.map(([, shares]) => widthOf(shareText(layout, shares), 12)));
  const width = left + TRACK_WIDTH + longest + THUMBNAIL_GAP + DRAWING_MARGIN;
  const height = HEAD_HEIGHT + TOKEN_HEIGHT * rows.length + DRAWING_MARGIN;
  return drawing(width, height, `Share of each modality: ${titleOfWeights}`, viewSubtitle(), nodes);
}

// A chart of the page with the look that style sheets give it in the light theme.
function chartDrawing(chart, title, subtitle) {
  const looks = "fill stroke stroke-width stroke-dasharray font-size font-weight".split(" ");
  const { theme } = document.documentElement.dataset;
  document.documentElement.dataset.theme = "light";
  const copy = chart.cloneNode(true);
  const originals = chart.querySelectorAll("*");
  copy.querySelectorAll("*").forEach((node, index) => {
    const style = getComputedStyle(originals[index]);
    for (const look of looks) node.setAttribute(look, style.getPropertyValue(look));
    for (const name of ["class", "tabindex", "role", "aria-label", "aria-pressed"]) node.removeAttribute(name);
  });
  document.documentElement.dataset.theme = theme;
  for (const name of ["class", "role", "aria-label"]) copy.removeAttribute(name);
  const place = { x: DRAWING_MARGIN, y: HEAD_HEIGHT, width: WIDTH, height: HEIGHT };
  for (const [key, value] of Object.entries(place)) copy.setAttribute(key, value);
  return drawing(WIDTH + 2 * DRAWING_MARGIN, HEAD_HEIGHT + HEIGHT + DRAWING_MARGIN, title, subtitle, copy);
}
