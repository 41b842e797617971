// The native controls: what they offer, what they are set to, and what a change of them means.

const RANGE_NAMES = {
  own: "each map its own",
  clipped: "own, to 99th percentile",
  map: "this map, all modalities",
  shared: "shared by all",
};
const SORT_NAMES = { reads: "read by the answer", entropy: "sharpest first", number: "number" };

// What a control sets: a latent, head or layer shows the layer's map, since nothing else depends on it.
const CHANGES = {
  event: (value) => placeOf(value),
  compare: (value) => ({ compare: placeOf(value) ?? null }),
  method: (value) => ({ method: value }),
  layer: (value) => ({ layer: Number(value), method: "map" }),
  head: (value) => ({ head: numberOr("mean", value), method: "map" }),
  latent: (value) => ({ latent: numberOr("mean", value), method: "map" }),
  scale: (value) => ({ scale: value }),
  range: (value) => ({ range: value }),
  colours: (value) => ({ colours: value }),
  alpha: (value) => ({ alpha: Number(value) }),
  sort: (value) => ({ sort: value }),
  statistic: (value) => ({ statistic: value }),
  theme: (value) => ({ theme: value }),
};

function numberOr(word, value) {
  return value === word ? word : Number(value);
}

function listenToControls() {
  for (const [id, change] of Object.entries(CHANGES)) {
    const control = byId(id);
    control.addEventListener(control.type === "range" ? "input" : "change", () => choose(change(control.value)));
  }
  for (const id of ["boxes", "mark"]) {
    byId(id).addEventListener("change", () => choose({ [id]: byId(id).checked }));
  }
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("help").addEventListener("click", (event) => {
    if (event.target === byId("help")) byId("help").close();
  });
}

// options: [[value, name]], or [[group, [[value, name]]]] where `isGrouped`.
function fill(id, options, isGrouped = false) {
  when(`options of ${id}`, [options], () => {
    const made = (pairs) => pairs.map(([value, name]) => element("option", { value }, name));
    const parts = isGrouped
      ? options.map(([label, pairs]) => element("optgroup", { label }, ...made(pairs)))
      : made(options);
    byId(id).replaceChildren(...parts);
  });
}

function renderControls(look) {
  const groups = page.runs
    .map(({ name }, run) => [
      page.runs.length > 1 ? `run ${run + 1}: ${name}` : name,
      looked
        .filter((other) => other.run === run)
        .map((other) => [place(other), page.runs[run].events[other.event].name]),
    ])
    .filter(([, pairs]) => pairs.length);
  fill("event", groups, true);
  fill("compare", [["nothing", [["", "nothing"]]], ...groups], true);
  fill(
    "scale",
    SCALES.map((name) => [name, name]),
  );
  fill(
    "colours",
    COLOURS.map((name) => [name, name]),
  );
  fill(
    "statistic",
    grouped(statistics).map(([group, names]) => [group, names.map((name) => [name, plain(name)])]),
    true,
  );
  if (look) fillFrom(look.content);
  for (const id of ["method", "layer", "head", "latent", "range"]) byId(id).disabled = !look;
  const values = { ...state, event: place(state), compare: state.compare ? place(state.compare) : "" };
  for (const id of Object.keys(CHANGES)) byId(id).value = values[id];
  for (const id of ["boxes", "mark"]) byId(id).checked = state[id];
  byId("alpha-value").textContent = percent(state.alpha);
  document.documentElement.dataset.theme = state.theme;
}

// What depends on the look: its layers, heads, latents and methods.
function fillFrom({ layers, methods }) {
  const modalities = Object.keys(page.samples[state.sample].modalities);
  const { num_heads: heads = 0, queries: latents = [], num_queries: all = 0 } = layers[state.layer] ?? {};
  fill("method", [
    ...methods.map(({ name, label }) => [name, label]),
    ...(layers.length ? [["map", "attention map of the layer"]] : []),
  ]);
  fill(
    "layer",
    layers.map(({ name }, layer) => [layer, name]),
  );
  fill("head", [["mean", `mean of ${heads}`], ...Array.from({ length: heads }, (_, head) => [head, `head ${head}`])]);
  const kept = latents.length < all ? `mean of ${latents.length} kept` : `mean of ${all}`;
  fill("latent", [["mean", kept], ...latents.map((latent) => [latent, `latent ${latent}`])]);
  const several = modalities.length > 1;
  fill(
    "range",
    RANGES.filter((range) => several || range !== "map").map((range) => [range, RANGE_NAMES[range]]),
  );
  const shares = several ? modalities.map((name) => [`share:${name}`, `share of ${name}`]) : [];
  fill("sort", [...Object.entries(SORT_NAMES), ...shares]);
}
