// Faithfulness by deletion and insertion of tokens beside other scores of maps, and localization compared with chance.

const CURVE_NAMES = {
  random: "random tokens",
  center: "center",
  mean_map: "mean attention",
  gradient_input: "gradient × input",
  integrated_gradients: "integrated grad.",
};
const CURVE_STYLES = {
  rollout: "run0",
  relevance: "run1",
  mean_map: "run2",
  gradient_input: "run3",
  integrated_gradients: "run4",
  occlusion: "run5",
  random: "random",
  center: "center",
};
const CURVES = {
  deletion: { title: "Deletion", xLabel: "tokens masked, those with the largest values first" },
  insertion: { title: "Insertion", xLabel: "tokens shown, those with the largest values first" },
};
const SCORES = {
  deletion: "deletion",
  insertion: "insertion",
  pointing_game: "pointing game",
  randomization: "randomization",
};
const NULLS = { random: "random tokens", other: "another sample’s map", center: "center" };
const LOCALIZATION_SCORES = { pointing_game: "pointing game", energy_in_box: "energy in boxes" };
const LOCALIZED_MAPS = { relevance: "relevance/", rollout: "" };

// The verdict on the map in the figure, as its contents.
function verdictOf({ explanation, left, selected: { method, layer, query, head } }) {
  const link = element("a", { href: "#faithfulness" }, "Details");
  link.addEventListener("click", (click) => {
    click.preventDefault(); // the fragment of the URL stores the state
    byId("faithfulness").scrollIntoView();
  });
  if (method === "attention" && (query !== "mean" || head !== "mean")) {
    const kind = explanation.layers[layer].query_kind;
    return [`The test of faithfulness does not apply to the weights of a single ${kind} or head. `, link];
  }
  if (left.isContrast || left.isSigned) {
    return ["The test of faithfulness is of the evidence for an answer alone, without a contrast. ", link];
  }
  const map = eventAt(state).faithfulness?.maps[method === "attention" ? "mean_map" : method];
  return map ? [...verdictNodes(map), " ", link] : ["The faithfulness of this map was not measured. ", link];
}

function verdictNodes({ mark, sentence }) {
  return [element("span", { class: "badge", "aria-hidden": "true" }, mark), ` ${sentence}`];
}

function renderFaithfulness() {
  renderOnChange("faithfulness", [state.run, state.event], () => {
    const { faithfulness, values } = eventAt(state);
    const untested = () => [faithfulness ? noTestableAnswer() : notMeasured()];
    const result = faithfulness?.num_samples ? faithfulnessResult(faithfulness) : untested();
    const scores = [localizationTable(values), wordOverlap(values)].filter(Boolean);
    const parts = scores.length ? [...result, element("div", { id: "scores" }, ...scores)] : result;
    byId("faithfulness-body").replaceChildren(...parts);
  });
}

function faithfulnessResult({ fractions, curves, stages, maps, chance }) {
  const charts = Object.entries(CURVES).map(([score, { title, xLabel }]) => {
    const shown = Object.entries(curves[score]).filter(([name]) => !name.startsWith("other/"));
    const series = shown.map(([name, curve]) => ({
      name: CURVE_NAMES[name] ?? name,
      points: fractions.map((fraction, i) => [fraction, curve[i]]).filter(([, value]) => value !== null),
      style: CURVE_STYLES[name] ?? "run3",
    }));
    const description = `${title}: probability of the answers by share of the ${xLabel}`;
    const parts = chartParts(score);
    const chart = lineChart({ series, xLabel, yLabel: "probability", description, parts, isPercentX: true });
    return element("div", { id: score }, element("h4", {}, title), chart);
  });
  if (Object.keys(stages).length) charts.push(randomizationChart(stages));
  const verdicts = Object.values(maps).map((map) => element("li", {}, ...verdictNodes(map)));
  return [
    element("ul", { id: "verdicts", class: "sentences" }, ...verdicts),
    element("div", { class: "charts" }, ...charts),
    scrollable("scores of maps", methodTable(maps, chance)),
    scrollable("differences from nulls", differenceTable(maps)),
  ];
}

// A wide table scrolls by itself, also by the arrow keys.
const scrollable = (label, table) => element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, table);

const chartParts = (name) => [page.title, name, `step-${eventAt(state).step}`];

// How similar maps stay as the weights are randomized, from the outputs to the inputs.
function randomizationChart(stages) {
  const series = Object.entries(stages).map(([name, values]) => ({
    name: CURVE_NAMES[name] ?? name,
    points: values.map((value, i) => [i / (values.length - 1), value]),
    style: CURVE_STYLES[name] ?? "run3",
  }));
  const xLabel = "tensors of weights that are random, the last ones first";
  const description = "Randomization: rank correlation with the original map by share of the random weights";
  const parts = chartParts("randomization");
  const chart = lineChart({ series, xLabel, yLabel: "rank correlation", description, parts, isPercentX: true });
  return element("div", { id: "randomization" }, element("h4", {}, "Randomization"), chart);
}

// A mean with its interval.
function withInterval(found) {
  if (!found) return "–";
  const { mean, low, high } = found;
  const digits = (value) => value.toFixed(2).replace("-", "−");
  if (!Number.isFinite(mean)) return "–";
  return Number.isFinite(low) && Number.isFinite(high) ? `${digits(mean)} [${digits(low)}, ${digits(high)}]` : digits(mean);
}

function methodTable(maps, chance) {
  const found = Object.entries(SCORES).filter(([score]) => Object.values(maps).some(({ scores }) => score in scores));
  const rows = Object.values(maps).map(({ title, scores, mark, brief }) =>
    tableRow(title, [...found.map(([score]) => withInterval(scores[score])), `${mark} ${brief}`]),
  );
  const titles = found.map(([score, title]) => (score in chance ? `${title} (chance ${short(chance[score], 2)})` : title));
  const text =
    "Area between the curve of the map and that of random tokens (positive: better), with 95 % intervals; " +
    "the share of maxima in boxes; and the rank correlation with the map of a model with random weights (near 0: good)";
  return element(
    "table",
    { id: "methods" },
    element("caption", {}, text),
    tableHead(["map", ...titles, "verdict"]),
    element("tbody", {}, ...rows),
  );
}

function differenceTable(maps) {
  const pairs = Object.keys(NULLS).flatMap((null_) => Object.keys(CURVES).map((score) => [null_, score]));
  const rows = Object.values(maps).map(({ title, differences, p }) =>
    tableRow(title, [...pairs.map(([null_, score]) => withInterval(differences[null_][score])), short(p, 2)]),
  );
  const heads = pairs.map(([null_, score]) => `${score}: ${NULLS[null_]}`);
  return element(
    "table",
    { id: "differences" },
    element(
      "caption",
      {},
      "Differences from each null, with 95 % intervals; p of the largest one, corrected for the number of maps (Holm)",
    ),
    tableHead(["map", ...heads, "p"]),
    element("tbody", {}, ...rows),
  );
}

function noTestableAnswer() {
  const hasAnswers = page.samples.some((_, sample) => explanationAt(state, sample)?.answers.length);
  const reason = hasAnswers ? "removing all tokens hardly lowered any probability" : "no sample has answers with a probability";
  return element("p", { id: "not-testable" }, `No answer could be tested at ${eventName(state)}: ${reason}.`);
}

function notMeasured() {
  const names = page.runs[state.run].events.filter(({ faithfulness }) => faithfulness).map(({ name }) => name);
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
  const caption = element("caption", {}, "Localization: agreement of the maps with the annotated boxes of the answers");
  return scrollable("localization", element("table", {}, caption, tableHead(["answers", ...columns]), element("tbody", {}, ...rows)));
}

function wordOverlap(values) {
  const overlap = values["attention/word_overlap"];
  if (!Number.isFinite(overlap)) return null;
  const text = `The rollouts of two words of a text overlap by ${percent(overlap)} on average`;
  return element("p", {}, `${text}; near 100 %, they do not discriminate between words.`);
}
