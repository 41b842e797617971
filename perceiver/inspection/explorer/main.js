// From a choice to the picture: everything is drawn again that depends on what has changed.

const drawn = new Map();
const preparedSamples = new Set();
let requests = 0;

// Draws only if what it depends on is not what it was.
function when(name, dependencies, draw) {
  const key = JSON.stringify(dependencies);
  if (drawn.get(name) === key) return;
  drawn.set(name, key);
  draw();
}

function forget(name) {
  drawn.delete(name);
}

function choose(changes) {
  Object.assign(state, changes);
  update();
}

function update() {
  preview = null;
  const look = lookAt(eventOf(state).explanation, state.sample);
  settle(look);
  const other = state.compare && lookAt(eventOf(state.compare).explanation, state.sample);
  const name = look?.content.layers[state.layer]?.name;
  const otherLayer = other ? other.content.layers.findIndex((layer) => layer.name === name) : -1;
  renderControls(look);
  renderSamples();
  const request = ++requests;
  const isReady =
    preparedSamples.has(state.sample) && (!look || look.isReady(state.layer)) && (!other || other.isReady(otherLayer));
  figure.isWaiting = !isReady;
  if (isReady) {
    render(look);
    return;
  }
  const { sample, layer } = state;
  byId("status").textContent = "Unpacking…";
  Promise.all([preparePictures(sample), look?.prepare(layer), other?.prepare(otherLayer)])
    .then(() => {
      preparedSamples.add(sample);
      // Whoever has chosen something else in the meantime is not shown this.
      if (request === requests) update();
    })
    .catch((error) => {
      byId("status").textContent = `These maps cannot be read: ${error.message}`;
      throw error;
    });
}

function render(look) {
  byId("status").textContent = "";
  renderAnswers(look);
  renderFigure();
  renderLatents(look);
  renderStatistics();
  renderBelief();
  writeHash();
  const { sample, run, event, method, layer, head, latent, answer } = state;
  when("announced", [sample, run, event, method, layer, head, latent, answer], () => {
    const seen = byId("shown").textContent || byId("panes").textContent;
    announce(`${page.samples[sample]?.id ?? "no sample"}, ${nameOfEvent(state)}: ${seen}`);
  });
  document.documentElement.dataset.drawn = requests;
}

// How long it takes from choosing a latent to its map, in milliseconds: of `count` latents, one after the other.
function redrawMilliseconds(count = 100) {
  const look = lookAt(eventOf(state).explanation, state.sample);
  const layer = look?.content.layers[state.layer];
  if (!layer || !look.isReady(state.layer)) return null;
  const before = { method: state.method, latent: state.latent };
  const times = Array.from({ length: count }, (_, i) => {
    const start = performance.now();
    choose({ method: "map", latent: layer.queries[i % layer.queries.length] });
    // Reading a pixel waits for everything that was painted.
    document.querySelector("#panes canvas")?.getContext("2d").getImageData(0, 0, 1, 1);
    return performance.now() - start;
  }).sort((a, b) => a - b);
  choose(before);
  const cells = layer.maps.cells.map(({ shape }) => shape);
  return { median: times[count >> 1], worst: times.at(-1), queries: layer.queries.length, cells };
}

function start() {
  document.title = `${page.title} – attention explorer`;
  byId("title").textContent = page.title;
  const runs = page.runs.map(({ name }, run) => (page.runs.length > 1 ? `run ${run + 1}: ${name}` : name));
  byId("runs").replaceChildren(...runs.map((name) => element("li", {}, name)));
  byId("runs").hidden = runs.length === 1 && runs[0] === page.title;
  for (const node of byId("figure").querySelectorAll(".controls")) node.hidden = !looked.length;
  readHash();
  listenToControls();
  listenToLatents();
  listenToKeys();
  window.addEventListener("hashchange", () => {
    readHash();
    update();
  });
  figure.width = byId("panes").clientWidth;
  // Asked for at each redraw, the width would have everything laid out anew.
  new ResizeObserver(() => {
    if (figure.width === byId("panes").clientWidth) return;
    figure.width = byId("panes").clientWidth;
    renderFigure();
  }).observe(byId("panes"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", renderFigure);
  window.explorer = { redrawMilliseconds };
  update();
}

start();
