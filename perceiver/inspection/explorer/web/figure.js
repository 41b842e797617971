// The figure: for each modality its panels, color bars and player.

const MAX_HEIGHT = 360;
const MAX_HEIGHT_OF_SEVERAL = 250; // modalities
const PANEL_MARGIN = 60; // for ticks and gaps
const MIN_WIDTH = 120;
const MAX_SHRINKAGE = 1.3; // of a panel, before the number of columns is reduced
const images = new Map();
const figure = { scene: null, modalities: [], cursor: null, width: 0, isLoading: true };

function imageOf(url) {
  if (!images.has(url)) images.set(url, Object.assign(new Image(), { src: url }));
  return images.get(url);
}

function decodeImages(sample) {
  const urls = Object.values(page.samples[sample]?.modalities ?? {}).flatMap(({ picture }) => picture ?? []);
  return Promise.all(urls.map((url) => imageOf(url).decode().catch(() => null)));
}

// What the figure shows: {selected, explanation, left, right, change, notes}; without a comparison right and change are
// null. Null if there is no map.
function createScene(selected) {
  const explanation = explanationAt(selected, selected.sample);
  const left = explanation && selectMap(explanation, selected);
  if (!left) return null;
  const scene = { selected, explanation, left, right: null, change: null, notes: left.notes };
  if (!selected.compare) return scene;
  const other = explanationAt(selected.compare, selected.sample);
  const { state: matching, notes = [], reason } = correspondingState(explanation, other, selected);
  const right = matching && selectMap(other, matching);
  const isSameQuantity = Boolean(left.errors) === Boolean(right?.errors);
  const change = right && isSameQuantity ? differenceOf(left, right) : null;
  if (change) return { ...scene, right, change, notes: [...left.notes, ...notes] };
  const has = isSameQuantity ? "the maps of" : "no scores are known of";
  const why = reason ?? `${has} ${eventName(selected.compare)}${isSameQuantity ? " have other cells" : ""}.`;
  return { ...scene, notes: [...left.notes, `No comparison: ${why}`] };
}

// preview: the answer under the pointer, if any, which is shown instead of the selected one.
function renderFigure(preview = null) {
  // Pointer and window may cause a call while maps are being unpacked.
  if (figure.isLoading) return;
  const method = state.method === "attention" ? state.attribution || "attention" : state.method;
  const scene = createScene(preview === null ? state : { ...state, answer: preview, method });
  figure.scene = scene;
  const { sample, run, event } = state;
  const dependencies = scene
    ? [sample, scene.left.stack.layout, Boolean(scene.right), figure.width, state.frame === ALL_FRAMES]
    : ["empty", sample, run, event];
  renderOnChange("panels", dependencies, () => (scene ? renderPanels(scene) : renderNoMap()));
  if (!scene) return;
  byId("map-title").textContent = scene.left.title;
  byId("verdict").replaceChildren(...verdictOf(scene));
  paintPanels(scene);
  figure.modalities.forEach(showFrames);
  renderNotes(scene);
  renderShares(scene);
  renderReadout();
}

function renderNoMap() {
  const reason = eventsWithMaps.length
    ? `${eventName(state)} has no maps of this sample; select another step or sample.`
    : "This page contains statistics, but no maps.";
  byId("panels").replaceChildren(element("p", { class: "none" }, reason));
  for (const id of ["map-title", "readout", "notes", "verdict"]) byId(id).replaceChildren();
  byId("shares").hidden = true;
  pausePlayers();
  figure.modalities = [];
}

function panelKinds({ tokens }, isComparison) {
  const kinds = isComparison ? ["overlay", "other-overlay", "map", "other-map", "difference"] : ["overlay", "map"];
  return kinds.filter((kind) => !tokens || !kind.endsWith("map"));
}

function captionOf(kind, { picture }, isComparison) {
  const [name, other] = [state, state.compare].map((event) => event && eventName(event));
  if (kind === "difference") return `difference: ${name} − ${other}`;
  const content = kind.endsWith("map") ? "map" : picture ? "map over input" : "map over tokens";
  return isComparison ? `${kind.startsWith("other") ? other : name}: ${content}` : content;
}

function renderPanels({ left: { stack }, right }) {
  renderOnChange("players", [state.sample], () => {
    pausePlayers();
    players.clear();
  });
  const maxHeight = stack.layout.length > 1 ? MAX_HEIGHT_OF_SEVERAL : MAX_HEIGHT;
  figure.modalities = stack.layout.map((part, index) => createModality(part, index, Boolean(right), maxHeight));
  // A change of the width alone must not take the focus from who uses the keyboard.
  const focusable = () => [...byId("panels").querySelectorAll("[tabindex], button, input, select")];
  const focused = focusable().indexOf(document.activeElement);
  byId("panels").replaceChildren(...figure.modalities.map(({ node }) => node));
  focusable()[focused]?.focus({ preventScroll: true });
  for (const { player } of figure.modalities) player?.show();
  const { cursor } = figure;
  const isCursorValid = figure.modalities.some(
    ({ name, part }) => name === cursor?.modality && cursor.cell[0] < part.rows && cursor.cell[1] < part.columns,
  );
  if (!isCursorValid) figure.cursor = null;
}

function createModality(part, index, isComparison, maxHeight) {
  const name = part.modality;
  const description = page.samples[state.sample].modalities[name];
  const panels = panelKinds(description, isComparison).map((kind) => createPanel(kind, description, part));
  // What is much wider than a column, such as a long sound, gets the full width.
  const widthOf = (columns) => Math.max(MIN_WIDTH, figure.width / columns - PANEL_MARGIN);
  const width = description.size[0] / (selectedFrame(description) === null ? 1 : numFrames(description));
  const fits = (columns) => !description.tokens && width <= MAX_SHRINKAGE * widthOf(columns);
  const maxColumns = figure.width < 560 ? 1 : isComparison && figure.width >= 760 ? 3 : 2;
  const columns = [3, 2].find((count) => count <= maxColumns && fits(count)) ?? 1;
  for (const panel of panels) panel.fit(widthOf(columns), maxHeight);
  const player = playerFor(name, description, panels);
  const versions = versionsOf({ name, description });
  const mapBar = element("div", { class: "bar" });
  const changeBar = isComparison ? element("div", { class: "bar" }) : null;
  const frames = frameControls({ name, description });
  const modality = { name, index, part, description, panels, player, frames, versions, mapBar, changeBar };
  modality.node = element(
    "section",
    { class: "modality", "data-modality": name, "data-columns": columns },
    element("h4", {}, name, " ", element("small", {}, summaryOf(description, part))),
    element("div", { class: "panels" }, ...panels.map(({ node }) => node)),
    frames?.node,
    player?.node,
    versions?.node,
    element("div", { class: "bars" }, mapBar, changeBar),
  );
  listenToModality(modality);
  return modality;
}

function summaryOf(description, { rows, columns, pooled }) {
  const { tokens, levels } = description;
  const frames = numFrames(description);
  const cells = frames > 1 ? `${frames} frames, in all ${rows} × ${columns} cells` : `${rows} × ${columns} cells`;
  const facts = [tokens ? counted(tokens.length, "token") : cells];
  if (Math.max(...pooled) > 1) facts.push(`each the sum of ${pooled[0]} × ${pooled[1]} tokens`);
  if (levels) {
    facts.push(`gray: ${short(levels.low)} ${levels.unit} (black) to ${short(levels.high)} ${levels.unit} (white)`);
  }
  return facts.join(" · ");
}

function paintPanels({ left, right, change, selected, explanation }) {
  const { scale, colormap, range, opacity, peak } = selected;
  for (const { name, index, part, description, panels, mapBar, changeBar } of figure.modalities) {
    const top = Math.max(rangeMaximum(left, index, range), right ? rangeMaximum(right, index, range) : 0);
    const colors = colorScale({ colormap, scale, top, isSigned: left.isSigned });
    const changeTop = change && maximum(change.map(Math.abs), part);
    const changeColors = change && colorScale({ scale, top: changeTop, isSigned: true });
    const boxes = selected.boxes ? boxesOf(explanation.answers[selected.answer], name) : [];
    for (const panel of panels) {
      const isChange = panel.kind === "difference";
      const image = panel.kind.endsWith("overlay") && description.picture ? imageOf(description.picture) : null;
      const caption = captionOf(panel.kind, description, Boolean(right));
      panel.caption.textContent = caption;
      const options = {
        map: isChange ? change : panel.kind.startsWith("other") ? right.map : left.map,
        marks: isChange ? marksOfBoth(left, right) : panel.kind.startsWith("other") ? right.marks : left.marks,
        colors: isChange ? changeColors : colors,
        image,
        boxes,
        showPeak: peak && !isChange,
        opacity: image || (description.tokens && !isChange) ? opacity : 1,
      };
      panel.paint(options, `${name}, ${caption}. ${left.title}`);
      const unit = isChange ? `difference in ${left.unit}` : left.unit;
      const errors = isChange ? null : panel.kind.startsWith("other") ? right.errors : left.errors;
      const subtitle = [page.samples[selected.sample].id, eventName(state), `${name}, ${caption}`].join(" · ");
      panel.painted = { ...options, unit, errors, title: left.title, subtitle, barCaption: `${unit}, ${scale} scale` };
    }
    const limits = [rangeText(selected, Boolean(right))];
    const isClipped = (value) => Math.abs(value) > top * 1.0001;
    const clipped = left.map.subarray(part.start, part.stop).filter(isClipped).length;
    if (clipped) limits.push(`${counted(clipped, "cell")} above it`);
    if (scale === "log" && top > 0) limits.push(`values below ${short(top / 10 ** NUM_DECADES)} clipped`);
    renderColorBar(mapBar, colors, `${left.unit}, ${scale} scale; ${limits.join("; ")}`);
    if (change) renderColorBar(changeBar, changeColors, `difference in ${left.unit}, ${scale} scale`);
  }
}

const marksOfBoth = ({ marks }, other) => marks?.map((mark, cell) => mark || other.marks?.[cell]) ?? other.marks;

function rangeText({ range, method }, isComparison) {
  const texts = {
    own: "range of this map",
    clipped: "range up to the 99th percentile of this map",
    map: "one range for all modalities of this map",
    shared: `one range for all ${method === "attention" ? "maps of this layer and head" : "answers"}`,
  };
  return `${texts[range]}${isComparison ? " and the map compared with" : ""}`;
}

// The boxes of the answer, and those of everything else in the sample.
function boxesOf(answer, modality) {
  const own = answer?.boxes[modality] ?? [];
  const isSame = (a, b) => ["left", "top", "right", "bottom"].every((side) => Math.abs(a[side] - b[side]) < 1e-6);
  const all = page.samples[state.sample].modalities[modality].boxes;
  const others = all.filter((box) => !own.some((mine) => isSame(mine, box)));
  return [...others, ...own.map((box) => ({ ...box, name: answer.name, isAnswer: true }))];
}
