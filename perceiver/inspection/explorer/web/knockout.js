// Knock-out: by how much the probability of the selected answer changes if one part of the model is silent.

const MOST_KNOCKOUTS = 16;
const SILENCED = {
  modalities: "all of its tokens are masked",
  latents: "nothing reads it",
  heads: "its output is zero",
  layers: "its attention adds nothing",
};

const SINGULAR = { modalities: "modality", latents: "latent", heads: "head", layers: "layer" };
const partName = (kind, name) => (kind === "latents" ? `latent ${name}` : name);
const partTitle = (kind, name) => `${SINGULAR[kind]} ${name}`;

const knockoutView = {
  label: "the changes",
  parts: () => {
    const { answers } = explanationAt(state, state.sample);
    const what = state.silent === "" ? answers[state.answer].name : `without-${state.silent}`;
    return [page.samples[state.sample].id, `knockout-${state.knockout}`, what, `step-${eventAt(state).step}`];
  },
  svg: () => changesDrawing(knockoutBars(explanationAt(state, state.sample))),
  csv: () => knockoutBars(explanationAt(state, state.sample)).rows,
};

function renderKnockouts(explanation) {
  const { knockouts = [], answers = [] } = explanation ?? {};
  const found = knockouts.find(({ kind }) => kind === state.knockout);
  byId("knockout-section").hidden = !found || !answers.length;
  if (byId("knockout-section").hidden) return;
  const { sample, run, event, answer, knockout, silent, ranking, layer } = state;
  renderOnChange("knockouts", [sample, run, event, answer, knockout, silent, ranking, layer], () => {
    const { hint, items } = knockoutBars(explanation);
    byId("knockout-hint").textContent = hint;
    const focused = [...byId("knockouts").children].findIndex((item) => item.contains(document.activeElement));
    byId("knockouts").replaceChildren(...items.map(changeItem));
    byId("knockouts").children[focused]?.querySelector("button")?.focus();
  });
}

// {title, hint, items, rows}: the largest changes as bars, {name, usual, change, share, …}, and a table of all.
function knockoutBars(explanation) {
  const found = explanation.knockouts.find(({ kind }) => kind === state.knockout);
  return state.silent === "" ? partBars(explanation, found) : answerBars(explanation, found);
}

const without = (usual, change) => Math.min(1, Math.max(0, usual + change)); // usual is rounded

// The parts of a kind by the change of the selected answer; each leads to its map.
function partBars(explanation, { kind, parts, change, effect }) {
  const { name, detail } = explanation.answers[state.answer];
  const own = change[state.answer];
  const sizes = state.ranking === "answer" ? own.map(Math.abs) : effect;
  const all = [...parts.keys()].sort((i, j) => sizes[j] - sizes[i] || i - j);
  const order = all.slice(0, MOST_KNOCKOUTS);
  const top = Math.max(...order.map((part) => Math.abs(own[part])));
  const hint =
    `Change of the probability of ${quoted(name)} (${detail}) if one of the ${kind} is silent: ${SILENCED[kind]}. ` +
    `The ${order.length} of ${parts.length} with the largest change. Two parts that do the same work may have no effect each.`;
  const usual = Number(detail);
  const items = order.map((part) => {
    const title = `mean size of the change over all answers and samples: ${short(effect[part])}`;
    const changes = selectionOf(explanation, kind, parts[part]);
    const action = changes && { changes: { ...changes, method: "attention" }, hint: "show its map" };
    return {
      name: partName(kind, parts[part]),
      usual,
      change: own[part],
      share: top > 0 ? own[part] / top : 0,
      attributes: { title, "data-part": parts[part] },
      action,
      label: `without ${partTitle(kind, parts[part])}`,
    };
  });
  const head = [SINGULAR[kind], "probability", "probability without it", "change", "mean size of the change over all answers and samples"];
  const rows = all.map((part) => [parts[part], usual, without(usual, own[part]), own[part], effect[part]]);
  return { title: `Probability of ${quoted(name)} without one of the ${kind}`, hint, items, rows: [head, ...rows] };
}

// The answers by their change without the chosen part; each can be selected.
function answerBars({ answers }, { kind, parts, change, effect }) {
  const part = parts.indexOf(state.silent);
  const own = answers.map((_, answer) => change[answer][part]);
  const order = [...answers.keys()].sort((i, j) => Math.abs(own[j]) - Math.abs(own[i]) || i - j);
  const top = Math.abs(own[order[0]]);
  const hint =
    `Change of the probability of each answer without ${partTitle(kind, state.silent)}: ${SILENCED[kind]}. ` +
    `Mean size of the change over all answers and samples: ${short(effect[part])}.`;
  const items = order.map((answer) => {
    const { name, detail } = answers[answer];
    const action = { changes: { answer }, hint: "select it" };
    const share = top > 0 ? own[answer] / top : 0;
    return { name, usual: Number(detail), change: own[answer], share, attributes: { "data-answer": answer }, action, label: name };
  });
  const rows = items.map(({ name, usual, change }) => [name, usual, without(usual, change), change]);
  const title = `Probability of each answer without ${partTitle(kind, state.silent)}`;
  return { title, hint, items, rows: [["answer", "probability", "probability without it", "change"], ...rows] };
}

const changeText = ({ usual, change }) => `${signed(change)} (${short(usual)} → ${short(without(usual, change))})`;

function changeItem({ name, usual, change, share, attributes, action, label }) {
  const text = changeText({ usual, change });
  const side = `${change < 0 ? "right" : "left"}:50%;width:${50 * Math.abs(share)}%`;
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
