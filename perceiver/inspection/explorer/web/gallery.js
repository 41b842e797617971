// The gallery: the most extreme samples of a split, the confusion matrix or the classes, and mean maps.
//
// The data, in the block with the id "gallery":
//   title, num_samples; orders: names, see LABELS; class_names by label; explorer: file name of its page
//   class_metrics  {name: value of each class}
//   indices        whether numbers of samples are their indices in the validation set
//   outputs   [{name, items, tops, counts, confusion, means}]
//     items      [{id, window: that is shown, or empty, number, explained: place in the explorer or null, answer, truth, loss, confidence, wrongness,
//                predicted, true: labels, thumbnails: {modality: {size, place, picture, maps: {kind: data URL}, words,
//                weights: {kind: [relative]}}}}]
//     tops       {all, true, cell: samples that are kept in each order of all samples, of a class, of a pair}
//     counts     {group: samples}; a group is all, wrong, or true, predicted, missed or false with ":<label>"
//     confusion  [[true, predicted, samples]], descending; null where samples have several classes or none
//     means      {modality: {reason, size, groups: [{role, label, count, maps: {kind: [data URL, maximum]}}], omitted}}
//   omitted   number of samples whose pictures are not in the page

const THEMES = ["auto", "light", "dark"];
const ANY = "";
const NO_MAP = "none";
const MOST_CLASSES = 60; // of a matrix; of more, the most frequent pairs are listed
const MOST_PAIRS = 100;
const LABELS = {
  wrongness: ["wrongness, highest first", (item) => -item.wrongness],
  highest_loss: ["loss, highest first", (item) => -item.loss],
  lowest_loss: ["loss, lowest first", (item) => item.loss],
  highest_confidence: ["confidence, highest first", (item) => -item.confidence],
  lowest_confidence: ["confidence, lowest first", (item) => item.confidence],
};
const ROLES = { all: "all samples", true: "by true class", predicted: "by predicted class" };

const data = JSON.parse(byId("gallery").textContent);
const names = data.class_names;
const hasOrder = (name) => shown().items.some((item) => Number.isFinite(valueOf(item, name)));
const valueOf = (item, name) => item[name.split("_").at(-1)];
const state = { output: 0, order: "", true: ANY, predicted: ANY, errors: false, map: "", theme: "auto" };
const shown = () => data.outputs[state.output];
const kinds = () => [
  ...new Set([
    ...shown().items.flatMap(({ thumbnails }) =>
      Object.values(thumbnails).flatMap(({ maps, weights }) => [...Object.keys(maps), ...Object.keys(weights)]),
    ),
    ...Object.values(shown().means).flatMap(({ groups }) => groups.flatMap(({ maps }) => Object.keys(maps))),
  ]),
];

const isWrong = (item, label, predicted) => {
  if (label !== ANY && predicted !== ANY) return label !== predicted;
  if (label !== ANY) return !item.predicted.includes(label);
  if (predicted !== ANY) return !item.true.includes(predicted);
  return String(item.true) !== String(item.predicted);
};

function matching() {
  return shown().items.filter(
    (item) =>
      (state.true === ANY || item.true.includes(state.true)) &&
      (state.predicted === ANY || item.predicted.includes(state.predicted)) &&
      (!state.errors || isWrong(item, state.true, state.predicted)),
  );
}

// The number of samples of the split that the filter selects, and how many of them the page has in each order.
function extent() {
  const { counts, tops, confusion } = shown();
  const count = (group) => counts[group] ?? 0;
  if (state.true !== ANY && state.predicted !== ANY) {
    const cell = confusion?.find(([label, predicted]) => label === state.true && predicted === state.predicted);
    return { total: confusion ? (cell?.[2] ?? 0) : null, top: Math.max(tops.cell, 1) };
  }
  if (state.true !== ANY) return { total: count(`${state.errors ? "missed" : "true"}:${state.true}`), top: tops.true };
  if (state.predicted !== ANY) {
    return { total: count(`${state.errors ? "false" : "predicted"}:${state.predicted}`), top: tops.true };
  }
  return { total: count(state.errors ? "wrong" : "all"), top: tops.all };
}

function drawnWords({ words, weights }) {
  const shares = weights[state.map] ?? [];
  const spans = words.flatMap((word, place) => {
    const strength = Math.round(70 * (shares[place] ?? 0));
    const style = strength ? `background:color-mix(in srgb, #f08a24 ${strength}%, transparent)` : null;
    return [element("span", { style }, word), " "];
  });
  return element("span", { class: "words" }, ...spans);
}

function drawing(modality, thumbnail) {
  if (thumbnail.words) return drawnWords(thumbnail);
  const [width, height] = thumbnail.size;
  const { picture, place } = thumbnail;
  const map = thumbnail.maps[state.map];
  const images = [
    picture ? element("img", { src: picture, alt: "" }) : null,
    map ? element("img", { src: map, alt: "", class: picture ? "map" : "map alone" }) : null,
  ];
  const frame = element("span", { class: "picture", style: `width:${width}px;height:${height}px` }, ...images);
  return element("span", { title: modality }, frame, place ? element("span", { class: "frame-place" }, place) : null);
}

const orNone = (text) => text || "none";
const numbersOf = (item) =>
  ["loss", "confidence", "wrongness"]
    .filter((name) => Number.isFinite(item[name]))
    .map((name) => `${name} ${short(item[name])}`)
    .join(" · ");

function sentence(item) {
  const texts = item.answer || item.truth ? `answer ${quoted(orNone(item.answer))}, truth ${quoted(orNone(item.truth))}; ` : "";
  return `${item.id}: ${texts}${numbersOf(item)}`;
}

function howToOpen({ explained, number }) {
  if (explained !== null) return "Enter opens it in the explorer.";
  return data.indices ? `inspect_attention.py … samples=[${number}] explains it.` : "It is not among the explorer's samples.";
}

function card(item, place) {
  const isRight = item.answer === item.truth;
  const texts = element(
    "span",
    { class: "texts" },
    element("span", {}, "truth"),
    element("span", {}, orNone(item.truth)),
    element("span", {}, "answer"),
    element("span", { class: "verdict" }, `${isRight ? "✓" : "✗"} ${orNone(item.answer)}`),
  );
  const content = [
    element("span", { class: "id", title: item.id }, item.id),
    item.window ? element("span", { class: "frame-place" }, `window ${item.window}`) : null,
    ...Object.entries(item.thumbnails).map(([modality, thumbnail]) => drawing(modality, thumbnail)),
    item.answer || item.truth ? texts : null,
    element("span", { class: "numbers" }, numbersOf(item)),
  ];
  const attributes = { class: "card", "aria-label": sentence(item), ".tabIndex": place ? -1 : 0 };
  const isLinked = item.explained !== null;
  const node = isLinked
    ? element("a", { ...attributes, href: `${data.explorer}#sample=${item.explained}` }, ...content)
    : element("button", { ...attributes, type: "button" }, ...content);
  const show = () => (byId("readout").textContent = `${sentence(item)}. ${howToOpen(item)}`);
  node.addEventListener("focus", show);
  node.addEventListener("mouseenter", show);
  if (!isLinked) node.addEventListener("click", () => announce(howToOpen(item)));
  return node;
}

const quantity = (number, total) => (total === null || number === total ? counted(number, "sample") : `${number} of ${counted(total, "sample")}`);

function renderSamples() {
  const { output, order, errors, map } = state;
  renderOnChange("samples", [output, order, state.true, state.predicted, errors, map], () => {
    const [label, key] = LABELS[order];
    const { total, top } = extent();
    const found = matching().sort((a, b) => key(a) - key(b) || a.number - b.number);
    const chosen = found.slice(0, Math.max(top, 1));
    byId("samples-shown").replaceChildren(...chosen.map(card));
    const filters = [
      state.true === ANY ? "" : `true class ${quoted(names[state.true])}`,
      state.predicted === ANY ? "" : `predicted class ${quoted(names[state.predicted])}`,
      errors ? "errors only" : "",
    ].filter(Boolean);
    byId("samples-heading").textContent = [quantity(chosen.length, total), ...filters, label].join(" · ");
    byId("readout").textContent = "";
    announce(byId("samples-heading").textContent);
  });
}

// A number that selects samples.
function countButton(text, label, filter) {
  const button = element("button", { type: "button", "aria-label": label, ".tabIndex": -1 }, text);
  button.dataset.filter = JSON.stringify(filter);
  button.addEventListener("click", () => {
    Object.assign(state, { true: ANY, predicted: ANY, errors: false }, filter);
    render();
    byId("samples-heading").scrollIntoView({ block: "start" });
    byId("samples-shown").firstElementChild?.focus({ preventScroll: true });
  });
  return button;
}

const cellButton = ([label, predicted, count], text) =>
  countButton(text, `${counted(count, "sample")} of ${names[label]}, predicted as ${names[predicted]}`, { true: label, predicted });

function confusionTable(cells) {
  const totals = {};
  const at = {};
  for (const [label, predicted, count] of cells) {
    totals[label] = (totals[label] ?? 0) + count;
    at[`${label}:${predicted}`] = [label, predicted, count];
  }
  const rows = names.map((name, label) => {
    const columns = names.map((_, predicted) => {
      const cell = at[`${label}:${predicted}`];
      if (!cell) return element("td", {}, "·");
      return element("td", { style: `--share:${cell[2] / totals[label]}` }, cellButton(cell, cell[2]));
    });
    return element("tr", {}, element("th", { scope: "row", title: name }, name), ...columns);
  });
  const head = ["true ↓ · predicted →", ...names].map((name) => element("th", { scope: "col", title: name }, name));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function renderConfusion() {
  const { confusion } = shown();
  byId("confusion-section").hidden = !confusion;
  if (!confusion) return;
  renderOnChange("confusion", [state.output], () => {
    const errors = confusion.filter(([label, predicted]) => label !== predicted).slice(0, MOST_PAIRS);
    const pairs = errors.map((cell) => cellButton(cell, `${names[cell[0]]} → ${names[cell[1]]}: ${cell[2]}`));
    const content = names.length > MOST_CLASSES ? element("div", { class: "pairs" }, ...pairs) : confusionTable(confusion);
    byId("confusion").replaceChildren(content);
    makeFirstReachable("confusion");
  });
}

function renderClasses() {
  const { confusion, counts } = shown();
  const metrics = Object.entries(data.class_metrics).filter(([, values]) => values.length === names.length);
  byId("classes-section").hidden = !names.length || (Boolean(confusion) && !metrics.length) || !shown().items.some((item) => item.true.length || item.predicted.length);
  if (byId("classes-section").hidden) return;
  renderOnChange("classes", [state.output], () => {
    const cells = {
      samples: ["true", (label) => ({ true: label })],
      predicted: ["predicted", (label) => ({ predicted: label })],
      missed: ["missed", (label) => ({ true: label, errors: true })],
      false: ["false", (label) => ({ predicted: label, errors: true })],
    };
    const rows = names.map((name, label) =>
      tableRow(name, [
        ...Object.entries(cells).map(([column, [group, filter]]) => {
          const count = counts[`${group}:${label}`] ?? 0;
          return count ? countButton(count, `${name}, ${column}: ${counted(count, "sample")}`, filter(label)) : "0";
        }),
        ...metrics.map(([, values]) => short(values[label] ?? NaN)),
      ]),
    );
    const head = tableHead(["class", ...Object.keys(cells), ...metrics.map(([name]) => name)]);
    byId("classes").replaceChildren(element("table", {}, head, element("tbody", {}, ...rows)));
    makeFirstReachable("classes");
  });
}

function makeFirstReachable(id) {
  const first = byId(id).querySelector("button");
  if (first) first.tabIndex = 0;
}

function renderPressed() {
  const { errors, predicted } = state;
  for (const button of document.querySelectorAll("button[data-filter]")) {
    const filter = { true: ANY, predicted: ANY, errors: false, ...JSON.parse(button.dataset.filter) };
    const isPressed = filter.true === state.true && filter.predicted === predicted && filter.errors === errors;
    button.setAttribute("aria-pressed", isPressed);
  }
}

function meanFigure({ role, label, count, maps }, [width, height]) {
  const [picture, maximum] = maps[state.map] ?? [];
  if (!picture) return null;
  const name = role === "all" ? "all" : names[label];
  const title = `${name} · ${counted(count, "sample")} · up to ${percent(maximum)}`;
  const frame = element("span", { class: "picture", style: `width:${width}px;height:${height}px` }, element("img", { class: "map alone", src: picture, alt: `mean ${state.map}, ${title}` }));
  return element("figure", {}, element("figcaption", {}, title), frame);
}

function renderMeans() {
  renderOnChange("means", [state.output, state.map], () => {
    const sections = Object.entries(shown().means).flatMap(([modality, { reason, size, groups, omitted }]) => {
      const heading = element("h3", {}, modality);
      if (reason) return [heading, element("p", { class: "none" }, `No mean map: ${reason}.`)];
      if (state.map === NO_MAP) return [heading, element("p", { class: "hint" }, "Choose a map above.")];
      const parts = Object.entries(ROLES).flatMap(([role, title]) => {
        const figures = groups.filter((group) => group.role === role).map((group) => meanFigure(group, size)).filter(Boolean);
        return figures.length ? [element("h4", {}, title), element("div", { class: "means" }, ...figures)] : [];
      });
      const note = omitted ? element("p", { class: "hint" }, `${omitted} more are in the .npz file next to this page.`) : null;
      return [heading, ...parts, note].filter(Boolean);
    });
    byId("means").replaceChildren(...sections);
  });
}

function render() {
  document.documentElement.dataset.theme = state.theme;
  for (const id of ["order", "true", "predicted", "map", "output"]) byId(id).value = String(state[id]);
  byId("errors").checked = state.errors;
  renderSamples();
  renderConfusion();
  renderClasses();
  renderMeans();
  renderPressed();
  document.documentElement.dataset.rendered = "true";
}

// Only the focused one of a group is in the order of the Tab key.
function focusOn(node, group) {
  if (!node) return;
  for (const other of group) other.tabIndex = -1;
  node.tabIndex = 0;
  node.focus();
}

// The next in a direction, by position: rows may be of any length.
function neighbor(nodes, node, key) {
  const place = nodes.indexOf(node);
  if (key === "Home") return nodes[0];
  if (key === "End") return nodes.at(-1);
  if (key === "ArrowLeft") return nodes[place - 1];
  if (key === "ArrowRight") return nodes[place + 1];
  const center = (one) => {
    const { left, right, top } = one.getBoundingClientRect();
    return [(left + right) / 2, top];
  };
  const [x, y] = center(node);
  const sign = key === "ArrowDown" ? 1 : -1;
  const others = nodes.map((one) => [one, ...center(one)]).filter(([, , top]) => sign * (top - y) > 2);
  const nearest = Math.min(...others.map(([, , top]) => sign * (top - y)));
  const row = others.filter(([, , top]) => sign * (top - y) < nearest + 2);
  return row.sort((a, b) => Math.abs(a[1] - x) - Math.abs(b[1] - x))[0]?.[0];
}

function move(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
  const nodes = [...event.currentTarget.querySelectorAll("a, button")];
  if (!nodes.includes(event.target)) return;
  event.preventDefault();
  focusOn(neighbor(nodes, event.target, event.key), nodes);
}

function fill(id, choices, parse = (text) => text) {
  byId(id).replaceChildren(...choices.map(([value, name]) => element("option", { value }, name)));
  byId(id).onchange = ({ target }) => {
    state[id] = parse(target.value);
    if (id === "output") startOutput();
    render();
  };
}

function startOutput() {
  const orders = data.orders.filter(hasOrder);
  const { counts } = shown();
  const classes = (role) => [
    [ANY, "any"],
    ...names.flatMap((name, label) => (counts[`${role}:${label}`] ? [[label, `${name} (${counts[`${role}:${label}`]})`]] : [])),
  ];
  const label = (text) => (text === ANY ? ANY : Number(text));
  Object.assign(state, { order: orders[0] ?? data.orders[0], true: ANY, predicted: ANY, errors: false, map: kinds()[0] ?? NO_MAP });
  fill("order", (orders.length ? orders : data.orders).map((name) => [name, LABELS[name][0]]));
  fill("true", classes("true"), label);
  fill("predicted", classes("predicted"), label);
  fill("map", [...kinds(), NO_MAP].map((name) => [name, name]));
  for (const id of ["true", "predicted"]) byId(id).parentElement.hidden = classes(id).length < 2;
  byId("windows-hint").hidden = !shown().items.some(({ window }) => window);
  byId("wrongness-hint").hidden = !orders.includes("wrongness");
  byId("means-hint").hidden = !Object.values(shown().means).some(({ groups }) => groups.length > 1);
  byId("errors").closest("label").hidden = !Object.keys(counts).some((group) => group === "wrong");
}

function start() {
  document.title = `${data.title} – gallery`;
  byId("title").textContent = data.title;
  byId("description").textContent = `${counted(data.num_samples, "sample")}: the most extreme ones by loss, confidence and wrongness.`;
  byId("omitted").textContent = data.omitted
    ? `The pictures of ${counted(data.omitted, "sample")} are left out to limit the size of the page.`
    : "";
  fill("output", data.outputs.map(({ name }, number) => [number, name]), Number);
  byId("output").parentElement.hidden = data.outputs.length < 2;
  fill("theme", THEMES.map((name) => [name, name]));
  byId("errors").addEventListener("change", ({ target }) => {
    state.errors = target.checked;
    render();
  });
  byId("reset").addEventListener("click", () => {
    Object.assign(state, { true: ANY, predicted: ANY, errors: false });
    render();
  });
  for (const id of ["samples-shown", "confusion", "classes"]) byId(id).addEventListener("keydown", move);
  startOutput();
  render();
}

start();
