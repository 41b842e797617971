// Views as files: every view is drawn once more, in the light theme, as SVG, from which the PNG is made, and listed as CSV.
//
// A view: {label: for its buttons, parts: () => [what the name of its file tells], svg: () => drawing, csv: () => [row]}.

const PNG_RATIO = 2; // pixels per unit of the drawing
const MAX_NAME_PART = 60;
const REVOKE_DELAY = 10000; // milliseconds
const views = new WeakMap(); // by the element that contains the view and its buttons
const KINDS = {
  PNG: async (view) => pngOf(view.svg()),
  SVG: async (view) => new Blob([svgText(view.svg())], { type: "image/svg+xml" }),
  CSV: async (view) => new Blob([csvText(view.csv())], { type: "text/csv;charset=utf-8" }),
};

const namePart = (text) => String(text).replace(/[^\p{L}\p{N}.+-]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, MAX_NAME_PART);

function fileName(parts, kind) {
  const names = parts.map(namePart).filter(Boolean);
  return `${names.join("_") || "view"}.${kind.toLowerCase()}`;
}

// Makes an element a view; returns its buttons.
function saveButtons(node, view) {
  node.dataset.view = "";
  views.set(node, view);
  const buttons = Object.keys(KINDS).map((kind) => {
    const button = element("button", { type: "button", "aria-label": `save ${view.label} as ${kind}` }, kind);
    button.addEventListener("click", () => save(view, kind));
    return button;
  });
  return element("p", { class: "save" }, "save as ", ...buttons);
}

// The view that contains the focus, or the first one.
function saveFocused(kind) {
  const first = () => [...document.querySelectorAll("main [data-view]")].find((view) => view.checkVisibility());
  const node = document.activeElement?.closest("[data-view]") ?? first();
  if (node) save(views.get(node), kind);
}

async function save(view, kind) {
  if (figure.isLoading) return;
  const file = fileName(view.parts(), kind);
  try {
    const url = URL.createObjectURL(await KINDS[kind](view));
    element("a", { href: url, download: file }).click();
    setTimeout(() => URL.revokeObjectURL(url), REVOKE_DELAY);
    announce(`saved as ${file}`);
  } catch (error) {
    announce(`${file} cannot be saved: ${error.message}`);
    throw error;
  }
}

const svgText = (drawing) => new XMLSerializer().serializeToString(drawing);

const csvText = (rows) => rows.map((row) => row.map(csvCell).join(",")).join("\n");

function csvCell(value) {
  if (typeof value === "number") return Number.isFinite(value) ? String(Number(value.toPrecision(6))) : "";
  return value === null ? "" : `"${String(value).replaceAll('"', '""')}"`;
}

async function pngOf(drawing) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(drawing))}`;
  await image.decode();
  const [width, height] = ["width", "height"].map((side) => Number(drawing.getAttribute(side)));
  const ratio = Math.min(PNG_RATIO, MAX_CANVAS_WIDTH / Math.max(width, height));
  const canvas = element("canvas", { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the image is too large"))), "image/png"),
  );
}

// What the name of a file tells of the selected map: sample, view, query, and step.
function selectionParts(view) {
  const { sample, method, layer, head, query, answer, foil, evidence, quantity, compare, sinks } = figure.scene.selected;
  const { layers, answers } = figure.scene.explanation;
  const kind = layers[layer]?.query_kind;
  const attention = [layers[layer]?.name, `head-${head}`, `${kind}-${query}`, quantity === "scores" && "scores"];
  const attribution = [method, answers[answer]?.name, foil && `rather-than-${foil}`, evidence === "both" && "for-and-against"];
  const steps = [`step-${eventAt(state).step}`, compare && `against-${eventName(compare)}`];
  const parts = method === "attention" ? attention : attribution;
  return [page.samples[sample].id, view, ...parts, sinks && sinksShown().length && "without-sinks", ...steps].filter(Boolean);
}

// Rows of the cells of a panel: those of the frame that is shown.
function cellRows({ part, description, painted: { map, marks, errors, unit } }) {
  const frame = selectedFrame(description);
  const count = numFrames(description);
  const head = ["row", "column", "place", unit, ...(errors ? ["error"] : [])];
  const rows = [];
  for (let row = 0; row < part.rows; row++) {
    for (let column = 0; column < part.columns; column++) {
      const [, [left, right]] = cellBounds([row, column], part, description.shape);
      if (frame !== null && Math.floor(((left + right) / 2) * count) !== frame) continue;
      const index = cellIndex(part, [row, column]);
      const isBlank = marks?.[index];
      const error = isBlank ? null : Number.isFinite(errors?.[index]) ? errors[index] : "upper bound";
      const value = isBlank ? null : map[index];
      rows.push([row, column, cellText(description, part, [row, column]), value, ...(errors ? [error] : [])]);
    }
  }
  return [head, ...rows];
}
