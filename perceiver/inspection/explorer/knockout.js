// Knock-out: by how much the probability of the selected answer changes if one part of the model is silent.

const MOST_KNOCKOUTS = 16;
const SILENCED = {
  modalities: "all of its tokens are masked",
  latents: "nothing reads it",
  heads: "its output is zero",
  layers: "its attention adds nothing",
};

function renderKnockouts(explanation) {
  const { knockouts = [], answers = [] } = explanation ?? {};
  const found = knockouts.find(({ kind }) => kind === state.knockout);
  byId("knockout-section").hidden = !found || !answers.length;
  if (byId("knockout-section").hidden) return;
  const { sample, run, event, answer, knockout, ranking, layer } = state;
  renderOnChange("knockouts", [sample, run, event, answer, knockout, ranking, layer], () => {
    const { kind, parts, change, effect } = found;
    const own = change[answer];
    const sizes = ranking === "answer" ? own.map(Math.abs) : effect;
    const order = [...parts.keys()].sort((i, j) => sizes[j] - sizes[i] || i - j).slice(0, MOST_KNOCKOUTS);
    const top = Math.max(...order.map((part) => Math.abs(own[part])));
    const focused = [...byId("knockouts").children].findIndex((item) => item.contains(document.activeElement));
    byId("knockouts").replaceChildren(
      ...order.map((part) => knockoutItem(explanation, kind, parts[part], own[part], effect[part], top)),
    );
    byId("knockouts").children[focused]?.querySelector("button")?.focus();
    byId("knockout-hint").textContent =
      `Change of the probability of ${quoted(answers[answer].name)} (${answers[answer].detail}) if one of the ${kind} ` +
      `is silent: ${SILENCED[kind]}. The ${order.length} of ${parts.length} with the largest change. Two parts that do ` +
      "the same work may have no effect each.";
  });
}

function knockoutItem(explanation, kind, name, change, effect, top) {
  const usual = Number(explanation.answers[state.answer].detail);
  const text = `${signed(change)} (${short(usual)} → ${short(Math.max(0, usual + change))})`;
  const share = top > 0 ? (50 * Math.abs(change)) / top : 0;
  const side = change < 0 ? `right:50%;width:${share}%` : `left:50%;width:${share}%`;
  const content = [
    element("span", { class: "name" }, kind === "latents" ? `latent ${name}` : name),
    element(
      "span",
      { class: "balance", "aria-hidden": "true" },
      element("span", { class: change < 0 ? "less" : "more", ".style": side }),
    ),
    element("span", { class: "value" }, text),
  ];
  const title = `mean size of the change over all answers and samples: ${short(effect)}`;
  const changes = selectionOf(explanation, kind, name);
  if (!changes) return element("li", {}, element("span", { class: "knockout", title }, ...content));
  const button = element("button", { type: "button", class: "knockout", title, "data-part": name }, ...content);
  button.setAttribute("aria-label", `without ${kind.slice(0, -1)} ${name}: ${text}; show its map`);
  button.addEventListener("click", () => setState({ ...changes, method: "attention" }));
  return element("li", {}, button);
}

// The change of state that shows the map of a part; null if the page has none.
function selectionOf({ layers }, kind, name) {
  if (kind === "latents") {
    const has = (layer) => layer?.query_kind === "latent" && layer.queries.includes(Number(name));
    const layer = has(layers[state.layer]) ? state.layer : layers.findIndex(has);
    return layer < 0 ? null : { layer, query: Number(name) };
  }
  const [path, head] = kind === "heads" ? [name.slice(0, name.lastIndexOf("/")), Number(name.split("/").at(-1))] : [name, "mean"];
  const layer = kind === "modalities" ? -1 : layers.findIndex((candidate) => candidate.name === path);
  return layer < 0 ? null : { layer, head, query: "mean" };
}
