// Values of the figure: notes, the shares of the modalities, and the cell under the pointer or keyboard cursor.

const ROUNDING = 1e-6;

function renderNotes(scene) {
  const peaks = scene.selected.peak ? figure.modalities.map((modality) => peakText(scene, modality)) : [];
  const hidden = hiddenText(scene.left);
  byId("notes").replaceChildren(...[...scene.notes, ...hidden, ...peaks].map((note) => element("li", {}, note)));
}

// Position and value of the peak, and whether it lies in a box of the answer.
function peakText({ left, explanation, selected }, { name, part, description }) {
  const cell = peakCell(left.map, part);
  if (!cell && left.errors) {
    const isMasked = left.marks?.subarray(part.start, part.stop).every((mark) => mark === MASKED);
    return isMasked ? `All of ${name} is masked.` : `No score over ${name} is above the mean.`;
  }
  if (!cell) return left.isSigned ? `No evidence for it over ${name}.` : `All values over ${name} are zero.`;
  const text = `Peak in ${name}: ${cellText(description, part, cell)} · ${valueText(left, part, cell)}`;
  const answer = explanation.answers[selected.answer];
  const boxes = answer?.boxes[name] ?? [];
  if (!boxes.length) {
    const isUnknown = answer && !answer.is_word && description.boxes.length;
    return isUnknown ? `${text}; ${quoted(answer.name)} has no box here.` : `${text}.`;
  }
  const [rows, columns] = cellBounds(cell, part, description.shape);
  const overlaps = ([low, high], from, to) => Math.min(high, to) - Math.max(low, from) > ROUNDING * (high - low);
  // As in the pointing game, overlap suffices: cells may be larger than boxes.
  const isHit = boxes.some((box) => overlaps(columns, box.left, box.right) && overlaps(rows, box.top, box.bottom));
  return `${text}; ${isHit ? "inside" : "outside"} the box of ${quoted(answer.name)}.`;
}

function valueText({ map, unit, marks, errors }, part, cell) {
  const index = cellIndex(part, cell);
  if (marks?.[index]) return marks[index] === MASKED ? "masked" : "hidden: an attention sink";
  if (errors) return scoreText({ map, errors }, index);
  const value = map[index];
  return `${unit} ${short(value)} (${percent(Math.abs(value) / massOf(map))} of the map)`;
}

function setCursor(cursor) {
  figure.cursor = cursor;
  renderReadout();
}

function renderReadout() {
  const { scene, cursor, modalities } = figure;
  if (!scene) return;
  for (const { name, panels } of modalities) {
    for (const panel of panels) panel.showCell(cursor?.modality === name ? cursor.cell : null);
  }
  byId("readout").classList.toggle("live", Boolean(cursor));
  if (!cursor) {
    byId("readout").textContent = "Hover over a map, or focus it and press the arrow keys, to read its values.";
    return;
  }
  const { part, description } = modalities.find(({ name }) => name === cursor.modality);
  const { left, right, change } = scene;
  const texts = [`${cursor.modality}, ${cellText(description, part, cursor.cell)}`, valueText(left, part, cursor.cell)];
  const index = cellIndex(part, cursor.cell);
  if (right) {
    texts.push(`${eventName(state.compare)}: ${short(right.map[index])}`, `difference ${signed(change[index])}`);
  }
  byId("readout").textContent = texts.join(" · ");
}

// [[name, the share of each modality]] of the map, and of all queries of the selected layer.
function shareRows({ left, explanation, selected }) {
  const { layout } = left.stack;
  const rows = [["this map", left.weights ?? left.map]];
  const layer = explanation.layers[selected.layer];
  if (layer) {
    const name = `${layer.name}, all ${plural(layer.query_kind)}`;
    rows.push([name, explanation.layerMaps(selected.layer, selected.head).mean]);
  }
  return rows.map(([name, map]) => {
    const mass = massOf(map);
    return [name, layout.map((part) => (mass > 0 ? massOf(map, part) / mass : 0))];
  });
}

const shareText = (layout, shares) => layout.map(({ modality }, i) => `${modality} ${percent(shares[i])}`).join(" · ");

// Bars with the share of each modality, where there are several.
function renderShares(scene) {
  const { layout } = scene.left.stack;
  const bars = shareRows(scene).map(([name, shares]) => {
    const parts = shares.map((share, i) =>
      element("span", { class: `part run${i % 4}`, ".style": `width:${100 * share}%` }),
    );
    const track = element("span", { class: "track" }, ...parts);
    return element("div", { class: "share" }, element("span", {}, name), track, element("span", {}, shareText(layout, shares)));
  });
  byId("shares").hidden = layout.length === 1;
  byId("share-rows").replaceChildren(...bars);
}

const sharesView = {
  label: "the shares",
  parts: () => selectionParts("shares"),
  svg: () => sharesDrawing(figure.scene.left, shareRows(figure.scene)),
  csv: () => {
    const names = figure.scene.left.stack.layout.map(({ modality }) => modality);
    return [["map", ...names], ...shareRows(figure.scene).map(([name, shares]) => [name, ...shares])];
  },
};

// Selects the query of the place of an output that is nearest to a position, if the layer has such queries.
function selectPlace({ axes }, position) {
  const { explanation, selected } = figure.scene;
  const layer = explanation.layers[selected.layer];
  if (selected.method !== "attention" || !layer?.places) return;
  const point = position.map((fraction, axis) => (axes[axis].start <= axes[axis].stop ? fraction : 1 - fraction));
  const distances = layer.places.map((place) =>
    Math.hypot(...place.map((fraction, axis) => fraction - point.at(axis - place.length))),
  );
  setState(controlChange("query", String(layer.queries[distances.indexOf(Math.min(...distances))])));
}

// Pointer and keys on the panels of a modality, of which only the first is a tab stop.
function listenToModality({ name, part, description, panels, player }) {
  for (const panel of panels) {
    for (const kind of ["pointermove", "pointerdown"]) {
      panel.stage.addEventListener(kind, (event) => {
        const cell = panel.cellAt(event);
        if (cell) setCursor({ modality: name, cell });
      });
    }
    panel.stage.addEventListener("pointerleave", () => {
      if (figure.cursor?.modality === name && document.activeElement !== panels[0].stage) setCursor(null);
    });
    panel.stage.addEventListener("click", (event) => selectPlace(description, panel.positionOf(event)));
    if (player) panel.stage.addEventListener("click", (event) => player.seek(panel.positionOf(event)[1]));
  }
  const { stage } = panels[0];
  stage.tabIndex = 0;
  stage.setAttribute("role", "group");
  stage.setAttribute("aria-roledescription", "map");
  const seeking = player ? "; Enter seeks to its time" : "";
  stage.setAttribute("aria-label", `map of ${name}: the arrow keys move the cell cursor${seeking}`);
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  stage.addEventListener("keydown", (event) => {
    const cell = figure.cursor?.modality === name ? figure.cursor.cell : null;
    if (event.key === "Escape") setCursor(null);
    else if (event.key === "Enter" && player && cell) player.seek(cellBounds(cell, part, description.shape)[1][0]);
    else if (event.key in moves) {
      const start = cell ?? peakCell(figure.scene.left.map, part) ?? [0, 0];
      const last = [part.rows - 1, part.columns - 1];
      const step = cell ? moves[event.key] : [0, 0];
      const moved = start.map((index, axis) => Math.max(0, Math.min(last[axis], index + step[axis])));
      setCursor({ modality: name, cell: moved });
      announce(byId("readout").textContent);
    } else return;
    event.preventDefault();
  });
}
