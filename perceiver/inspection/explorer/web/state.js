// The state: everything the user has selected, its validation, and the URL fragment that stores it.

const RANGES = {
  own: "per map",
  clipped: "per map, up to 99th percentile",
  map: "all modalities of the map",
  shared: "all maps of this kind",
};
const SORTS = { rollout: "rollout share", entropy: "entropy, lowest first", index: "index" };
const EVIDENCE = { for: "for it", both: "for and against it" };
const QUANTITIES = { weights: "weights", scores: "scores before the softmax" };
const RANKINGS = { answer: "this answer", samples: "all samples" };
const THEMES = ["auto", "light", "dark"];
const NO_FOIL = "";
const NO_COMPARISON = "none";
const ALL_FRAMES = "all";
const HASH_DELAY = 200; // milliseconds

const eventKey = ({ run, event }) => `${run}.${event}`;
const eventFrom = (text) => eventsWithMaps.find((event) => eventKey(event) === text);
const integer = (text) => (/^\d{1,6}$/.test(text) ? Number(text) : undefined);
const integerOrMean = (text) => (text === "mean" ? text : integer(text));
const flag = (text) => ({ true: true, false: false })[text];
const string = (text) => text;

// State of a text in the URL or of a control; undefined if it is not valid.
const PARSERS = {
  sample: (text) => (page.samples[integer(text)] ? integer(text) : undefined),
  compare: (text) => (text === NO_COMPARISON ? null : eventFrom(text)),
  method: string,
  layer: integer,
  head: integerOrMean,
  query: integerOrMean,
  quantity: string,
  answer: integer,
  foil: string,
  evidence: string,
  scale: string,
  range: string,
  colormap: string,
  opacity: (text) => (text !== "" && text >= 0 && text <= 1 ? Number(text) : undefined),
  boxes: flag,
  peak: flag,
  sinks: flag,
  frame: (text) => (text === ALL_FRAMES ? text : integer(text)),
  sort: string,
  knockout: string,
  silent: string,
  ranking: string,
  statistic: string,
  theme: string,
};

const state = defaults();
let hashTimer = null;

function defaults() {
  const [initial, compare] = (page.initial_events ?? []).map(([run, event]) => eventFrom(eventKey({ run, event })));
  const first = initial ?? eventsWithMaps.filter(({ run }) => run === 0).at(-1) ?? eventsWithMaps.at(-1);
  const preferred = ["pointing_game", "entropy"].map((end) => statistics.find((name) => name.endsWith(end)));
  return {
    sample: 0,
    run: first?.run ?? 0,
    event: first?.event ?? page.runs[0].events.length - 1,
    compare: compare ?? null,
    method: "", // "attention", or the name of a method of attribution
    attribution: "", // the method to return to from "attention"
    layer: 0,
    head: "mean",
    query: "mean",
    quantity: "weights", // of the attention of a layer
    answer: 0,
    foil: NO_FOIL, // name of the answer that the selected one is contrasted with
    evidence: "for",
    scale: "linear",
    range: "own",
    colormap: "viridis",
    opacity: 0.6,
    sort: "rollout",
    knockout: "latents",
    silent: "", // name of the part whose change of each answer is shown; empty: parts by their change of one answer
    ranking: "answer",
    boxes: true,
    peak: true,
    sinks: false, // whether they are hidden
    frame: ALL_FRAMES,
    statistic: preferred.find(Boolean) ?? statistics[0] ?? "",
    theme: "auto",
  };
}

// Replaces what does not exist in the explanation by the default.
function validateState(explanation) {
  const usual = defaults();
  const allow = (key, choices) => {
    if (!choices.includes(state[key])) state[key] = usual[key];
  };
  allow("scale", Object.keys(SCALES));
  allow("range", Object.keys(RANGES));
  allow("colormap", COLORMAPS);
  allow("theme", THEMES);
  allow("statistic", statistics);
  allow("evidence", Object.keys(EVIDENCE));
  allow("ranking", Object.keys(RANKINGS));
  allow("quantity", Object.keys(QUANTITIES));
  if (!explanation) return;
  const { layers, answers, knockouts } = explanation;
  const kinds = knockouts.map(({ kind }) => kind);
  if (kinds.length && !kinds.includes(state.knockout)) state.knockout = kinds[0];
  if (!knockouts.find(({ kind }) => kind === state.knockout)?.parts.includes(state.silent)) state.silent = "";
  const methods = answers.length ? explanation.methods : [];
  const names = methods.map(({ name }) => name);
  if (!names.includes(state.attribution)) {
    state.attribution = (methods.find(({ shared }) => !shared) ?? methods[0])?.name ?? "";
  }
  if (names.includes(state.method)) state.attribution = state.method;
  else if (state.method !== "attention" || !layers.length) state.method = state.attribution || "attention";
  if (!(state.answer < answers.length)) state.answer = 0;
  const method = methods.find(({ name }) => name === state.attribution);
  if (!foilsOf(method, state.answer).some(({ name }) => name === state.foil)) state.foil = NO_FOIL;
  if (!method?.against) state.evidence = "for";
  if (!(state.layer < layers.length)) state.layer = 0;
  if (!layers.length) return;
  const { num_heads: numHeads, queries, maps } = layers[state.layer];
  allow("head", ["mean", ...Array(numHeads).keys()]);
  allow("query", ["mean", ...queries]);
  const shares = maps.cells.length > 1 ? maps.cells.map(({ modality }) => `share:${modality}`) : [];
  allow("sort", [...Object.keys(SORTS), ...shares]);
  if (state.range === "map" && maps.cells.length < 2) state.range = "own";
}

const stateTexts = (values) => ({
  ...values,
  event: eventKey(values),
  compare: values.compare ? eventKey(values.compare) : NO_COMPARISON,
});

function writeHash() {
  clearTimeout(hashTimer);
  hashTimer = setTimeout(() => {
    const [texts, usual] = [stateTexts(state), stateTexts(defaults())];
    const parts = new URLSearchParams({ sample: texts.sample, event: texts.event, method: texts.method });
    for (const key of Object.keys(PARSERS)) if (texts[key] !== usual[key]) parts.set(key, texts[key]);
    try {
      history.replaceState(null, "", `#${parts}`);
    } catch {
      // A sandboxed frame may not change its URL.
    }
  }, HASH_DELAY);
}

// Ignores whatever is not valid.
function readHash(hash) {
  const parts = new URLSearchParams(hash.slice(1));
  Object.assign(state, defaults(), eventFrom(parts.get("event")));
  for (const [key, parse] of Object.entries(PARSERS)) {
    const value = parts.has(key) ? parse(parts.get(key)) : undefined;
    if (value !== undefined) state[key] = value;
  }
}
