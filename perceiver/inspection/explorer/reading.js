// Reading the figure: notes, the shares of the modalities, and the cell that pointer or keys have moved to.

function renderNotes(scene) {
  const notes = [...scene.notes];
  if (scene.chosen.mark) notes.push(...figure.modalities.map((modality) => pointing(scene, modality)).filter(Boolean));
  byId("notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
}

// Whether the brightest cell lies in a box of the answer.
function pointing({ left, look, chosen }, { part, description }) {
  if (!markPlace(left.map, part, description.shape)) return `Nothing of ${part.modality} is marked.`;
  const where = placeText(description, part, cellOf(brightest(left.map, part), part));
  const start = `Brightest of ${part.modality}: ${where}`;
  const answer = look.content.answers[chosen.answer];
  const boxes = answer?.boxes?.[part.modality] ?? [];
  if (!answer || description.tokens || (answer.is_word && !boxes.length)) return `${start}.`;
  if (!boxes.length && !description.boxes.length) return `${start}.`;
  if (!boxes.length) return `${start}; no box of ${quoted(answer.name)} is known here.`;
  const cell = cellOf(brightest(left.map, part), part);
  const [[top, bottom], [first, last]] = cell.map((index, axis) =>
    cellSpan(index, part.pooled[axis], description.shape[axis]),
  );
  // As in the pointing game, a cell that a box touches is in it: cells may be larger than boxes.
  const touches = (box) => overlap(first, last, box.left, box.right) && overlap(top, bottom, box.top, box.bottom);
  const inside = boxes.some(touches);
  return `${start}, ${inside ? "inside" : "outside"} the box of ${quoted(answer.name)}.`;
}

const ROUNDING = 1e-6;
const overlap = (low, high, from, to) => Math.min(high, to) - Math.max(low, from) > ROUNDING * (high - low);
const cellOf = (index, part) => [Math.floor(index / part.columns), index % part.columns];

function placeText({ axes, shape, tokens: words, strip }, part, [row, column]) {
  if (words) {
    const factor = part.pooled[1];
    const here = words.slice(column * factor, (column + 1) * factor).join(" ");
    return `${quoted(here)} (token ${column * factor + 1})`;
  }
  const cells = [row, column];
  const texts = axes.map((axis, i) => (axis.name ? cellText(axis, cells[i], part.pooled[i], shape[i]) : null));
  if (strip) texts[1] = stripText(strip, column * part.pooled[1], Math.min((column + 1) * part.pooled[1], shape[1]) - 1);
  return texts.filter(Boolean).join(", ");
}

// Where columns of a film strip lie along each of the axes that make it, the innermost of which changes fastest.
function stripText(strip, first, last) {
  const texts = [];
  for (const { axis, count } of [...strip].reverse()) {
    const isWithin = Math.floor(first / count) === Math.floor(last / count);
    const [from, to] = isWithin ? [first % count, last % count] : [0, count - 1]; // of several frames all of each
    texts.unshift(spanText(axis, from / count, (to + 1) / count));
    [first, last] = [first, last].map((column) => Math.floor(column / count));
  }
  return texts.join(", ");
}

function setCursor(cursor, isSpoken = false) {
  figure.cursor = cursor;
  renderReadout();
  if (isSpoken) announce(byId("readout").textContent);
}

function renderReadout() {
  const { scene, cursor, modalities } = figure;
  if (!scene) return;
  for (const { name, planes } of modalities) {
    for (const plane of planes) plane.showCell(cursor?.modality === name ? cursor.place : null);
  }
  const modality = modalities.find(({ name }) => name === cursor?.modality) ?? modalities[0];
  const { part, description } = modality;
  const place = cursor ? cursor.place : cellOf(brightest(scene.left.map, part), part);
  const cell = part.start + place[0] * part.columns + place[1];
  const value = scene.left.map[cell];
  const texts = [
    `${cursor ? "" : "brightest: "}${part.modality}, ${placeText(description, part, place)}`,
    `${scene.left.unit} ${short(value)}`,
    `${percent(value / massOf(scene.left.map))} of the map`,
  ];
  if (scene.right) texts.push(`there ${short(scene.right.map[cell])}`, `difference ${signed(scene.change[cell])}`);
  byId("readout").textContent = texts.join(" · ");
  byId("readout").classList.toggle("live", Boolean(cursor));
}

function renderShares({ left, look, chosen }) {
  const { layout } = left.stack;
  if (layout.length === 1) {
    byId("shares").replaceChildren(`100 % of it lies in ${layout[0].modality}, the only modality.`);
    return;
  }
  const rows = [["this map", left.map]];
  const layer = look.content.layers[chosen.layer];
  if (layer) rows.push([`${layer.name}, all latents`, look.layer(chosen.layer, chosen.head).mean]);
  const bars = rows.map(([name, map]) => {
    const mass = massOf(map);
    const shares = layout.map((part) => ({ name: part.modality, share: mass > 0 ? massOf(map, part) / mass : 0 }));
    const text = shares.map(({ name: modality, share }) => `${modality} ${percent(share)}`).join(" · ");
    const parts = shares.map(({ share }, i) =>
      element("span", { class: `part part${i % 4}`, ".style": `width:${100 * share}%` }),
    );
    return element(
      "div",
      { class: "share" },
      element("span", {}, name),
      element("span", { class: "track" }, ...parts),
      element("span", {}, text),
    );
  });
  byId("shares").replaceChildren(element("h4", {}, "Share of each modality"), ...bars);
}

// Pointer and keys on the planes of a modality. Only the first of them is a stop of the tabulator.
function listen({ name, part, planes, sound }) {
  for (const plane of planes) {
    for (const kind of ["pointermove", "pointerdown"]) {
      plane.stage.addEventListener(kind, (event) => {
        const place = plane.cellAt(event);
        if (place) setCursor({ modality: name, place });
      });
    }
    plane.stage.addEventListener("pointerleave", () => {
      if (document.activeElement !== planes[0].stage) setCursor(null);
    });
    if (!sound) continue;
    plane.stage.classList.add("seekable");
    plane.stage.addEventListener("click", (event) => sound.seek(plane.timeAt(event)));
  }
  const { stage, description } = planes[0];
  const { shape } = description;
  stage.tabIndex = 0;
  stage.setAttribute("role", "group");
  stage.setAttribute("aria-roledescription", "map");
  stage.setAttribute(
    "aria-label",
    `map of ${name}: the arrow keys move the cell${sound ? ", Enter goes there in the sound" : ""}`,
  );
  stage.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const here = figure.cursor?.modality === name ? figure.cursor.place : null;
    if (event.key === "Escape") setCursor(null);
    else if (event.key === "Enter" && sound && here) sound.seek(cellSpan(here[1], part.pooled[1], shape[1])[0]);
    else if (move) {
      const from = here ?? cellOf(brightest(figure.scene.left.map, part), part);
      const most = [part.rows - 1, part.columns - 1];
      const to = here ? from.map((index, axis) => Math.max(0, Math.min(most[axis], index + move[axis]))) : from;
      setCursor({ modality: name, place: to }, true);
    } else return;
    event.preventDefault();
  });
}
