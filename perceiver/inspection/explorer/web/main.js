// From a change of state to the page: maps are unpacked, then all parts are rendered whose dependencies changed.

const decodedSamples = new Set();
let numUpdates = 0;

function setState(changes) {
  Object.assign(state, changes);
  update();
}

function update() {
  const explanation = explanationAt(state, state.sample);
  validateState(explanation);
  const { sample, layer, compare } = state;
  const other = compare && explanationAt(compare, sample);
  const name = explanation?.layers[layer]?.name;
  for (const one of [explanation, other]) one?.show(state.sinks ? sinksShown() : []);
  const otherLayer = other?.layers.findIndex((candidate) => candidate.name === name);
  renderControls(explanation);
  renderSamples();
  const number = ++numUpdates;
  const isReady =
    decodedSamples.has(sample) && (explanation?.isReady(layer) ?? true) && (other?.isReady(otherLayer) ?? true);
  figure.isLoading = !isReady;
  if (isReady) {
    render(explanation);
    return;
  }
  byId("status").textContent = "Loading…";
  Promise.all([decodeImages(sample), explanation?.prepare(layer), other?.prepare(otherLayer)])
    .then(() => {
      decodedSamples.add(sample);
      if (number === numUpdates) update(); // else something else has been selected
    })
    .catch((error) => {
      byId("status").textContent = `The maps cannot be read: ${error.message}`;
      throw error;
    });
}

function render(explanation) {
  byId("status").textContent = "";
  renderAnswers(explanation);
  renderFigure();
  renderMatrices(explanation);
  renderQueries(explanation);
  renderKnockouts(explanation);
  renderSinks();
  renderStatistics();
  renderFaithfulness();
  if (page.live) renderLive();
  writeHash();
  const { sample, run, event, method, layer, head, query, answer, foil, evidence } = state;
  renderOnChange("announcement", [sample, run, event, method, layer, head, query, answer, foil, evidence], () => {
    const content = byId("map-title").textContent || byId("panels").textContent;
    announce(`${page.samples[sample]?.id ?? "no sample"}, ${eventName(state)}: ${content}`);
  });
  document.documentElement.dataset.rendered = numUpdates;
}

// Benchmark: milliseconds from selecting a query to its map, for `count` queries.
function redrawMilliseconds(count = 100) {
  const layer = explanationAt(state, state.sample)?.layers[state.layer];
  if (!layer || figure.isLoading) return null;
  const { method, query } = state;
  const times = Array.from({ length: count }, (_, i) => {
    const start = performance.now();
    setState({ method: "attention", query: layer.queries[i % layer.queries.length] });
    // Reading a pixel waits until everything is painted.
    document.querySelector("#panels canvas")?.getContext("2d").getImageData(0, 0, 1, 1);
    return performance.now() - start;
  }).sort((a, b) => a - b);
  setState({ method, query });
  const cells = layer.maps.cells.map(({ shape }) => shape);
  return { median: times[count >> 1], worst: times.at(-1), queries: layer.queries.length, cells };
}

function start() {
  document.title = `${page.title} – attention explorer`;
  byId("title").textContent = page.title;
  byId("runs").replaceChildren(...page.runs.map((run, index) => element("li", {}, runLabel(run, index))));
  byId("runs").hidden = page.runs.length === 1 && page.runs[0].name === page.title;
  for (const node of byId("figure").querySelectorAll(".controls")) node.hidden = !eventsWithMaps.length;
  byId("shares").append(saveButtons(byId("shares"), sharesView));
  byId("knockout-section").append(saveButtons(byId("knockout-section"), knockoutView));
  listenToControls();
  listenToQueries();
  listenToShortcuts();
  if (page.live) listenToLive();
  const load = (hash) => {
    readHash(hash);
    update();
  };
  // By now, the fragment may have been replaced by that of the earlier state.
  window.addEventListener("hashchange", ({ newURL }) => load(new URL(newURL).hash));
  // The width is stored, since measuring it at each redraw would force a layout.
  new ResizeObserver(() => {
    if (figure.width === byId("panels").clientWidth) return;
    figure.width = byId("panels").clientWidth;
    renderFigure();
  }).observe(byId("panels"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => renderFigure());
  window.explorer = { redrawMilliseconds };
  figure.width = byId("panels").clientWidth;
  load(location.hash);
}

start();
