// Scores before the softmax: the logarithms of the weights of one head and query, less their mean over the tokens that the
// query sees, which are the scores less their mean. Weights have 255 levels: the smallest ones are known by a bound.

const NUM_LEVELS = 255;

// Why a selection has no scores; empty if it has.
function noScores({ scores, num_heads: numHeads, query_kind: kind, name }, head, query) {
  if (!scores) return `${name} has no scores: its weights are not a softmax of scores over the tokens, as far as is known.`;
  const isOne = (numHeads === 1 || head !== "mean") && query !== "mean";
  return isOne ? "" : `A mean has no scores: select a ${kind}${numHeads > 1 ? " and a head" : ""}. These are weights.`;
}

// {map, marks, errors, stack}: scores in nats, marks of cells without one, and the error of each by the levels of weights,
// infinite where the score is only known to be at most the one given. The stack has the scores of all queries of the head.
function scoreMap(explanation, index, head, query) {
  const { stack, marks, errors } = shownScores(explanation, index, head === "mean" ? 0 : head);
  const place = explanation.layers[index].queries.indexOf(query);
  const part = (values) => values.subarray(place * stack.numCells, (place + 1) * stack.numCells);
  const own = part(marks);
  return { stack, map: part(stack.values), marks: own.some(Boolean) ? own : null, errors: part(errors) };
}

// {stack, marks, errors} of all queries of a head, without the scores of hidden cells.
function shownScores(explanation, index, head) {
  const key = `${index}/${head}`;
  if (!explanation.scores.has(key)) {
    explanation.scores.set(key, headScores(explanation, explanation.layers[index], index, head));
  }
  const scores = explanation.scores.get(key);
  const { marks: hidden, numCells } = explanation.layerMaps(index, head);
  if (!hidden) return scores;
  if (!explanation.shown.has(scores)) {
    const hide = (values, replacement) => values.map((value, at) => (hidden[at % numCells] ? replacement : value));
    const stack = new MapStack(scores.stack.layout, hide(scores.stack.values, 0));
    explanation.shown.set(scores, { ...scores, stack, marks: hide(scores.marks, HIDDEN) });
  }
  return explanation.shown.get(scores);
}

function headScores(explanation, layer, index, head) {
  const packed = explanation.unpacked.get(layer.maps);
  const { layout, numCells, factors } = packed;
  const count = layer.queries.length;
  const stack = new MapStack(layout, new Float32Array(count * numCells));
  const marks = new Uint8Array(count * numCells);
  const errors = new Float32Array(count * numCells);
  for (let query = 0; query < count; query++) {
    const map = packed.map(head * count + query);
    const seen = visibleTokens(explanation, layer, index, head * count + query);
    const mean = layer.scores.log_weight[head][query];
    layout.forEach(({ start, stop }, part) => {
      const factor = factors[(head * count + query) * layout.length + part];
      for (let cell = start; cell < stop; cell++) {
        const at = query * numCells + cell;
        if (!seen[cell]) marks[at] = MASKED;
        else {
          const level = factor > 0 ? Math.round(NUM_LEVELS * Math.sqrt(map[cell] / factor)) : 0;
          const weight = ((level || 0.5) / NUM_LEVELS) ** 2 * (factor || Number.MIN_VALUE);
          stack.values[at] = Math.log(weight / seen[cell]) - mean;
          errors[at] = level ? 1 / level : Infinity;
        }
      }
    });
  }
  return { stack, marks, errors };
}

// The number of tokens of each cell that a query sees.
function visibleTokens(explanation, layer, index, row) {
  const { layout, numCells } = explanation.unpacked.get(layer.maps);
  const shapes = layout.map(({ modality }) => page.samples[state.sample].modalities[modality].shape);
  const numTokens = shapes.reduce((sum, [rows, columns]) => sum + rows * columns, 0);
  const bytes = explanation.visible.get(index);
  const first = row * Math.ceil(numTokens / 8) * 8;
  const counts = new Uint32Array(numCells);
  let token = 0;
  layout.forEach((part, place) => {
    const [rows, columns] = shapes[place];
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++, token++) {
        const isSeen = !bytes || (bytes[(first + token) >> 3] >> (7 - (token & 7))) & 1;
        if (isSeen) counts[cellIndex(part, [Math.floor(r / part.pooled[0]), Math.floor(c / part.pooled[1])])] += 1;
      }
    }
  });
  return counts;
}

function scoreText({ map, errors }, index) {
  return Number.isFinite(errors[index])
    ? `score ${signed(map[index])} ± ${short(errors[index], 1)} nats`
    : `score at most ${signed(map[index])} nats`;
}
