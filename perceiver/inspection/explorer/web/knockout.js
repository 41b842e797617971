// Knock-out: by how much the probability of the selected answer changes if one part of the model is silent.

const MOST_KNOCKOUTS = 16;
const SILENCED = {
  modalities: "all of its tokens are masked",
  latents: "nothing reads it",
  heads: "its output is zero",
  layers: "its attention adds nothing",
};

const partName = (kind, name) => (kind === "latents" ? `latent ${name}` : name);

function renderKnockouts(explanation) {
  const { knockouts = [], answers = [] } = explanation ?? {};
  const found = knockouts.find(({ kind }) => kind === state.knockout);
  byId("knockout-section").hidden = !found || !answers.length;
  if (byId("knockout-section").hidden) return;
  const { sample, run, event, answer, knockout, silent, ranking, layer } = state;
  renderOnChange("knockouts", [sample, run, event, answer, knockout, silent, ranking, layer], () => {
    const items = silent === "" ? partItems(explanation, found) : answerItems(explanation, found);
    const focused = [...byId("knockouts").children].findIndex((item) => item.contains(document.activeElement));
    byId("knockouts").replaceChildren(...items);
    byId("knockouts").children[focused]?.querySelector("button")?.focus();
  });
}

// The parts of a kind by the change of the selected answer; each leads to its map.
function partItems(explanation, { kind, parts, change, effect }) {
  const { name, detail } = explanation.answers[state.answer];
  const own = change[state.answer];
  const sizes = state.ranking === "answer" ? own.map(Math.abs) : effect;
  const order = [...parts.keys()].sort((i, j) => sizes[j] - sizes[i] || i - j).slice(0, MOST_KNOCKOUTS);
  const top = Math.max(...order.map((part) => Math.abs(own[part])));
  byId("knockout-hint").textContent =
    `Change of the probability of ${quoted(name)} (${detail}) if one of the ${kind} is silent: ${SILENCED[kind]}. ` +
    `The ${order.length} of ${parts.length} with the largest change. Two parts that do the same work may have no effect each.`;
  return order.map((part) => {
    const title = `mean size of the change over all answers and samples: ${short(effect[part])}`;
    const changes = selectionOf(explanation, kind, parts[part]);
    const action = changes && { changes: { ...changes, method: "attention" }, hint: "show its map" };
    return changeItem(partName(kind, parts[part]), Number(detail), own[part], top, { title, "data-part": parts[part] }, action, `without ${kind.slice(0, -1)} ${parts[part]}`);
  });
}

// The answers by their change without the chosen part; each can be selected.
function answerItems({ answers }, { kind, parts, change, effect }) {
  const part = parts.indexOf(state.silent);
  const own = answers.map((_, answer) => change[answer][part]);
  const order = [...answers.keys()].sort((i, j) => Math.abs(own[j]) - Math.abs(own[i]) || i - j);
  const top = Math.abs(own[order[0]]);
  byId("knockout-hint").textContent =
    `Change of the probability of each answer without ${partName(kind, state.silent)}: ${SILENCED[kind]}. ` +
    `Mean size of the change over all answers and samples: ${short(effect[part])}.`;
  return order.map((answer) => {
    const { name, detail } = answers[answer];
    const action = { changes: { answer }, hint: "select it" };
    return changeItem(name, Number(detail), own[answer], top, { "data-answer": answer }, action, name);
  });
}

function changeItem(name, usual, change, top, attributes, action, label) {
  const text = `${signed(change)} (${short(usual)} → ${short(Math.max(0, usual + change))})`;
  const share = top > 0 ? (50 * Math.abs(change)) / top : 0;
  const side = change < 0 ? `right:50%;width:${share}%` : `left:50%;width:${share}%`;
  const content = [
    element("span", { class: "name" }, name),
    element(
      "span",
      { class: "balance", "aria-hidden": "true" },
      element("span", { class: change < 0 ? "less" : "more", ".style": side }),
    ),
    element("span", { class: "value" }, text),
  ];
  if (!action) return element("li", {}, element("span", { class: "knockout", ...attributes }, ...content));
  const button = element("button", { type: "button", class: "knockout", ...attributes }, ...content);
  button.setAttribute("aria-label", `${label}: ${text}; ${action.hint}`);
  button.addEventListener("click", () => setState(action.changes));
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
