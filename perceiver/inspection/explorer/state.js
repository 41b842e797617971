// What is chosen, and the hash of the address that keeps it.

const SCALES = ["linear", "sqrt", "log"];
const RANGES = ["own", "clipped", "map", "shared"];
const THEMES = ["auto", "light", "dark"];
const HASH_DELAY = 200;
const NOTHING = "nothing"; // is compared, although it usually would be

const looked = page.runs.flatMap(({ events }, run) =>
  events.flatMap(({ explanation }, event) => (explanation === null || explanation === undefined ? [] : [{ run, event }])),
);
const chances = new Map(
  page.runs
    .flatMap(({ events }) => events.flatMap(({ values }) => Object.keys(values)))
    .filter(isChance)
    .map((name) => [name.replace("_chance", ""), name]),
);
const statistics = statisticNames();
const place = ({ run, event }) => `${run}.${event}`;
const placeOf = (text) => looked.find((other) => place(other) === text);
const state = defaults();
let hashTimer = null;

function statisticNames() {
  const names = new Set(page.runs.flatMap(({ events }) => events.flatMap(({ values }) => Object.keys(values))));
  return [...names].filter((name) => !isChance(name)).sort();
}

// What a score would be by chance stands beside it, as `pointing_game_chance` or, of one kind of words,
// `pointing_game_chance_colour`.
function isChance(name) {
  return /_chance(_|$)/.test(name);
}

function chanceOf(name) {
  return chances.get(name);
}

function defaults() {
  const [opened, beside] = (page.initial_events ?? []).map(([run, event]) => placeOf(place({ run, event })));
  const first = opened ?? looked.filter(({ run }) => run === 0).at(-1) ?? looked.at(-1);
  const favourite = ["pointing_game", "entropy"].map((end) => statistics.find((name) => name.endsWith(end)));
  return {
    sample: 0,
    run: first?.run ?? 0,
    event: first?.event ?? page.runs[0].events.length - 1,
    compare: beside ?? null,
    method: "",
    answerMethod: "",
    layer: 0,
    head: "mean",
    latent: "mean",
    answer: 0,
    scale: "linear",
    range: "own",
    colours: "viridis",
    alpha: 0.6,
    sort: "reads",
    boxes: true,
    mark: true,
    statistic: favourite.find(Boolean) ?? statistics[0] ?? "",
    theme: "auto",
  };
}

// Whatever does not exist in what is looked at becomes the nearest thing that does.
function settle(look) {
  const usual = defaults();
  const among = (key, choices) => {
    if (!choices.includes(state[key])) state[key] = usual[key];
  };
  among("scale", SCALES);
  among("range", RANGES);
  among("colours", COLOURS);
  among("theme", THEMES);
  among("statistic", statistics);
  if (!look) return;
  const { layers, methods, answers } = look.content;
  const names = methods.map(({ name }) => name);
  // A map that is the same for all answers tells less about one.
  const telling = methods.find(({ shared }) => !shared) ?? methods[0];
  if (!names.includes(state.answerMethod)) state.answerMethod = telling?.name ?? "";
  if (names.includes(state.method)) state.answerMethod = state.method;
  else if (state.method !== "map" || !layers.length) state.method = state.answerMethod || "map";
  if (!(state.answer < answers.length)) state.answer = 0;
  if (!(state.layer < layers.length)) state.layer = 0;
  const layer = layers[state.layer];
  if (!layer) return;
  if (state.head !== "mean" && !(state.head < layer.num_heads)) state.head = "mean";
  if (state.latent !== "mean" && !layer.queries.includes(state.latent)) state.latent = "mean";
  const modalities = layer.maps.cells.map(({ modality }) => `share:${modality}`);
  among("sort", ["reads", "entropy", "number", ...(modalities.length > 1 ? modalities : [])]);
  if (state.range === "map" && modalities.length < 2) state.range = "own";
}

const wholeNumber = (text) => (/^\d{1,6}$/.test(text) ? Number(text) : null);

function writeHash() {
  clearTimeout(hashTimer);
  hashTimer = setTimeout(() => {
    const usual = defaults();
    const parts = new URLSearchParams({ sample: state.sample, event: place(state), method: state.method });
    for (const key of Object.keys(usual)) {
      if (["sample", "run", "event", "method", "answerMethod", "compare"].includes(key)) continue;
      if (state[key] !== usual[key]) parts.set(key, state[key]);
    }
    if (state.compare || usual.compare) parts.set("compare", state.compare ? place(state.compare) : NOTHING);
    try {
      history.replaceState(null, "", `#${parts}`);
    } catch {
      // A sandboxed frame may have no address of its own.
    }
  }, HASH_DELAY);
}

// Into the state, as far as it makes sense; the rest of the hash is as good as absent.
function readHash() {
  let parts;
  try {
    parts = new URLSearchParams(location.hash.slice(1));
  } catch {
    return;
  }
  Object.assign(state, defaults());
  const read = (key, accept) => {
    const value = parts.has(key) ? accept(parts.get(key)) : null;
    if (value !== null && value !== undefined) state[key] = value;
  };
  const text = (value) => value;
  const flag = (value) => ({ true: true, false: false })[value];
  const numberOrMean = (value) => (value === "mean" ? value : wholeNumber(value));
  read("sample", (value) => (page.samples[wholeNumber(value)] ? wholeNumber(value) : null));
  Object.assign(state, placeOf(parts.get("event")));
  if (parts.get("compare") === NOTHING) state.compare = null;
  else read("compare", placeOf);
  for (const key of ["method", "scale", "range", "colours", "sort", "statistic", "theme"]) read(key, text);
  for (const key of ["layer", "answer"]) read(key, wholeNumber);
  for (const key of ["head", "latent"]) read(key, numberOrMean);
  for (const key of ["boxes", "mark"]) read(key, flag);
  read("alpha", (value) => (value !== "" && value >= 0 && value <= 1 ? Number(value) : null));
}
