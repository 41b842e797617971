// The maps of all queries of the selected layer and head: latents, or the decoder's queries if those read the tokens.

const MILLISECONDS_PER_FRAME = 8;
let pendingFrame = null;

function renderQueries(explanation) {
  const layer = explanation?.layers[state.layer];
  byId("queries-section").hidden = !layer;
  if (!layer) return;
  const { run, event, sample, layer: index, head, sort, answer, scale, range, colormap, sinks } = state;
  const location = [run, event, sample, index];
  const order = [...location, head, sort, answer, sinks];
  renderOnChange("queries", location, () => createQueries(layer));
  renderOnChange("order", order, () => sortQueries(explanation, layer));
  renderOnChange("thumbnails", [...order, scale, range, colormap], () => paintThumbnails(explanation, layer));
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
  byId("queries").dataset.wide = descriptions.some(({ size: [width, height] }) => width > 1.8 * height);
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

// In the order of the grid, for at most a frame at a time.
function paintThumbnails(explanation, { queries }) {
  cancelAnimationFrame(pendingFrame);
  const { colormap, scale, range } = state;
  const stack = explanation.layerMaps(state.layer, state.head);
  const waiting = [...byId("queries").children];
  const paint = () => {
    const end = performance.now() + MILLISECONDS_PER_FRAME;
    while (waiting.length && performance.now() < end) {
      const option = waiting.shift();
      const { query } = option.dataset;
      const map = query === "mean" ? stack.mean : stack.map(queries.indexOf(Number(query)));
      stack.layout.forEach((part, index) => {
        const colors = colorScale({ colormap, scale, top: rangeMaximum({ map, stack }, index, range) });
        paintThumbnail(option.children[index], map, part, colors, stack.marks);
      });
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

function listenToQueries() {
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
