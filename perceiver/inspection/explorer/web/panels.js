// Panels: one map over one modality, on a canvas with axes or as the background of the tokens of a text.

const MAX_PIXEL_RATIO = 2;
const MAX_CANVAS_WIDTH = 8192; // pixels
const SCALE_STEP = 0.5;
const SCALE_TOLERANCE = 1.05; // a multiple that exceeds the available space by this factor is shrunk to fit

// kind: "overlay" (map over input), "map", "other-overlay" and "other-map" (of the event compared with), "difference".
function createPanel(kind, description, part) {
  return description.tokens ? new TextPanel(kind, description, part) : new CanvasPanel(kind, description, part);
}

class Panel {
  constructor(kind, description, part) {
    Object.assign(this, { kind, description, part, caption: element("figcaption") });
  }

  assemble(...content) {
    const frame = element("div", { class: "frame" }, ...content);
    this.node = element("figure", { class: "panel", "data-panel": this.kind }, this.caption, frame);
    const { modality } = this.part;
    const view = {
      label: `${this.kind.replace("-", " ")} of ${modality}`,
      parts: () => selectionParts([modality, this.kind, this.frameName()].filter(Boolean).join("-")),
      svg: () => panelDrawing(this),
      csv: () => cellRows(this),
    };
    this.node.append(saveButtons(this.node, view));
  }

  frameName() {
    const frame = selectedFrame(this.description);
    return frame === null ? "" : `frame-${frame + 1}`;
  }
}

class CanvasPanel extends Panel {
  constructor(kind, description, part) {
    super(kind, description, part);
    this.canvas = element("canvas", { role: "img" });
    this.cell = element("div", { class: "cell", hidden: true });
    this.time = element("div", { class: "time", hidden: true });
    this.stage = element("div", { class: "stage" }, this.canvas, this.cell, this.time);
    const [rows, columns] = description.axes.map(({ name }, i) => (name ? axisNode(description, i) : null));
    this.viewport = element("div", { class: "viewport" }, this.stage);
    this.columnTicks = columns;
    this.assemble(rows, this.viewport, columns);
  }

  // Multiples of the preferred size, unless there is less space; of a single frame, if one is selected.
  fit(width, height) {
    const frame = selectedFrame(this.description);
    const count = frame === null ? 1 : numFrames(this.description);
    const preferredWidth = this.description.size[0] / count;
    const preferredHeight = this.description.size[1];
    const space = SCALE_TOLERANCE * Math.min(width / preferredWidth, height / preferredHeight);
    const factor = Math.max(1, SCALE_STEP * Math.floor(space / SCALE_STEP));
    const shown = Math.min(preferredWidth * factor, width);
    this.ratio = Math.min(window.devicePixelRatio || 1, MAX_PIXEL_RATIO, MAX_CANVAS_WIDTH / (shown * count));
    this.canvas.width = Math.round(shown * count * this.ratio);
    this.canvas.height = Math.round((shown * preferredHeight * this.ratio) / preferredWidth);
    this.stage.style.width = `${shown * count}px`;
    this.stage.style.aspectRatio = `${preferredWidth * count} / ${preferredHeight}`;
    this.viewport.style.width = `${shown}px`;
    this.frameWidth = shown;
  }

  // All frames remain on the stage; the viewport shows one of them.
  showFrame(frame) {
    this.stage.style.marginLeft = `${-(frame ?? 0) * this.frameWidth}px`;
    if (this.columnTicks) this.columnTicks.hidden = frame !== null;
    if (frame !== null) this.time.hidden = true;
  }

  paint(options, label) {
    paintMap(this.canvas, { part: this.part, ratio: this.ratio, shape: this.description.shape, ...options });
    this.canvas.setAttribute("aria-label", label);
  }

  // [down, across] of a pointer event, as fractions of the plane.
  positionOf(event) {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    return [(event.clientY - top) / height, (event.clientX - left) / width].map((x) => Math.max(0, Math.min(1, x)));
  }

  cellAt(event) {
    const { pooled, rows, columns } = this.part;
    return this.positionOf(event).map((position, axis) => {
      const index = Math.floor((position * this.description.shape[axis]) / pooled[axis]);
      return Math.min((axis ? columns : rows) - 1, index);
    });
  }

  showCell(cell) {
    this.cell.hidden = !cell;
    if (!cell) return;
    const [[top, bottom], [left, right]] = cellBounds(cell, this.part, this.description.shape);
    const sides = { top, left, height: bottom - top, width: right - left };
    for (const [side, value] of Object.entries(sides)) this.cell.style[side] = `${100 * value}%`;
  }

  showTime(share) {
    this.time.hidden = false;
    this.time.style.left = `${100 * share}%`;
  }
}

// Ticks of the rows (0) or columns (1).
function axisTicks({ axes, ticks }, index) {
  const { start, stop, scale } = axes[index];
  if (ticks[index].length || scale !== "linear") return ticks[index];
  const values = niceTicks(Math.min(start, stop), Math.max(start, stop), 4);
  return values.map((value) => ({ place: (value - start) / (stop - start), label: short(value) }));
}

// Ticks and title of the rows (0) or columns (1).
function axisNode(description, index) {
  const { name, unit } = description.axes[index];
  const spans = axisTicks(description, index).map(({ place, label }) =>
    element("span", { ".style": `${index ? "left" : "top"}:${100 * place}%` }, label),
  );
  return element(
    "div",
    { class: `ticks ${index ? "columns" : "rows"}`, "aria-hidden": "true" },
    element("div", {}, ...spans),
    element("span", { class: "title" }, unit ? `${name} (${unit})` : name),
  );
}

class TextPanel extends Panel {
  constructor(kind, description, part) {
    super(kind, description, part);
    this.tokens = description.tokens.map((text, token) =>
      element("span", { class: "token", "data-token": token }, text === "" ? "␣" : text),
    );
    this.stage = element("p", { class: "stage text" }, ...this.tokens.flatMap((token) => [token, " "]));
    this.assemble(this.stage);
  }

  fit() {}

  paint({ map, marks, colors, opacity, showPeak }, label) {
    const peak = showPeak ? peakCell(map, this.part)?.[1] : null;
    const background = isDark() ? 24 : 255;
    this.forEachToken((node, cell) => {
      const isBlank = Boolean(marks?.[this.part.start + cell]);
      node.classList.toggle("blank", isBlank);
      node.classList.toggle("peak", cell === peak);
      if (isBlank) {
        node.style.backgroundColor = node.style.color = "";
        return;
      }
      const color = colors.color(map[this.part.start + cell]);
      const mixed = color.map((channel) => Math.round(opacity * channel + (1 - opacity) * background));
      node.style.backgroundColor = `rgb(${mixed.join(" ")})`;
      node.style.color = textColorOn(mixed);
    });
    this.stage.setAttribute("aria-label", label);
  }

  forEachToken(act) {
    this.tokens.forEach((node, token) => act(node, Math.floor(token / this.part.pooled[1])));
  }

  cellAt(event) {
    const token = event.target.closest?.(".token")?.dataset.token;
    return token === undefined ? null : [0, Math.floor(token / this.part.pooled[1])];
  }

  showCell(cell) {
    this.forEachToken((node, index) => node.classList.toggle("cursor", index === cell?.[1]));
  }

  showTime() {}
}

function isDark() {
  return state.theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : state.theme === "dark";
}
