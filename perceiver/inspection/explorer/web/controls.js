// The form controls: their options, their values, and the change of state by each of them.

const SELECTS =
  ("event compare method foil evidence layer head query quantity scale range colormap sort knockout silent ranking " +
    "statistic theme").split(" ");
const CHECKBOXES = ["boxes", "peak", "sinks"];

// Layer, head and query select the attention map of that layer, since no other map depends on them.
function controlChange(id, text) {
  if (id === "event") return eventFrom(text);
  const isAttention = ["layer", "head", "query", "quantity"].includes(id);
  const isAttribution = ["foil", "evidence"].includes(id) && state.attribution;
  const method = isAttention ? "attention" : isAttribution ? state.attribution : state.method;
  const changes = { method, [id]: PARSERS[id](text) };
  return text === "scores" && id === "quantity" ? { ...changes, ...oneQuery() } : changes;
}

// A head and a query in place of means, which have no scores: the first head, and the first query of the grid.
function oneQuery() {
  const { num_heads: numHeads, queries } = explanationAt(state, state.sample).layers[state.layer];
  const [, first] = [...byId("queries").children].map(({ dataset }) => integer(dataset.query));
  return {
    head: state.head === "mean" && numHeads > 1 ? 0 : state.head,
    query: state.query === "mean" ? (first ?? queries[0]) : state.query,
  };
}

function listenToControls() {
  for (const id of SELECTS) byId(id).addEventListener("change", () => setState(controlChange(id, byId(id).value)));
  for (const id of CHECKBOXES) byId(id).addEventListener("change", () => setState({ [id]: byId(id).checked }));
  byId("opacity").addEventListener("input", () => setState({ opacity: Number(byId("opacity").value) }));
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("help").addEventListener("click", (event) => {
    if (event.target === byId("help")) byId("help").close();
  });
}

// options: [[value, name]], or [[group, [[value, name]]]].
function setOptions(id, options) {
  renderOnChange(`options of ${id}`, options, () => {
    const nodeOf = ([value, name]) =>
      Array.isArray(name)
        ? element("optgroup", { label: value }, ...name.map(nodeOf))
        : element("option", { value }, name);
    byId(id).replaceChildren(...options.map(nodeOf));
  });
}

function renderControls(explanation) {
  const groups = page.runs.flatMap((run, index) => {
    const events = eventsWithMaps.filter((event) => event.run === index);
    return events.length ? [[runLabel(run, index), events.map((event) => [eventKey(event), eventAt(event).name])]] : [];
  });
  const sameName = (names) => names.map((name) => [name, name]);
  setOptions("event", groups);
  setOptions("compare", [[NO_COMPARISON, NO_COMPARISON], ...groups]);
  setOptions("scale", sameName(Object.keys(SCALES)));
  setOptions("colormap", sameName(COLORMAPS));
  setOptions("theme", sameName(THEMES));
  const named = ([group, names]) => [group, names.map((name) => [name, shortName(name)])];
  setOptions("statistic", groupedNames(statistics).map(named));
  if (explanation) setMapOptions(explanation);
  setOptions("quantity", Object.entries(QUANTITIES));
  for (const id of ["method", "layer", "head", "query", "quantity", "range"]) byId(id).disabled = !explanation;
  for (const id of ["layer", "head", "query", "quantity"]) byId(id).parentNode.hidden = explanation?.layers.length === 0;
  const texts = stateTexts(state);
  for (const id of [...SELECTS, "opacity"]) byId(id).value = texts[id];
  for (const id of CHECKBOXES) byId(id).checked = state[id];
  byId("sinks").disabled = !sinksShown().length;
  byId("opacity-value").textContent = percent(state.opacity);
  document.documentElement.dataset.theme = state.theme;
}

// The options that depend on the explanation: its methods, layers, heads, queries and modalities.
function setMapOptions({ layers, methods: all, answers, knockouts, note }) {
  const methods = answers.length ? all : [];
  const modalities = Object.keys(page.samples[state.sample].modalities);
  const layer = layers[state.layer] ?? { query_kind: "query", num_heads: 0, queries: [], num_queries: 0 };
  const { query_kind: kind, num_heads: numHeads, queries, num_queries: numQueries } = layer;
  const attention = layers.length ? [["attention", "attention weights of a layer"]] : [];
  setOptions("method", [...methods.map(({ name, label }) => [name, label]), ...attention]);
  byId("method-note").textContent = note;
  const attribution = methods.find(({ name }) => name === state.attribution);
  const foils = foilsOf(attribution, state.answer).map(({ name }) => [name, name]);
  setOptions("foil", [[NO_FOIL, "no other"], ...foils]);
  setOptions("evidence", Object.entries(EVIDENCE));
  setOptions("knockout", knockouts.map(({ kind }) => [kind, kind]));
  const { kind: silenced, parts = [] } = knockouts.find((one) => one.kind === state.knockout) ?? {};
  setOptions("silent", [["", "each, in order of its change"], ...parts.map((part) => [part, partName(silenced, part)])]);
  setOptions("ranking", Object.entries(RANKINGS));
  byId("ranking").parentNode.hidden = state.silent !== "";
  byId("foil").parentNode.hidden = !methods.some(({ contrast }) => contrast);
  byId("evidence").parentNode.hidden = !methods.some(({ against }) => against);
  byId("foil").disabled = !foils.length;
  byId("evidence").disabled = !attribution?.against;
  setOptions("layer", layers.map(({ name }, index) => [index, name]));
  const heads = Array.from({ length: numHeads }, (_, head) => [head, `head ${head}`]);
  setOptions("head", [["mean", `mean of ${numHeads}`], ...heads]);
  const mean = queries.length < numQueries ? `mean of ${queries.length} in page` : `mean of ${numQueries}`;
  setOptions("query", [["mean", mean], ...queries.map((query) => [query, `${kind} ${query}`])]);
  byId("query-label").textContent = kind;
  const isSeveral = modalities.length > 1;
  setOptions("range", Object.entries(RANGES).filter(([range]) => isSeveral || range !== "map"));
  const shares = isSeveral ? modalities.map((name) => [`share:${name}`, `share of ${name}`]) : [];
  setOptions("sort", [...Object.entries(SORTS), ...shares]);
}
