// What Python handed over: the page, and maps that are unpacked once, when they are first looked at.
//
// The page, in the block of that id:
//   title
//   initial_events  [[run, event]]: what is shown first, and what it is compared with; both may be missing
//   runs      [{name, events}], events in the order of their steps: name, step, epoch;
//             explanation: the number under which its maps are kept, or null; values: {name: number};
//             deletion: null, or what hiding inputs did: num_samples (0: nothing else), fractions (of the inputs hidden),
//             curves {map: what is left of the answers' probability at each fraction}, areas {map: {mean, error}} below
//             that of "random", each with its title and verdict: mark, brief, sentence
//   colormaps, difference, outline: `perceiver/inspection/colormaps.py`
//   samples   [{id, ground_truth: [sentence], modalities: {name: how it is drawn}}]
//     axes    of rows and columns: name, unit, start (top, left), stop, scale: "linear" or "mel"; no name: no such axis
//     ticks   of rows and columns: [{place: from 0 to 1, label}]; shape: rows and columns of its tokens
//     strip   null, or [{axis, count}]: the axes along the columns, where frames lie side by side, the outermost first
//     size    width and height at which it is drawn best; picture: null or an address of data, of exactly its extent
//     levels  null, or {unit, low, high}: what black and white of the picture stand for
//     sound   null or an address of data, with seconds; tokens: null, or one for each token
//     boxes   [{name, left, top, right, bottom}] as shares of width and height
//
// One block for each look at each sample:
//   answers   [{name, detail, is_word, boxes: {modality: [box]}}]: classes, the likeliest first, or the words of a text,
//             or both; behind them classes that truly apply, where that is known from boxes
//   layers    [{name, query_kind, num_queries, queries: numbers of those kept, num_heads, entropy: [heads, then their mean][latents],
//             rollout: [answers][queries], how much of an answer comes in there, maps: of [heads, latents]}]
//   methods   [{name, label, unit, shared: the same for all answers, residual: null or [answers], maps: of [answers]}],
//             the first of which that is not shared is shown first
// What maps are is told by `perceiver/inspection/packing.py`.

const MOST_RECORDS = 6;
const MOST_STACKS = 4;
const page = JSON.parse(document.getElementById("page").textContent);
const records = new Map();

// (q / 255)² for each of the 256 levels a cell may have.
const SQUARES = Float32Array.from({ length: 256 }, (_, level) => (level / 255) ** 2);

function eventOf({ run, event }) {
  return page.runs[run].events[event] ?? { name: "", explanation: null, values: {}, deletion: null };
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function inflated(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Where the cells of each modality lie in a map: [{modality, rows, columns, pooled, start, stop}].
function layoutOf(packed) {
  let start = 0;
  return packed.cells.map(({ modality, shape: [rows, columns], pooled }) => {
    const part = { modality, rows, columns, pooled, start, stop: start + rows * columns };
    start = part.stop;
    return part;
  });
}

// All maps of one packed block, as levels; `add` makes numbers of one of them.
class Packed {
  constructor(content, levels) {
    this.layout = layoutOf(content);
    this.cells = this.layout.at(-1).stop;
    this.levels = levels;
    this.scales = new Float32Array(bytesOf(content.scales).buffer);
  }

  add(number, target, offset, share = 1) {
    const first = number * this.cells;
    this.layout.forEach(({ start, stop }, part) => {
      const scale = this.scales[number * this.layout.length + part] * share;
      for (let cell = start; cell < stop; cell++) {
        target[offset + cell] += SQUARES[this.levels[first + cell]] * scale;
      }
    });
  }
}

// Several maps of the same cells, one behind the other, with what is asked of all of them at once.
class Stack {
  constructor(layout, values) {
    this.layout = layout;
    this.cells = layout.at(-1).stop;
    this.values = values;
    this.count = values.length / this.cells;
    this.tops = layout.map((part) => {
      let top = 0;
      for (let number = 0; number < this.count; number++) top = Math.max(top, largest(this.map(number), part));
      return top;
    });
  }

  map(number) {
    return this.values.subarray(number * this.cells, (number + 1) * this.cells);
  }

  get mean() {
    if (!this.average) {
      this.average = new Float32Array(this.cells);
      for (let number = 0; number < this.count; number++) {
        const map = this.map(number);
        for (let cell = 0; cell < this.cells; cell++) this.average[cell] += map[cell] / this.count;
      }
    }
    return this.average;
  }
}

function largest(map, { start, stop }) {
  let top = 0;
  for (let cell = start; cell < stop; cell++) if (map[cell] > top) top = map[cell];
  return top;
}

function massOf(map, { start, stop } = { start: 0, stop: map.length }) {
  let mass = 0;
  for (let cell = start; cell < stop; cell++) mass += map[cell];
  return mass;
}

function brightest(map, { start, stop }) {
  let best = start;
  for (let cell = start + 1; cell < stop; cell++) if (map[cell] > map[best]) best = cell;
  return best - start;
}

// One look at one sample. `prepare` unpacks what is to be shown; all else is then there at once.
class Look {
  constructor(content) {
    this.content = content;
    this.packed = new Map();
    this.stacks = new Map();
  }

  async prepare(layer) {
    const wanted = this.content.methods.map(({ maps }) => maps);
    if (this.content.layers[layer]) wanted.push(this.content.layers[layer].maps);
    for (const maps of wanted) {
      if (!this.packed.has(maps)) this.packed.set(maps, new Packed(maps, await inflated(maps.data)));
    }
  }

  isReady(layer) {
    const { layers, methods } = this.content;
    return (
      methods.every(({ maps }) => this.packed.has(maps)) && (!layers[layer] || this.packed.has(layers[layer].maps))
    );
  }

  // Of one head, or of the mean over all of them.
  layer(layer, head) {
    return this.stack(`${layer}/${head}`, () => {
      const { maps, num_heads, queries } = this.content.layers[layer];
      const heads = head === "mean" ? Array.from({ length: num_heads }, (_, h) => h) : [head];
      return this.summed(maps, queries.length, heads);
    });
  }

  method(number) {
    return this.stack(`method/${number}`, () => {
      const { maps } = this.content.methods[number];
      return this.summed(maps, maps.count[0], [0]);
    });
  }

  summed(maps, count, groups) {
    const packed = this.packed.get(maps);
    const values = new Float32Array(count * packed.cells);
    for (const group of groups) {
      for (let i = 0; i < count; i++) packed.add(group * count + i, values, i * packed.cells, 1 / groups.length);
    }
    return new Stack(packed.layout, values);
  }

  stack(key, make) {
    if (!this.stacks.has(key)) {
      const heads = [...this.stacks.keys()].filter((other) => !other.startsWith("method/"));
      if (heads.length >= MOST_STACKS) this.stacks.delete(heads[0]);
      this.stacks.set(key, make());
    }
    return this.stacks.get(key);
  }
}

// Null where the look has no maps of that sample.
function lookAt(look, sample) {
  const key = `${look}/${sample}`;
  if (!records.has(key)) {
    const block = document.querySelector(`script.maps[data-explanation="${look}"][data-sample="${sample}"]`);
    if (!block) return null;
    if (records.size >= MOST_RECORDS) records.delete(records.keys().next().value);
    records.set(key, new Look(JSON.parse(block.textContent)));
  }
  return records.get(key);
}
