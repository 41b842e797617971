// The maps of all queries of the selected layer and head: latents, or the decoder's queries if those read the tokens.

const MILLISECONDS_PER_FRAME = 8;
let pendingFrame = null;

function renderQueries(explanation) {
  const layer = explanation?.layers[state.layer];
  byId("queries-section").hidden = !layer;
  if (!layer) return;
  const { run, event, sample, layer: index, head, sort, answer, quantity, scale, range, colormap, sinks } = state;
  const location = [run, event, sample, index];
  const order = [...location, head, sort, answer, sinks];
  renderOnChange("queries", location, () => createQueries(layer));
  renderOnChange("order", order, () => sortQueries(explanation, layer));
  renderOnChange("thumbnails", [...order, quantity, scale, range, colormap], () => paintThumbnails(explanation, layer));
  renderOnChange("query", [...location, state.query, state.method], () => {
    for (const option of byId("queries").children) {
      const isCurrent = option.dataset.query === String(state.query);
      // The map of an answer is that of no query; the current one remains the tab stop.
      option.setAttribute("aria-selected", isCurrent && state.method === "attention");
      option.tabIndex = isCurrent ? 0 : -1;
    }
  });
}

function createQueries(layer) {
  const { queries, num_queries: numQueries, query_kind: kind } = layer;
  const descriptions = layer.maps.cells.map(({ modality }) => page.samples[state.sample].modalities[modality]);
  const options = ["mean", ...queries].map((query) => {
    const canvases = descriptions.map(({ size, tokens }) =>
      element("canvas", { ".style": tokens ? "height:12px" : `aspect-ratio:${size[0]} / ${size[1]}` }),
    );
    const attributes = { role: "option", "aria-label": `mean over ${plural(kind)}`, "data-query": query };
    return element("div", attributes, ...canvases, element("small", {}, String(query)));
  });
  byId("queries").replaceChildren(...options);
  byId("queries").setAttribute("aria-label", `${plural(kind)}; select with the arrow keys`);
  byId("queries").dataset.wide = descriptions.some(({ size: [width, height] }) => width > WIDE * height);
  byId("queries-heading").textContent = capitalized(plural(kind));
  byId("queries-count").textContent =
    queries.length < numQueries
      ? `The ${queries.length} of ${counted(numQueries, kind)} with the largest share in the rollouts`
      : `All ${counted(numQueries, kind)}`;
}

// The value of each query by which the grid is sorted.
function sortValues(explanation, layer) {
  const stack = explanation.layerMaps(state.layer, state.head);
  const part = stack.layout.find(({ modality }) => state.sort === `share:${modality}`);
  if (part) return layer.queries.map((_, i) => massOf(stack.map(i), part) / massOf(stack.map(i)));
  return { rollout: layer.rollout[state.answer] ?? [], entropy: entropiesOf(layer), index: layer.queries }[state.sort];
}

const entropiesOf = (layer) => layer.entropy[state.head === "mean" ? layer.num_heads : state.head];

function sortQueries(explanation, layer) {
  const node = byId("queries");
  const options = new Map([...node.children].map((option) => [option.dataset.query, option]));
  const focused = document.activeElement;
  const values = sortValues(explanation, layer);
  const entropies = entropiesOf(layer);
  const shares = layer.rollout[state.answer] ?? [];
  const isAscending = ["entropy", "index"].includes(state.sort);
  const format = { entropy: short, index: () => "" }[state.sort] ?? percent;
  layer.queries.forEach((query, i) => {
    const option = options.get(String(query));
    const text = i in values ? format(values[i]) : "";
    const share = i in shares ? `, ${percent(shares[i])} of the answer's rollout` : "";
    option.lastChild.textContent = text ? `${query} · ${text}` : query;
    option.title = `${layer.query_kind} ${query}, entropy ${short(entropies[i])} nats${share}`;
    option.setAttribute("aria-label", option.title);
  });
  const order = [...layer.queries.keys()].sort((i, j) => (isAscending ? 1 : -1) * (values[i] - values[j]) || i - j);
  const ordered = order.map((i) => options.get(String(layer.queries[i])));
  node.replaceChildren(options.get("mean"), ...ordered);
  if (node.contains(focused)) focused.focus();
  const answer = explanation.answers[state.answer];
  const total = layer.rollout[state.answer]?.reduce((sum, share) => sum + share, 0);
  byId("queries-rollout").textContent =
    answer && Number.isFinite(total)
      ? `${percent(total)} of the rollout of ${quoted(answer.name)} passes through them in ${layer.name}.`
      : "";
}

const showsScores = (layer) => state.quantity === "scores" && !noScores(layer, state.head, layer.queries[0]);

// {map, stack, marks, colors: of each modality} of a query; a mean has no scores, so that its weights are shown.
function gridMap(explanation, layer, query) {
  const { layer: index, head, colormap, scale, range } = state;
  const isSigned = showsScores(layer) && query !== "mean";
  const weights = explanation.layerMaps(index, head);
  const ofQuery = () => (query === "mean" ? weights.mean : weights.map(layer.queries.indexOf(query)));
  const shown = isSigned ? scoreMap(explanation, index, head, query) : { stack: weights, map: ofQuery(), marks: weights.marks };
  const colors = weights.layout.map((_, part) =>
    colorScale({ colormap, scale, top: rangeMaximum(shown, part, range), isSigned }),
  );
  return { ...shown, colors };
}

// In the order of the grid, for at most a frame at a time.
function paintThumbnails(explanation, layer) {
  cancelAnimationFrame(pendingFrame);
  byId("queries-quantity").textContent = showsScores(layer)
    ? "Scores before the softmax: orange above their mean, blue below it; of the mean, weights."
    : "";
  const waiting = [...byId("queries").children];
  const paint = () => {
    const end = performance.now() + MILLISECONDS_PER_FRAME;
    while (waiting.length && performance.now() < end) {
      const option = waiting.shift();
      const { map, stack, marks, colors } = gridMap(explanation, layer, PARSERS.query(option.dataset.query));
      stack.layout.forEach((part, index) => paintThumbnail(option.children[index], map, part, colors[index], marks));
    }
    byId("queries").setAttribute("aria-busy", waiting.length > 0);
    pendingFrame = waiting.length ? requestAnimationFrame(paint) : null;
  };
  paint();
}

// Selects the query `step` places after the current one in the order of the grid.
function moveQuery(step) {
  const options = [...byId("queries").children];
  const current = options.findIndex(({ dataset }) => dataset.query === String(state.query));
  const target = options[Math.max(0, Math.min(options.length - 1, current + step))];
  if (target) selectQuery(target, byId("queries").contains(document.activeElement));
}

function selectQuery(option, takesFocus) {
  setState(controlChange("query", option.dataset.query));
  announce(option.getAttribute("aria-label"));
  if (takesFocus) option.focus({ preventScroll: true });
  option.scrollIntoView({ block: "nearest" });
}

// The queries in the order of the grid, without their mean where that has another unit.
function shownQueries(layer) {
  const queries = [...byId("queries").children].map(({ dataset }) => PARSERS.query(dataset.query));
  return showsScores(layer) ? queries.filter((query) => query !== "mean") : queries;
}

// The selected layer, what its grid shows, and the names of its head and unit.
function shownGrid() {
  const explanation = explanationAt(state, state.sample);
  const layer = explanation.layers[state.layer];
  const unit = showsScores(layer) ? "score less the mean (nats)" : layer.places ? "share" : "weight";
  const head = state.head === "mean" ? `mean over ${counted(layer.num_heads, "head")}` : `head ${state.head}`;
  return { explanation, layer, queries: shownQueries(layer), unit, head };
}

// A row for each query: its entropy, its share in the rollout of the selected answer, and the values of its cells.
function queryRows() {
  const { explanation, layer, queries, unit } = shownGrid();
  const entropies = entropiesOf(layer);
  const shares = layer.rollout[state.answer];
  const cells = explanation.layerMaps(state.layer, state.head).layout.flatMap(({ modality, rows, columns }) =>
    Array.from({ length: rows * columns }, (_, i) => `${unit}, ${modality}, row ${Math.floor(i / columns)}, column ${i % columns}`),
  );
  const rollout = shares ? [`share of the rollout of ${quoted(explanation.answers[state.answer].name)}`] : [];
  const rows = queries.map((query) => {
    const { map, marks } = gridMap(explanation, layer, query);
    const at = layer.queries.indexOf(query);
    const values = [entropies[at] ?? null, ...(shares ? [shares[at] ?? null] : [])];
    return [query, ...values, ...Array.from(map, (value, cell) => (marks?.[cell] ? null : value))];
  });
  return [[layer.query_kind, "entropy (nats)", ...rollout, ...cells], ...rows];
}

const queriesView = {
  label: "the grid of maps",
  parts: () => {
    const { layer, unit } = shownGrid();
    const quantity = unit.startsWith("score") && "scores";
    const sinks = state.sinks && sinksShown().length && "without-sinks";
    const names = [page.samples[state.sample].id, plural(layer.query_kind), layer.name, `head-${state.head}`];
    return [...names, quantity, sinks, `step-${eventAt(state).step}`].filter(Boolean);
  },
  svg: () => gridDrawing(shownGrid()),
  csv: queryRows,
};

function listenToQueries() {
  byId("queries-section").append(saveButtons(byId("queries-section"), queriesView));
  const node = byId("queries");
  node.addEventListener("click", (event) => {
    const option = event.target.closest("[data-query]");
    if (option) selectQuery(option, true);
  });
  node.addEventListener("keydown", (event) => {
    const options = [...node.children];
    const columns = options.filter((option) => option.offsetTop === options[0].offsetTop).length;
    const last = options.length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -last, End: last };
    if (!(event.key in steps)) return;
    moveQuery(steps[event.key]);
    event.preventDefault();
  });
}
