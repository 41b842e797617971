// Faithfulness by the deletion test, and localization scores compared with chance.

const CURVE_NAMES = { random: "random tokens", mean_map: "mean attention" };
const CURVE_STYLES = { rollout: "run0", relevance: "run1", mean_map: "run2", random: "random" };
const LOCALIZATION_SCORES = { pointing_game: "pointing game", energy_in_box: "energy in boxes" };
const LOCALIZED_MAPS = { relevance: "relevance/", rollout: "" };

// The result of the deletion test for the map in the figure, as its contents.
function verdictOf({ explanation, selected: { method, layer, query, head } }) {
  const link = element("a", { href: "#faithfulness" }, "Details");
  link.addEventListener("click", (click) => {
    click.preventDefault(); // the fragment of the URL stores the state
    byId("faithfulness").scrollIntoView();
  });
  if (method === "attention" && (query !== "mean" || head !== "mean")) {
    const kind = explanation.layers[layer].query_kind;
    return [`The deletion test does not apply to the weights of a single ${kind} or head. `, link];
  }
  const area = eventAt(state).deletion?.areas[method === "attention" ? "mean_map" : method];
  return area ? [...verdictNodes(area), " ", link] : ["The faithfulness of this map was not measured. ", link];
}

function verdictNodes({ mark, sentence }) {
  return [element("span", { class: "badge", "aria-hidden": "true" }, mark), ` ${sentence}`];
}

function renderFaithfulness() {
  renderOnChange("faithfulness", [state.run, state.event], () => {
    const { deletion, values } = eventAt(state);
    const result = deletion?.num_samples ? deletionResult(deletion) : [deletion ? noTestableAnswer() : notMeasured()];
    const scores = [localizationTable(values), wordOverlap(values)].filter(Boolean);
    const parts = scores.length ? [...result, element("div", { id: "scores" }, ...scores)] : result;
    byId("faithfulness-body").replaceChildren(...parts);
  });
}

function deletionResult({ fractions, curves, areas }) {
  const series = Object.entries(curves).map(([name, curve]) => ({
    name: CURVE_NAMES[name] ?? name,
    points: fractions.map((fraction, i) => [fraction, curve[i]]).filter(([, value]) => value !== null),
    style: CURVE_STYLES[name] ?? "run3",
  }));
  const chart = lineChart({
    series,
    xLabel: "tokens removed, those with the largest values first",
    yLabel: "probability, relative",
    description: "Probability of the answers, relative to that of the full input, as tokens are removed",
    isPercentX: true,
  });
  const rows = Object.values(areas).map(({ title, mean, error, mark, brief }) => {
    const area = Number.isFinite(error) ? `${signed(mean)} ± ${short(error, 2)}` : signed(mean);
    return tableRow(title, [area, `${mark} ${brief}`]);
  });
  const table = element(
    "table",
    { id: "areas" },
    element("caption", {}, "Area between the random curve and that of the map; positive if the map is better than random"),
    tableHead(["map", "area ± standard error", "verdict"]),
    element("tbody", {}, ...rows),
  );
  const verdicts = Object.values(areas).map((area) => element("li", {}, ...verdictNodes(area)));
  return [
    element("ul", { id: "verdicts", class: "sentences" }, ...verdicts),
    element("div", { class: "beside" }, element("div", { id: "deletion" }, chart), table),
  ];
}

function noTestableAnswer() {
  const text = `No answer could be tested at ${eventName(state)}: removing all tokens hardly lowered any probability.`;
  return element("p", { id: "not-testable" }, text);
}

function notMeasured() {
  const names = page.runs[state.run].events.filter(({ deletion }) => deletion).map(({ name }) => name);
  const others = names.length ? ` (it was at ${names.join(", ")})` : "";
  return element(
    "p",
    { id: "not-measured" },
    `The faithfulness of the maps was not measured at ${eventName(state)}${others}. To measure it for a run: `,
    element("code", {}, "uv run experiments/inspect_attention.py run=<run directory>"),
  );
}

// A row for all answers with boxes, for each kind of word and each modality; null if there are no scores.
function localizationTable(values) {
  const modalities = new Set(page.samples.flatMap((sample) => Object.keys(sample.modalities)));
  const titleOf = (kind) => (modalities.has(kind) ? `boxes in ${kind}` : `${kind.replaceAll("_", " ")} words`);
  const pattern = /^pointing_game(?:_(.+))?$/;
  const matches = statistics.map((name) => lastPart(name).match(pattern)).filter(Boolean);
  const rows = [...new Set(matches.map(([, kind]) => kind ?? ""))].flatMap((kind) => {
    const suffix = kind && `_${kind}`;
    const cells = Object.keys(LOCALIZATION_SCORES).flatMap((score) => [
      ...Object.values(LOCALIZED_MAPS).map((prefix) => values[`attention/${prefix}${score}${suffix}`]),
      values[chanceNames.get(`attention/${score}${suffix}`)],
    ]);
    if (!cells.some(Number.isFinite)) return [];
    return [tableRow(kind ? titleOf(kind) : "all with boxes", cells.map(percent))];
  });
  if (!rows.length) return null;
  const columns = Object.values(LOCALIZATION_SCORES).flatMap((score) =>
    [...Object.keys(LOCALIZED_MAPS), "chance"].map((map) => `${score}: ${map}`),
  );
  return element(
    "table",
    {},
    element("caption", {}, "Localization: agreement of the maps with the annotated boxes of the answers"),
    tableHead(["answers", ...columns]),
    element("tbody", {}, ...rows),
  );
}

function wordOverlap(values) {
  const overlap = values["attention/word_overlap"];
  if (!Number.isFinite(overlap)) return null;
  const text = `The rollouts of two words of a text overlap by ${percent(overlap)} on average`;
  return element("p", {}, `${text}; near 100 %, they do not discriminate between words.`);
}
