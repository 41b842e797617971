// Planes: one map over one modality with axes and cursors, on a canvas or, of a text, behind its words.

const MOST_RATIO = 2;
const SPARE = 1.05; // a multiple that is this much too large is shrunk rather than left out
const FACTOR_STEP = 0.5;

function planeOf(kind, description, part) {
  return description.tokens ? new TextPlane(kind, description, part) : new CanvasPlane(kind, description, part);
}

class CanvasPlane {
  constructor(kind, description, part) {
    Object.assign(this, { kind, description, part });
    this.canvas = element("canvas", { role: "img" });
    this.cell = element("div", { class: "cell", hidden: true });
    this.time = element("div", { class: "time", hidden: true });
    this.stage = element("div", { class: "stage" }, this.canvas, this.cell, this.time);
    const [rows, columns] = description.axes;
    this.node = element(
      "div",
      { class: "frame" },
      rows.name ? ticksOf("rows", rows, ticksAlong(rows, description.ticks[0]), "top") : null,
      this.stage,
      columns.name ? ticksOf("columns", columns, ticksAlong(columns, description.ticks[1]), "left") : null,
    );
  }

  // Multiples of the size at which it is drawn best; smaller only where there is no room.
  fit(width, height) {
    const [wide, high] = this.description.size;
    const room = SPARE * Math.min(width / wide, height / high);
    const factor = Math.max(1, FACTOR_STEP * Math.floor(room / FACTOR_STEP));
    const shown = Math.min(wide * factor, width);
    this.ratio = Math.min(window.devicePixelRatio || 1, MOST_RATIO);
    this.canvas.width = Math.round(shown * this.ratio);
    this.canvas.height = Math.round((shown * high * this.ratio) / wide);
    this.stage.style.width = `${shown}px`;
    this.stage.style.aspectRatio = `${wide} / ${high}`;
  }

  paint(options, label) {
    const { part, ratio } = this;
    paintPlane(this.canvas, { part, ratio, shape: this.description.shape, ...options });
    this.canvas.setAttribute("aria-label", label);
  }

  // The cell at a point of the screen.
  cellAt(event) {
    const sides = this.stage.getBoundingClientRect();
    const places = [(event.clientY - sides.top) / sides.height, (event.clientX - sides.left) / sides.width];
    return places.map((place, axis) => {
      const { pooled, rows, columns } = this.part;
      const index = Math.floor((place * this.description.shape[axis]) / pooled[axis]);
      return Math.max(0, Math.min((axis ? columns : rows) - 1, index));
    });
  }

  timeAt(event) {
    const sides = this.stage.getBoundingClientRect();
    return Math.max(0, Math.min(1, (event.clientX - sides.left) / sides.width));
  }

  showCell(place) {
    this.cell.hidden = !place;
    if (!place) return;
    const [[top, bottom], [left, right]] = place.map((index, axis) =>
      cellSpan(index, this.part.pooled[axis], this.description.shape[axis]),
    );
    const sides = { top, left, height: bottom - top, width: right - left };
    for (const [side, value] of Object.entries(sides)) this.cell.style[side] = `${100 * value}%`;
  }

  showTime(share) {
    this.time.hidden = share === null;
    if (share !== null) this.time.style.left = `${100 * share}%`;
  }
}

// Those that are given, or round numbers along an even axis.
function ticksAlong({ start, stop, scale }, given = []) {
  if (given.length || scale === "mel") return given;
  const [low, high] = [Math.min(start, stop), Math.max(start, stop)];
  return niceTicks(low, high, 4).map((value) => ({ place: (value - start) / (stop - start), label: short(value) }));
}

function ticksOf(kind, { name, unit }, ticks, side) {
  const labels = ticks.map(({ place, label }) => element("span", { ".style": `${side}:${100 * place}%` }, label));
  const title = element("span", { class: "title" }, unit ? `${name} (${unit})` : name);
  return element("div", { class: `ticks ${kind}`, "aria-hidden": "true" }, element("div", {}, ...labels), title);
}

class TextPlane {
  constructor(kind, description, part) {
    Object.assign(this, { kind, description, part });
    this.words = description.tokens.map((word, token) =>
      element("span", { class: "token", "data-token": token }, word === "" ? "␣" : word),
    );
    this.stage = element("p", { class: "stage text" }, ...this.words.flatMap((word) => [word, " "]));
    this.node = element("div", { class: "frame" }, this.stage);
  }

  fit() {}

  paint({ map, tones, alpha, mark }, label) {
    const factor = this.part.pooled[1];
    const marked = mark ? brightest(map, this.part) : -1;
    this.words.forEach((word, token) => {
      const cell = Math.floor(token / factor);
      const colour = tones.rgb(map[this.part.start + cell]);
      const mixed = mixedWithPaper(colour, alpha);
      word.style.backgroundColor = `rgb(${mixed.join(" ")})`;
      word.style.color = inkOn(mixed);
      word.classList.toggle("marked", cell === marked && map[this.part.start + cell] > 0);
    });
    this.stage.setAttribute("aria-label", label);
  }

  cellAt(event) {
    const token = event.target.closest?.(".token")?.dataset.token;
    return token === undefined ? null : [0, Math.floor(token / this.part.pooled[1])];
  }

  timeAt() {
    return 0;
  }

  showCell(place) {
    this.words.forEach((word, token) => {
      word.classList.toggle("cursor", Boolean(place) && Math.floor(token / this.part.pooled[1]) === place[1]);
    });
  }

  showTime() {}
}

function mixedWithPaper(colour, alpha) {
  const paper = isDark() ? 24 : 255;
  return colour.map((part) => Math.round(alpha * part + (1 - alpha) * paper));
}

function isDark() {
  return state.theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : state.theme === "dark";
}
