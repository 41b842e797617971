// The atlas: a row for each latent with the inputs that it reads most.
//
// The data, in the block with the id "atlas":
//   title, num_samples; layers: names of the averaged layers, none for all cross-attends; entropy_chance, in nats
//   latents   [{entropy, modalities: {name: {share: mean share of the weights, read: [[weight, excerpt]], descending}}}]
//   excerpts  [{id: of the sample, place, picture: data URL or null, outline {left, top, right, bottom} as fractions,
//             words: null or [before, token, after], sound: data URL or null}]
//   omitted   number of pictures and sounds that are not in the page

const THEMES = ["auto", "light", "dark"];
const ALL = "all";
const data = JSON.parse(byId("atlas").textContent);
const modalities = Object.keys(data.latents[0]?.modalities ?? {});
const state = { sort: "index", modality: ALL, theme: "auto" };
const largest = (latent) => Math.max(0, ...shown().map((name) => latent.modalities[name].read[0]?.[0] ?? 0));
const shown = () => modalities.filter((name) => [ALL, name].includes(state.modality));

const SORTS = {
  index: ["index", (latent, index) => index],
  entropy: ["entropy, lowest first", (latent) => latent.entropy],
  weight: ["largest weight", (latent) => -largest(latent)],
  ...Object.fromEntries(
    (modalities.length > 1 ? modalities : []).map((name) => [
      `share:${name}`,
      [`share of ${name}`, (latent) => -latent.modalities[name].share],
    ]),
  ),
};

function drawing({ picture, outline, words, place }) {
  if (picture) {
    const edge = (value) => `${100 * value}%`;
    const { left, top, right, bottom } = outline;
    const style = `left:${edge(left)};top:${edge(top)};width:${edge(right - left)};height:${edge(bottom - top)}`;
    return element("span", { class: "picture" }, element("img", { src: picture, alt: "" }), element("i", { style }));
  }
  if (!words) return element("span", { class: "empty" }, place);
  return element("span", { class: "words" }, words[0], element("mark", {}, words[1]), words[2]);
}

const sentence = (number, name, rank, weight, { id, place, words }) =>
  `latent ${number}, ${name} ${rank + 1}: weight ${short(weight)} on ${words ? `${quoted(words[1].trim())} at ` : ""}${place} of ${id}`;

function readButton(number, name, rank, [weight, index]) {
  const excerpt = data.excerpts[index];
  const text = sentence(number, name, rank, weight, excerpt);
  const button = element(
    "button",
    { type: "button", "aria-label": text, ".tabIndex": rank ? -1 : 0 },
    drawing(excerpt),
    element("span", {}, `${short(weight)}${excerpt.sound ? " ♪" : ""}`),
  );
  const show = () => (byId("readout").textContent = text);
  button.addEventListener("focus", show);
  button.addEventListener("mouseenter", show);
  if (excerpt.sound) button.addEventListener("click", () => new Audio(excerpt.sound).play());
  return button;
}

function latentRow(latent, number) {
  const bars = modalities.map((name) => {
    const { share } = latent.modalities[name];
    const bar = element("span", { class: "bar" }, element("i", { style: `width:${100 * Math.min(share, 1)}%` }));
    return element("div", { class: "share" }, element("span", { title: name }, name), bar, element("span", {}, percent(share)));
  });
  const facts = element(
    "div",
    {},
    element("h3", { id: `latent-${number}` }, `latent ${number}`),
    element("small", {}, `entropy ${short(latent.entropy)} nats`),
    ...(modalities.length > 1 ? bars : []),
  );
  const rows = shown().map((name) =>
    element(
      "div",
      { class: "reads", role: "group", "aria-label": `latent ${number}, ${name}` },
      ...latent.modalities[name].read.map((read, rank) => readButton(number, name, rank, read)),
    ),
  );
  return element("article", { class: "latent", "aria-labelledby": `latent-${number}` }, facts, element("div", {}, ...rows));
}

function render() {
  document.documentElement.dataset.theme = state.theme;
  renderOnChange("latents", [state.sort, state.modality], () => {
    const [, key] = SORTS[state.sort];
    const order = data.latents.map((latent, index) => index).sort((a, b) => key(data.latents[a], a) - key(data.latents[b], b));
    byId("latents").replaceChildren(...order.map((number) => latentRow(data.latents[number], number)));
    announce(`${counted(order.length, "latent")}, sorted by ${SORTS[state.sort][0]}`);
  });
  document.documentElement.dataset.rendered = "true";
}

// Focus on an input; only the focused one of a row is in the order of the Tab key.
function focusOn(button) {
  if (!button) return;
  for (const other of button.parentElement.children) other.tabIndex = -1;
  button.tabIndex = 0;
  button.focus();
}

function move(event) {
  const row = event.target.closest(".reads");
  if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
  const buttons = [...row.children];
  const place = buttons.indexOf(event.target);
  const below = (step) => {
    const rows = [...byId("latents").querySelectorAll(".reads:not(:empty)")];
    const next = rows[rows.indexOf(row) + step];
    return next?.children[Math.min(place, next.children.length - 1)];
  };
  const targets = {
    ArrowLeft: () => buttons[place - 1],
    ArrowRight: () => buttons[place + 1],
    ArrowUp: () => below(-1),
    ArrowDown: () => below(1),
    Home: () => buttons[0],
    End: () => buttons.at(-1),
  };
  if (!(event.key in targets)) return;
  event.preventDefault();
  focusOn(targets[event.key]());
}

function fill(id, choices) {
  byId(id).replaceChildren(...Object.entries(choices).map(([value, name]) => element("option", { value }, name)));
  byId(id).addEventListener("change", ({ target }) => {
    state[id] = target.value;
    render();
  });
}

function start() {
  document.title = `${data.title} – atlas of latents`;
  byId("title").textContent = data.title;
  const layers = data.layers.length ? data.layers.join(", ") : "all cross-attends";
  byId("description").textContent =
    `${counted(data.latents.length, "latent")} over ${counted(data.num_samples, "sample")}. Weights: mean over the heads of ${layers}; uniform weights have an entropy of ${short(data.entropy_chance)} nats.`;
  byId("omitted").textContent = data.omitted
    ? `${data.omitted} pictures and sounds of less read inputs are left out to limit the size of the page; their places are in the .npz file next to it.`
    : "";
  byId("play-hint").hidden = !data.excerpts.some(({ sound }) => sound);
  fill("sort", Object.fromEntries(Object.entries(SORTS).map(([name, [label]]) => [name, label])));
  fill("modality", { [ALL]: ALL, ...Object.fromEntries(modalities.map((name) => [name, name])) });
  byId("modality").parentElement.hidden = modalities.length < 2;
  fill("theme", Object.fromEntries(THEMES.map((name) => [name, name])));
  byId("find").addEventListener("change", ({ target }) => {
    const heading = target.value === "" ? null : byId(`latent-${Number(target.value)}`);
    heading?.closest(".latent").scrollIntoView({ block: "center" });
    focusOn(heading?.closest(".latent").querySelector(".reads button"));
  });
  byId("latents").addEventListener("keydown", move);
  render();
}

start();
