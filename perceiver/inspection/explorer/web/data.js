// The data of the page, and maps, which are unpacked when they are first shown.
//
// The page, in the block with that id:
//   title
//   initial_events  [[run, event]]: the event shown first, and the one it is compared with; both optional
//   runs      [{name, events}], events in the order of their steps: name, step, epoch;
//             explanation: index of its maps, or null; values: {name: number};
//             faithfulness: null, or: num_samples (if 0, no curves and maps), fractions (of tokens masked or shown),
//             curves {deletion, insertion: {map or null: probability of the answers at each fraction}},
//             stages {map: rank correlation with the original map after each stage of randomization},
//             chance {score: value of an uninformative map}, maps {map: title, scores {score: {mean, low, high}},
//             differences {null: {deletion, insertion: {mean, low, high}}}, p, and the verdict: mark, brief, sentence};
//             sinks: null, or: criterion {times_uniform, sample_share}, num_samples, fewest_samples, mass, numbers {layer:
//             number of sinks}, found [{layer, modality, row, column, sample_share, weight}]
//   live      null, or what a page that is served needs, see `live.js`
//   colormaps, difference, outline: see `perceiver/inspection/drawing/colormap.py`
//   samples   [{id, ground_truth: [line], modalities: {name: as below}}]
//     axes    of rows and columns: name, unit, start (top, left), stop, scale: "linear" or "mel"; no name: no such axis
//     ticks   of rows and columns: [{place: fraction, label}]; shape: rows and columns of its tokens
//     strip   null, or [{axis, count}]: the axes along the columns, where frames lie side by side, the outermost first
//     size    preferred width and height; picture: null or a data URL, of exactly the extent of the axes
//     levels  null, or {unit, low, high}: the values of black and white in the picture
//     sound   null or a data URL, with its length in seconds; tokens: null, or the text of each token
//     versions  [{name, picture, sound}]: what the model sees and predicts at the last step; either may be null
//     boxes   [{name, left, top, right, bottom}] as fractions of width and height
//
// For each explanation and sample one block:
//   answers   [{name, detail, is_word, output, boxes: {modality: [box]}}]: the most probable classes, or the words of a text,
//             or both; then the annotated classes that are not among them
//   layers    [{name, query_kind: "latent", "query" or "place", num_queries, queries: indices of those with maps,
//             places: null, or of queries that are places of an output: [fraction along each axis], num_heads,
//             scores: null if weights are not a softmax of scores, or log_weight [heads][queries]: mean over the tokens that
//             are not masked, and visible: null, or bits of [heads, queries] × the tokens of all planes, compressed,
//             entropy: [heads, then their mean][queries], maps: of [heads, queries],
//             rollout: [answers][queries], the share of an answer's rollout through each query}]
//   methods   [{name, label, unit, shared: the same for all answers, residual: null or [answers], maps: of [answers]}],
//             of which the first that is not shared is the default; where evidence against answers is known, also
//             against: maps of [answers], balance: [answers], the share of the evidence for an answer in that of both,
//             and contrast: {foils: [answers][foils] of {name, probability}, maps: of [answers, foils], against, balance}
//   knockouts [{kind: "modalities", "latents", "heads" or "layers", parts: [name], change: [answers][parts], the
//             probability of an answer without a part minus the usual one, effect: [parts], the mean of its size}]
//   note      why a method is missing, or empty
// `perceiver/inspection/explorer/packing.py` describes the format of maps.

const MAX_CACHED_EXPLANATIONS = 6;
const [HIDDEN, MASKED] = [1, 2]; // marks of a cell that is hidden as an attention sink, or whose tokens are masked
const page = JSON.parse(document.getElementById("page").textContent);
const explanations = new Map();

const eventsWithMaps = page.runs.flatMap(({ events }, run) =>
  events.flatMap(({ explanation }, event) => (Number.isInteger(explanation) ? [{ run, event }] : [])),
);

const valueNames = [...new Set(page.runs.flatMap(({ events }) => events.flatMap(({ values }) => Object.keys(values))))];
// The chance level of `pointing_game` is `pointing_game_chance`; for one kind of word, `pointing_game_chance_color`.
const isChance = (name) => /_chance(_|$)/.test(name);
const chanceNames = new Map(valueNames.filter(isChance).map((name) => [name.replace("_chance", ""), name]));
const statistics = valueNames.filter((name) => !isChance(name)).sort();

function eventAt({ run, event }) {
  return page.runs[run].events[event] ?? { name: "", explanation: null, values: {}, faithfulness: null };
}

function eventName({ run, event }) {
  const { name } = eventAt({ run, event });
  return page.runs.length > 1 ? `${name} of run ${run + 1}` : name;
}

const runLabel = ({ name }, run) => (page.runs.length > 1 ? `run ${run + 1}: ${name}` : name);

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

// Maps over the same cells. layout: [{modality, rows, columns, pooled, start, stop}], the cells of each modality;
// marks: of the cells that have no value, where there are any; hiddenShares: of each map's mass, that of hidden cells.
class MapStack {
  constructor(layout, values) {
    Object.assign(this, { layout, values, numCells: layout.at(-1).stop, marks: null, hiddenShares: null });
    this.count = values.length / this.numCells;
  }

  // Blanks the marked cells; the others of each map, and of the mean, are scaled to its previous mass.
  without(marks) {
    const shown = new MapStack(this.layout, this.values.slice());
    const hide = (map) => {
      const mass = massOf(map);
      marks.forEach((mark, cell) => mark && (map[cell] = 0));
      const kept = massOf(map);
      for (let cell = 0; cell < map.length; cell++) map[cell] *= kept > 0 ? mass / kept : 0;
      return mass > 0 ? 1 - kept / mass : 0;
    };
    shown.cachedMean = this.mean.slice();
    shown.hiddenShares = Array.from({ length: this.count }, (_, index) => hide(shown.map(index)));
    shown.hiddenShareOfMean = hide(shown.cachedMean);
    return Object.assign(shown, { marks });
  }

  map(index) {
    return this.values.subarray(index * this.numCells, (index + 1) * this.numCells);
  }

  get mean() {
    this.cachedMean ??= averaged(this.values, this.count);
    return this.cachedMean;
  }

  // The maximum of the absolute values of each modality over all maps.
  get maxima() {
    const maps = Array.from({ length: this.count }, (_, index) => this.map(index));
    this.cachedMaxima ??= this.layout.map((part) => Math.max(0, ...maps.map((map) => maximum(map, part))));
    return this.cachedMaxima;
  }
}

// The mean of `count` consecutive groups of values of the same length.
function averaged(values, count) {
  const mean = new Float32Array(values.length / count);
  for (let i = 0; i < values.length; i++) mean[i % mean.length] += values[i] / count;
  return mean;
}

// Of the absolute values.
function maximum(map, { start, stop }) {
  let top = 0;
  for (let cell = start; cell < stop; cell++) top = Math.max(top, Math.abs(map[cell]));
  return top;
}

// Of the absolute values.
function massOf(map, { start, stop } = { start: 0, stop: map.length }) {
  let mass = 0;
  for (let cell = start; cell < stop; cell++) mass += Math.abs(map[cell]);
  return mass;
}

// [row, column] of the largest value; null if there is no positive one.
function peakCell(map, { start, stop, columns }) {
  let best = start;
  for (let cell = start + 1; cell < stop; cell++) if (map[cell] > map[best]) best = cell;
  return map[best] > 0 ? [Math.floor((best - start) / columns), (best - start) % columns] : null;
}

async function inflated(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpack({ cells, scales, data }) {
  const layout = [];
  for (const { modality, shape: [rows, columns], pooled } of cells) {
    const start = layout.at(-1)?.stop ?? 0;
    layout.push({ modality, rows, columns, pooled, start, stop: start + rows * columns });
  }
  const levels = await inflated(data);
  const factors = new Float32Array(bytesOf(scales).buffer);
  const squares = Float32Array.from({ length: 256 }, (_, level) => (level / 255) ** 2);
  const stack = new MapStack(layout, new Float32Array(levels.length));
  stack.factors = factors;
  for (let index = 0; index < stack.count; index++) {
    layout.forEach(({ start, stop }, part) => {
      const factor = factors[index * layout.length + part];
      const first = index * stack.numCells;
      for (let cell = first + start; cell < first + stop; cell++) stack.values[cell] = squares[levels[cell]] * factor;
    });
  }
  return stack;
}

// The explanation of one sample: `answers`, `layers`, `methods`, `knockouts`, `note`, and the maps once they are prepared.
class Explanation {
  constructor({ answers, layers, methods, knockouts, note }) {
    Object.assign(this, { answers, layers, methods, knockouts, note });
    Object.assign(this, { unpacked: new Map(), heads: new Map(), signed: new Map(), visible: new Map(), scores: new Map() });
    this.show([]);
  }

  // From now on, the given cells [{modality, row, column}] of the tokens are hidden in all maps.
  show(hidden) {
    if (JSON.stringify(hidden) === JSON.stringify(this.hidden)) return;
    Object.assign(this, { hidden, shown: new Map() });
  }

  // A cell of several tokens is hidden if one of them is.
  shownMaps(stack) {
    if (!this.hidden.length) return stack;
    if (!this.shown.has(stack)) {
      const marks = new Uint8Array(stack.numCells);
      for (const { modality, row, column } of this.hidden) {
        const part = stack.layout.find((other) => other.modality === modality);
        if (part) marks[cellIndex(part, [row, column].map((index, axis) => Math.floor(index / part.pooled[axis])))] = HIDDEN;
      }
      this.shown.set(stack, stack.without(marks));
    }
    return this.shown.get(stack);
  }

  packedMaps(layer) {
    const parts = [...this.methods, ...this.methods.map(({ contrast }) => contrast), this.layers[layer]];
    return parts.flatMap((part) => [part?.maps ?? [], part?.against ?? []].flat());
  }

  async prepare(layer) {
    for (const maps of this.packedMaps(layer)) {
      if (!this.unpacked.has(maps)) this.unpacked.set(maps, await unpack(maps));
    }
    const visible = this.layers[layer]?.scores?.visible;
    if (visible && !this.visible.has(layer)) this.visible.set(layer, await inflated(visible));
  }

  isReady(layer) {
    const isVisible = !this.layers[layer]?.scores?.visible || this.visible.has(layer);
    return isVisible && this.packedMaps(layer).every((maps) => this.unpacked.has(maps));
  }

  methodMaps(method) {
    return this.shownMaps(this.unpacked.get(method.maps));
  }

  // Signed maps: the evidence for each answer of a method, or for each answer and foil of its contrasts, minus that
  // against it; the absolute values of a map sum to at most 1.
  evidenceMaps(part) {
    if (!this.signed.has(part)) {
      const [supporting, opposing] = [part.maps, part.against].map((maps) => this.unpacked.get(maps));
      const balance = part.balance.flat();
      const net = supporting.values.map((value, i) => {
        const share = balance[Math.floor(i / supporting.numCells)];
        return share * value - (1 - share) * opposing.values[i];
      });
      this.signed.set(part, new MapStack(supporting.layout, net));
    }
    return this.shownMaps(this.signed.get(part));
  }

  // The maps of all queries, of one head or of the mean over heads.
  layerMaps(layer, head) {
    const key = `${layer}/${head}`;
    if (!this.heads.has(key)) {
      const { maps, num_heads: numHeads } = this.layers[layer];
      const { layout, values } = this.unpacked.get(maps);
      const size = values.length / numHeads;
      const chosen = head === "mean" ? averaged(values, numHeads) : values.subarray(head * size, (head + 1) * size);
      this.heads.set(key, new MapStack(layout, chosen));
    }
    return this.shownMaps(this.heads.get(key));
  }
}

// Null if the event has no maps of the sample.
function explanationAt(event, sample) {
  const index = eventAt(event).explanation;
  const key = `${index}/${sample}`;
  if (!explanations.has(key)) {
    const block = document.querySelector(`script.maps[data-explanation="${index}"][data-sample="${sample}"]`);
    if (!block) return null;
    if (explanations.size >= MAX_CACHED_EXPLANATIONS) explanations.delete(explanations.keys().next().value);
    explanations.set(key, new Explanation(JSON.parse(block.textContent)));
  }
  return explanations.get(key);
}
