// The figure: panes with planes for each modality, and their colour bars.

const MOST_HEIGHT = 360;
const MOST_HEIGHT_OF_SEVERAL = 250;
const ROOM_FOR_PLANE = 60; // ticks at the left and the gap between planes
const LEAST_WIDTH = 120;
const MOST_SHRUNK = 1.3;
const pictures = new Map();
const figure = { scene: null, modalities: [], cursor: null, sample: null, width: 0, isWaiting: true };

function pictureOf(url) {
  if (!pictures.has(url)) pictures.set(url, Object.assign(new Image(), { src: url }));
  return pictures.get(url);
}

async function preparePictures(sample) {
  const urls = Object.values(page.samples[sample]?.modalities ?? {}).map(({ picture }) => picture);
  await Promise.all(
    urls.filter(Boolean).map((url) =>
      pictureOf(url)
        .decode()
        .catch(() => null),
    ),
  );
}

function nameOfEvent({ run, event }) {
  const { name } = eventOf({ run, event });
  return page.runs.length > 1 ? `${name} of run ${run + 1}` : name;
}

// What is to be seen: {left, right, change, notes}; right and change are null where nothing is compared.
function sceneOf(chosen) {
  const look = lookAt(eventOf(chosen).explanation, chosen.sample);
  const left = look && shown(look, chosen);
  if (!left) return null;
  const scene = { chosen, look, left, right: null, change: null, notes: [...left.notes] };
  if (!chosen.compare) return scene;
  const name = nameOfEvent(chosen.compare);
  const other = lookAt(eventOf(chosen.compare).explanation, chosen.sample);
  const found = counterpart(look, other, name, chosen);
  const right = found.state && shown(other, found.state);
  const change = right && difference(left, right);
  if (right && !change) found.reason = `The cells of ${name} are not those of this map.`;
  if (change) Object.assign(scene, { right, change });
  scene.notes.push(...(found.notes ?? []), ...(found.reason ? [`Nothing to compare with: ${found.reason}`] : []));
  return scene;
}

function renderFigure() {
  // Pointer and window may ask for it while the chosen maps are still being unpacked.
  if (figure.isWaiting) return;
  const scene = sceneOf(preview === null ? state : previewed());
  figure.scene = scene;
  byId("figure").classList.toggle("empty", !scene);
  if (!scene) {
    byId("panes").replaceChildren(element("p", { class: "none" }, whyEmpty()));
    for (const id of ["shown", "readout", "notes", "shares", "verdict"]) byId(id).replaceChildren();
    for (const { sound } of figure.modalities) sound?.audio.pause();
    figure.modalities = [];
    forget("panes");
    return;
  }
  const { layout } = scene.left.stack;
  when("panes", [state.sample, layout, Boolean(scene.right), figure.width], () => buildPanes(scene));
  byId("shown").textContent = scene.left.title;
  paintPanes(scene);
  renderNotes(scene);
  renderShares(scene);
  renderReadout();
  byId("verdict").replaceChildren(...verdictOf(scene.chosen));
}

function whyEmpty() {
  if (!looked.length) return "No maps are kept in this page, only numbers.";
  return `${nameOfEvent(state)} has no maps of this sample. Choose another event or sample.`;
}

function panesOf(description, comparing) {
  if (!comparing) return description.tokens ? ["over"] : ["over", "alone"];
  return description.tokens ? ["over", "other", "change"] : ["over", "other", "alone", "other-alone", "change"];
}

function captionOf(kind, description) {
  const input = description.picture ? "input with the map over it" : "map over the input";
  const [here, there] = [nameOfEvent(state), state.compare ? nameOfEvent(state.compare) : ""];
  if (kind === "change") return `difference: ${here} − ${there}`;
  const what = kind.endsWith("alone") ? "map alone" : input;
  if (!state.compare || !figure.scene.right) return what;
  return `${kind.startsWith("other") ? there : here}: ${what}`;
}

function buildPanes(scene) {
  const { layout } = scene.left.stack;
  const comparing = Boolean(scene.right);
  const panes = byId("panes");
  const { width } = figure;
  const most = width < 560 ? 1 : comparing && width >= 760 ? 3 : 2;
  const tallest = layout.length > 1 ? MOST_HEIGHT_OF_SEVERAL : MOST_HEIGHT;
  const before = new Map(figure.modalities.map(({ name, sound }) => [name, sound]));
  if (figure.sample !== state.sample) {
    for (const sound of before.values()) sound?.audio.pause();
    before.clear();
  }
  figure.sample = state.sample;
  figure.modalities = layout.map((part, number) => {
    const description = page.samples[state.sample].modalities[part.modality];
    const planes = panesOf(description, comparing).map((kind) => planeOf(kind, description, part));
    // What is much wider than a column, as long sounds are, gets all the width.
    const room = (columns) => Math.max(LEAST_WIDTH, width / columns - ROOM_FOR_PLANE);
    const fits = (columns) => !description.tokens && description.size[0] <= MOST_SHRUNK * room(columns);
    const columns = [3, 2].find((count) => count <= most && fits(count)) ?? 1;
    for (const plane of planes) plane.fit(room(columns), tallest);
    const bars = { map: element("div", { class: "bar" }), change: comparing ? element("div", { class: "bar" }) : null };
    const captions = planes.map(() => element("figcaption"));
    const sound = before.get(part.modality) ?? soundOf(part.modality, description);
    const modality = { name: part.modality, number, part, description, planes, bars, captions, sound };
    modality.node = element(
      "section",
      { class: "modality", "data-modality": part.modality, "data-columns": columns },
      element("h4", {}, part.modality, " ", element("small", {}, factsOf(description, part))),
      element(
        "div",
        { class: "planes" },
        ...planes.map((plane, i) =>
          element("figure", { class: "pane", "data-pane": plane.kind }, captions[i], plane.node),
        ),
      ),
      sound?.node,
      element("div", { class: "bars" }, bars.map, bars.change),
    );
    listen(modality);
    return modality;
  });
  panes.replaceChildren(...figure.modalities.map(({ node }) => node));
  for (const { sound } of figure.modalities) sound?.show();
  const { cursor } = figure;
  const stays = ({ name, part }) =>
    name === cursor.modality && cursor.place[0] < part.rows && cursor.place[1] < part.columns;
  if (cursor && !figure.modalities.some(stays)) figure.cursor = null;
}

function factsOf({ tokens: words, levels }, { rows, columns, pooled }) {
  const facts = [words ? counted(words.length, "token") : `${rows} × ${columns} cells`];
  if (pooled.some((factor) => factor > 1)) facts.push(`each the sum of ${pooled[0]} × ${pooled[1]} tokens`);
  if (levels)
    facts.push(`grey: ${short(levels.low)} ${levels.unit} (black) to ${short(levels.high)} ${levels.unit} (white)`);
  return facts.join(" · ");
}

function paintPanes({ left, right, change, chosen, look }) {
  const { scale, colours, range, alpha, mark } = chosen;
  for (const modality of figure.modalities) {
    const { number, part, description, planes } = modality;
    const top = Math.max(topOf(left, number, range), right ? topOf(right, number, range) : 0);
    const tones = tone({ colours, scale, top });
    const sides = { over: left.map, alone: left.map, other: right?.map, "other-alone": right?.map, change };
    const extent = change ? largest(change.map(Math.abs), part) : 0;
    const changes = change && tone({ scale, top: extent, isSigned: true });
    const boxes = chosen.boxes ? boxesOf(look, chosen.answer, part.modality) : [];
    planes.forEach((plane, i) => {
      const isChange = plane.kind === "change";
      const isOver = !isChange && !plane.kind.endsWith("alone");
      const picture = isOver && description.picture ? pictureOf(description.picture) : null;
      const caption = captionOf(plane.kind, description);
      modality.captions[i].textContent = caption;
      const options = {
        map: sides[plane.kind],
        tones: isChange ? changes : tones,
        picture,
        boxes,
        mark: mark && !isChange,
        alpha: picture || (description.tokens && !isChange) ? alpha : 1,
      };
      plane.paint(options, `${part.modality}, ${caption}. ${left.title}`);
    });
    const clipped = left.map.subarray(part.start, part.stop).filter((value) => value > top * 1.0001).length;
    const beyond = clipped ? `; ${counted(clipped, "cell")} above it` : "";
    const floor = scale === "log" && top > 0 ? `; all below ${short(top / 10 ** DECADES)} in the darkest` : "";
    const both = right ? " and of what it is compared with" : "";
    const ends = `${rangeText(range, chosen.method)}${both}${beyond}${floor}`;
    paintBar(modality.bars.map, tones, `${left.unit}, ${scale} scale; ${ends}`);
    if (!change) continue;
    paintBar(modality.bars.change, changes, `difference of ${left.unit}, ${scale} scale; no change in the middle`);
  }
}

// Where the answer truly is, and thin: where everything else is.
function boxesOf(look, answer, modality) {
  const { name, boxes } = look.content.answers[answer] ?? {};
  const own = boxes?.[modality] ?? [];
  const same = (a, b) => ["left", "top", "right", "bottom"].every((side) => Math.abs(a[side] - b[side]) < 1e-6);
  const others = page.samples[state.sample].modalities[modality].boxes.filter(
    (box) => !own.some((mine) => same(mine, box)),
  );
  return [...others, ...own.map((box) => ({ ...box, name: name ?? "", isAnswer: true }))];
}
