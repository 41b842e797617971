// From the state to the map that is shown, to what it is compared with, and to the words for both.

const CLIP = 0.99;

// {map, stack, unit, title, notes}; null where there is none.
function shown(look, { method, layer, head, latent, answer }) {
  return method === "map" ? attended(look, layer, head, latent) : traced(look, method, answer);
}

function attended(look, number, head, latent) {
  const layer = look.content.layers[number];
  if (!layer) return null;
  const stack = look.layer(number, head);
  const index = layer.queries.indexOf(latent);
  const heads = head === "mean" ? `mean over ${counted(layer.num_heads, "head")}` : `head ${head}`;
  const notes = [];
  const kept = layer.queries.length;
  if (latent === "mean" && kept < layer.num_queries) {
    notes.push(`The mean is over the ${kept} of ${layer.num_queries} latents whose maps are kept here.`);
  }
  return {
    stack,
    map: index < 0 ? stack.mean : stack.map(index),
    unit: "weight",
    title: `Attention of ${layer.name}: ${index < 0 ? "mean over latents" : `latent ${latent}`}, ${heads}`,
    notes,
  };
}

function traced(look, name, answer) {
  const number = look.content.methods.findIndex((method) => method.name === name);
  if (number < 0 || !look.content.answers[answer]) return null;
  const { label, unit, shared, residual } = look.content.methods[number];
  const stack = look.method(number);
  const notes = [];
  if (shared) notes.push("This map is the same for all answers, since the decoder asks once.");
  const rest = residual?.[answer];
  if (rest !== null && rest !== undefined) {
    notes.push(`${percent(rest)} rests on the initial latents, which know nothing of the input.`);
  }
  const from = shared ? "the answers" : quoted(look.content.answers[answer].name);
  return {
    stack,
    map: stack.map(answer),
    unit,
    title: `${label}, from ${from} back to the input`,
    notes,
    residual: rest,
  };
}

const quoted = (name) => `“${name}”`;
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// What the brightest colour stands for, and how that is said.
function topOf({ map, stack }, number, range) {
  const part = stack.layout[number];
  if (range === "shared") return stack.tops[number];
  if (range === "map") return Math.max(...stack.layout.map((other) => largest(map, other)));
  if (range === "clipped") {
    const sorted = map.slice(part.start, part.stop).sort();
    return sorted[Math.floor(CLIP * (sorted.length - 1))] || sorted.at(-1);
  }
  return largest(map, part);
}

function rangeText(range, method) {
  if (range === "shared") return `one range for all ${method === "map" ? "latents of this layer and head" : "answers"}`;
  if (range === "map") return "one range for all modalities of this map";
  return range === "clipped" ? "range up to the 99th percentile of this map" : "range of this map";
}

// The same choice in another look. {state} to be shown there, or {reason} why there is none; and {notes}.
function counterpart(look, other, otherName, chosen) {
  if (!other) return { reason: `${otherName} has no maps of this sample.` };
  const there = { ...chosen };
  const notes = [];
  if (chosen.method === "map") {
    const layer = look.content.layers[chosen.layer];
    there.layer = other.content.layers.findIndex(({ name }) => name === layer.name);
    const match = other.content.layers[there.layer];
    if (!match) return { reason: `${otherName} has no layer ${layer.name}.` };
    if (chosen.head !== "mean" && chosen.head >= match.num_heads)
      return { reason: `${otherName} has no head ${chosen.head}.` };
    if (chosen.latent !== "mean" && !match.queries.includes(chosen.latent)) {
      return { reason: `The map of latent ${chosen.latent} is not kept in ${otherName}.` };
    }
    if (chosen.compare.run !== chosen.run && (chosen.latent !== "mean" || chosen.head !== "mean")) {
      notes.push("Latents and heads of different runs do not correspond: the same number means nothing.");
    }
    return { state: there, notes };
  }
  const answer = look.content.answers[chosen.answer];
  const { answers, methods } = other.content;
  if (!methods.some(({ name }) => name === chosen.method)) return { reason: `${otherName} has no ${chosen.method}.` };
  const fits = ({ name }, position) => name === answer.name && (!answer.is_word || position === chosen.answer);
  there.answer = answers.findIndex(fits);
  if (there.answer < 0) {
    const said = answers.map(({ name }) => name).slice(0, 12);
    const where = answer.is_word ? ` as word ${chosen.answer + 1}` : "";
    const instead = answer.is_word ? said.join(" ") : said.join(", ");
    return { reason: `${quoted(answer.name)} is not${where} among the answers of ${otherName}: ${instead}.` };
  }
  return { state: there, notes };
}

// Left minus right; null where the cells are not the same.
function difference(left, right) {
  const cells = ({ stack }) => JSON.stringify(stack.layout);
  if (cells(left) !== cells(right)) return null;
  return left.map.map((value, cell) => value - right.map[cell]);
}
