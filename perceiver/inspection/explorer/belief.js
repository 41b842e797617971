// How far the maps may be believed: the deletion test, and scores against chance, each in a plain sentence.

const CURVE_NAMES = { random: "random inputs", mean_map: "mean map" };
const CURVE_STYLES = { rollout: "run0", relevance: "run1", mean_map: "run2", random: "random" };

const testName = (method) => (method === "map" ? "mean_map" : method);

// One line below the figure, about what is shown there.
function verdictOf({ method, latent, head, layer }) {
  const event = eventOf(state);
  const more = element("a", { href: "#belief" }, "More below");
  more.addEventListener("click", (click) => {
    // The hash of the address belongs to the state.
    click.preventDefault();
    byId("belief").scrollIntoView();
  });
  if (method === "map" && (latent !== "mean" || head !== "mean")) {
    return ["One latent or head shows where it read, not what the answer depends on. ", more];
  }
  const area = event.deletion?.num_samples ? event.deletion.areas[testName(method)] : null;
  if (!area) return ["Whether the answer depends on what is marked was not measured here. ", more];
  const { mark, sentence } = area;
  return [element("span", { class: "badge", "aria-hidden": "true" }, mark), ` ${sentence} `, more];
}

function renderBelief() {
  when("belief", [state.run, state.event], () => {
    const { deletion, values } = eventOf(state);
    const parts = deletion?.num_samples ? measured(deletion) : [deletion ? untestable() : unmeasured()];
    byId("belief-body").replaceChildren(...parts, ...scores(values));
  });
}

function measured({ fractions, curves, areas }) {
  const series = Object.entries(curves).map(([name, curve]) => ({
    name: CURVE_NAMES[name] ?? name,
    points: curve.map((left, i) => [fractions[i], left]).filter(([, left]) => left !== null),
    style: CURVE_STYLES[name] ?? "run3",
  }));
  const rows = Object.values(areas).map((area) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, area.title),
      element("td", {}, signed(area.mean)),
      element("td", {}, `± ${short(area.error, 2)}`),
      element("td", { class: "words" }, `${area.mark} ${area.brief}`),
    ),
  );
  const heads = ["map", "area", "error", "verdict"].map((name, i) =>
    element("th", { scope: "col", class: i === 3 ? "words" : null }, name),
  );
  const table = element(
    "table",
    { id: "areas" },
    element("caption", {}, "Area between the random curve and that of the map; above 0, what it marks matters"),
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows),
  );
  const curve = chart({
    series,
    xLabel: "share of the input hidden, the most marked first",
    yLabel: "left of the answer's probability",
    description: "What is left of the answer's probability as inputs are hidden",
    percentX: true,
  });
  const sentences = Object.values(areas).map(({ mark, sentence }) =>
    element("li", {}, element("span", { class: "badge", "aria-hidden": "true" }, mark), ` ${sentence}`),
  );
  return [
    element("ul", { id: "verdicts", class: "sentences" }, ...sentences),
    element("div", { class: "beside" }, element("div", { id: "deletion" }, curve), table),
  ];
}

function untestable() {
  const why = "no answer lost much when its whole input was hidden";
  return element("p", { id: "untestable" }, `There was nothing to test the maps on at ${nameOfEvent(state)}: ${why}.`);
}

function unmeasured() {
  const others = page.runs[state.run].events.filter(({ deletion }) => deletion).map(({ name }) => name);
  const elsewhere = others.length ? ` It was at ${others.join(", ")}.` : "";
  return element(
    "p",
    { id: "unmeasured" },
    `Whether the answers depend on what the maps mark was not measured at ${nameOfEvent(state)}.${elsewhere} `,
    "To measure it for a run that is done: ",
    element("code", {}, "uv run experiments/inspect_attention.py run=…"),
    " with its directory.",
  );
}

// Scores of relevance and rollout against where things truly are, a row for each kind of word; and words among each other.
const SCORES = { pointing_game: "brightest cell in a box", energy_in_box: "mass in the boxes" };
const SCORED = { relevance: "relevance/", rollout: "" };

function scores(values) {
  const found = [];
  const kinds = new Set(
    statistics.flatMap((name) => {
      const [all, kind] = lastPart(name).match(/^pointing_game(?:_(.+))?$/) ?? [];
      return all ? [kind ?? ""] : [];
    }),
  );
  const rows = [...kinds].flatMap((kind) => {
    const end = kind && `_${kind}`;
    const cells = Object.keys(SCORES).flatMap((score) => [
      ...Object.values(SCORED).map((map) => values[`attention/${map}${score}${end}`]),
      values[chanceOf(`attention/${score}${end}`)],
    ]);
    if (!cells.some(Number.isFinite)) return [];
    const head = element("th", { scope: "row" }, kind ? `${kind.replaceAll("_", " ")} words` : "all with boxes");
    return [element("tr", {}, head, ...cells.map((value) => element("td", {}, percent(value))))];
  });
  if (rows.length) {
    const names = Object.values(SCORES).flatMap((score) =>
      [...Object.keys(SCORED), "by chance"].map((map) => element("th", { scope: "col" }, `${score}: ${map}`)),
    );
    const caption = element("caption", {}, "How well maps lie where the things truly are that were meant");
    const head = element("thead", {}, element("tr", {}, element("th", { scope: "col" }, ""), ...names));
    found.push(element("table", {}, caption, head, element("tbody", {}, ...rows)));
  }
  const common = values["attention/word_overlap"];
  if (Number.isFinite(common)) {
    const sentence = `The rollouts of two words of a text have ${percent(common)} of their mass in common`;
    found.push(element("p", {}, `${sentence}: the nearer to 100 %, the less they tell words apart.`));
  }
  return found.length ? [element("div", { id: "scores" }, ...found)] : [];
}
