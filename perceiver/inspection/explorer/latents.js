// All latents of the chosen layer and head as small maps, sorted by what is asked of them.

const MILLISECONDS_A_FRAME = 8;
let painting = null;

function renderLatents(look) {
  const layer = look?.content.layers[state.layer];
  byId("latents-section").hidden = !layer;
  if (!layer) return;
  const where = [state.run, state.event, state.sample, state.layer];
  when("latents", where, () => buildLatents(layer));
  when("order", [...where, state.head, state.sort, state.answer], () => orderLatents(look, layer));
  const drawing = [state.head, state.scale, state.range, state.colours];
  when("thumbnails", [...where, ...drawing, state.sort, state.answer], () => paintLatents(look));
  when("latent", [...where, state.latent, state.method], () => {
    for (const option of byId("latents").querySelectorAll('[tabindex="0"]')) {
      option.setAttribute("aria-selected", false);
      option.tabIndex = -1;
    }
    const chosen = optionOf(state.latent);
    // While the map is that of an answer, no latent is chosen; the grid keeps its stop of the tabulator.
    chosen.setAttribute("aria-selected", state.method === "map");
    chosen.tabIndex = 0;
  });
}

function buildLatents(layer) {
  const options = ["mean", ...layer.queries].map((latent) => {
    const canvases = layer.maps.cells.map(({ modality }) => {
      const { size, tokens: words } = page.samples[state.sample].modalities[modality];
      return element("canvas", { ".style": words ? "height:12px" : `aspect-ratio:${size[0]} / ${size[1]}` });
    });
    const label = element("small", {}, latent === "mean" ? "mean" : String(latent));
    return element(
      "div",
      { role: "option", "aria-selected": "false", tabindex: -1, "data-latent": latent },
      ...canvases,
      label,
    );
  });
  byId("latents").replaceChildren(...options);
  byId("latents").dataset.wide = layer.maps.cells.some(({ modality }) => {
    const [width, height] = page.samples[state.sample].modalities[modality].size;
    return width > 1.8 * height;
  });
  const { length } = layer.queries;
  byId("latents-kept").textContent =
    length < layer.num_queries ? `${length} of ${layer.num_queries} latents` : `all ${counted(length, "latent")}`;
}

// For each latent: the number to sort by, the greatest first, and how it is written.
function keysOf(look, layer) {
  const reads = layer.rollout[state.answer] ?? [];
  const entropies = layer.entropy[state.head === "mean" ? layer.num_heads : state.head];
  const stack = look.layer(state.layer, state.head);
  const part = stack.layout.find(({ modality }) => state.sort === `share:${modality}`);
  return layer.queries.map((latent, i) => {
    const isRead = Number.isFinite(reads[i]);
    const label = [`latent ${latent}`, `entropy ${short(entropies[i])} nats`];
    if (isRead) label.push(`${percent(reads[i])} of the answer comes in here`);
    const share = part ? massOf(stack.map(i), part) / massOf(stack.map(i)) : 0;
    const keys = { reads: reads[i] ?? 0, entropy: -entropies[i], number: -latent };
    const texts = { reads: isRead ? percent(reads[i]) : "", entropy: short(entropies[i]), number: "" };
    return {
      latent: String(latent),
      key: part ? share : keys[state.sort],
      text: part ? percent(share) : texts[state.sort],
      label: label.join(", "),
    };
  });
}

function orderLatents(look, layer) {
  const node = byId("latents");
  const options = new Map([...node.children].map((option) => [option.dataset.latent, option]));
  const keys = keysOf(look, layer);
  const chosen = document.activeElement;
  for (const { latent, text, label } of keys) {
    const option = options.get(latent);
    option.lastChild.textContent = text ? `${latent} · ${text}` : latent;
    option.setAttribute("aria-label", label);
    option.title = label;
  }
  const sorted = keys.sort((a, b) => b.key - a.key || a.latent - b.latent).map(({ latent }) => options.get(latent));
  node.replaceChildren(options.get("mean"), ...sorted);
  // Whoever moves through the grid by keys must not lose the place in it.
  if (node.contains(chosen)) chosen.focus();
  const answer = look.content.answers[state.answer];
  const share = layer.rollout[state.answer]?.reduce((sum, part) => sum + part, 0);
  byId("latents-read").textContent =
    answer && Number.isFinite(share)
      ? `By the rollout, ${percent(share)} of what ${quoted(answer.name)} rests on comes in through them, in ${layer.name}.`
      : "";
}

// In the order in which they stand there, and never for longer than a frame at a time.
function paintLatents(look) {
  cancelAnimationFrame(painting);
  const stack = look.layer(state.layer, state.head);
  const { queries: latents } = look.content.layers[state.layer];
  const { colours, scale } = state;
  const shared = state.range === "shared" ? stack.tops.map((top) => tone({ colours, scale, top })) : null;
  const waiting = [...byId("latents").children];
  const paint = () => {
    const end = performance.now() + MILLISECONDS_A_FRAME;
    while (waiting.length && performance.now() < end) {
      const option = waiting.shift();
      const { latent } = option.dataset;
      const map = latent === "mean" ? stack.mean : stack.map(latents.indexOf(Number(latent)));
      stack.layout.forEach((part, number) => {
        const tones = shared?.[number] ?? tone({ colours, scale, top: topOf({ map, stack }, number, state.range) });
        paintThumbnail(option.children[number], map, part, tones);
      });
    }
    painting = waiting.length ? requestAnimationFrame(paint) : null;
  };
  paint();
}

function optionOf(latent) {
  return byId("latents").querySelector(`[data-latent="${latent}"]`);
}

function chooseLatent(latent) {
  choose({ latent: latent === "mean" ? latent : Number(latent), method: "map" });
  announce(optionOf(latent).getAttribute("aria-label") ?? "mean over latents");
}

// From the chosen latent to another one in the order of the grid.
function moveLatent(step) {
  const options = [...byId("latents").children];
  const here = options.findIndex(({ dataset }) => dataset.latent === String(state.latent));
  const there = options[Math.max(0, Math.min(options.length - 1, here + step))];
  if (!there) return;
  const hadFocus = byId("latents").contains(document.activeElement);
  chooseLatent(there.dataset.latent);
  if (hadFocus) there.focus({ preventScroll: true });
  there.scrollIntoView({ block: "nearest" });
}

function listenToLatents() {
  const node = byId("latents");
  node.addEventListener("click", (event) => {
    const option = event.target.closest("[data-latent]");
    if (!option) return;
    chooseLatent(option.dataset.latent);
    option.focus({ preventScroll: true });
  });
  node.addEventListener("keydown", (event) => {
    const options = [...node.children];
    const columns = options.filter((option) => option.offsetTop === options[0].offsetTop).length;
    const last = options.length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -last, End: last };
    if (event.key in steps) moveLatent(steps[event.key]);
    else return;
    event.preventDefault();
  });
}
