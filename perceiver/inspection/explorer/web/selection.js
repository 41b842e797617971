// The map that the state selects, the corresponding one of another event, and their descriptions.

const CLIP_QUANTILE = 0.99;

// {map, stack, unit, title, notes}; null if there is none.
function selectMap(explanation, { method, layer, head, query, answer, foil, evidence, quantity }) {
  return method === "attention"
    ? attentionMap(explanation, layer, head, query, quantity)
    : attributionMap(explanation, method, answer, foil, evidence);
}

function attentionMap(explanation, index, head, query, quantity) {
  const layer = explanation.layers[index];
  if (!layer) return null;
  const { name, query_kind: kind, num_heads: numHeads, num_queries: numQueries, queries, places } = layer;
  const stack = explanation.layerMaps(index, head);
  const rows = query === "mean" ? `mean over ${plural(kind)}` : `${kind} ${query}`;
  const heads = head === "mean" ? `mean over ${counted(numHeads, "head")}` : `head ${head}`;
  const isPartial = query === "mean" && queries.length < numQueries;
  const part = `Mean over the ${queries.length} of ${counted(numQueries, kind)} with maps in this page.`;
  const notes = isPartial ? [part] : [];
  if (places) notes.push("Click a place of the input to see where the output there was read from.");
  const weights = query === "mean" ? stack.mean : stack.map(queries.indexOf(query));
  const title = places ? `Rollout of ${name}: ${rows}` : `Attention weights of ${name}: ${rows}, ${heads}`;
  if (quantity === "scores") {
    const reason = noScores(layer, head, query);
    if (!reason) {
      const scores = scoreMap(explanation, index, head, query);
      notes.push("Orange: scores above the mean over the tokens that it sees; blue: below it. Masked tokens have none.");
      const numBounds = scores.errors.filter((error, cell) => error === Infinity && !scores.marks?.[cell]).length;
      if (numBounds) notes.push(`${counted(numBounds, "cell")} too faint for this page: their scores are at most those shown.`);
      const unit = "score less the mean (nats)";
      const ofScores = `Scores before the softmax of ${name}: ${rows}, ${heads}`;
      return { ...scores, unit, title: ofScores, notes, isSigned: true, weights, titleOfWeights: title };
    }
    notes.push(reason);
  }
  return {
    stack,
    map: weights,
    marks: stack.marks,
    hiddenShare: query === "mean" ? stack.hiddenShareOfMean : stack.hiddenShares?.[queries.indexOf(query)],
    unit: places ? "share" : "weight",
    title,
    notes,
  };
}

// The foils of an answer for which a method has maps: [{name, probability}].
const foilsOf = (method, answer) => method?.contrast?.foils[answer] ?? [];

// foil: name of the answer that the selected one is contrasted with, or empty; evidence: see EVIDENCE.
function attributionMap(explanation, name, answer, foil, evidence) {
  const method = explanation.methods.find((other) => other.name === name);
  if (!method || !explanation.answers[answer]) return null;
  const number = foilsOf(method, answer).findIndex((other) => other.name === foil);
  if (number >= 0 || (method.against && evidence === "both")) {
    return evidenceMap(explanation, method, answer, number, evidence);
  }
  const { label, unit, shared, residual } = method;
  const stack = explanation.methodMaps(method);
  const notes = [];
  if (shared) notes.push("All answers share this map, because the decoder has no queries of their own for them.");
  if (residual?.[answer] > 0) {
    notes.push(`${percent(residual[answer])} of it ends at the initial latents, which do not depend on the input.`);
  }
  const target = shared ? "all answers" : quoted(explanation.answers[answer].name);
  const hiddenShare = stack.hiddenShares?.[answer];
  return { stack, map: stack.map(answer), marks: stack.marks, hiddenShare, unit, title: `${capitalized(label)}: ${target}`, notes };
}

// number: of the foil, or -1 for none.
function evidenceMap(explanation, method, answer, number, evidence) {
  const part = number < 0 ? method : method.contrast;
  const [own, foil] = [explanation.answers[answer], foilsOf(method, answer)[number]];
  const isSigned = evidence === "both";
  const stack = isSigned ? explanation.evidenceMaps(part) : explanation.methodMaps(part);
  const numFoils = number < 0 ? 1 : stack.count / explanation.answers.length;
  const balance = number < 0 ? part.balance[answer] : part.balance[answer][number];
  const target = foil ? `${quoted(own.name)} rather than ${quoted(foil.name)}` : quoted(own.name);
  const sides = isSigned ? `Orange: evidence for ${target}; blue: against it. ` : "";
  const notes = [`${sides}${percent(balance)} of the evidence is for it.`];
  if (foil) notes.push(`The probability of ${quoted(foil.name)} is ${short(foil.probability)}.`);
  const index = numFoils * answer + Math.max(number, 0);
  return {
    stack,
    map: stack.map(index),
    marks: stack.marks,
    hiddenShare: stack.hiddenShares?.[index],
    unit: isSigned ? "share of evidence" : method.unit,
    title: `${capitalized(method.label)}${isSigned ? ", for and against" : ""}: ${target}`,
    notes,
    isSigned,
    isContrast: Boolean(foil),
  };
}

// The value of the brightest color, for one modality of a map.
function rangeMaximum({ map, stack }, index, range) {
  const part = stack.layout[index];
  if (range === "shared") return stack.maxima[index];
  if (range === "map") return Math.max(...stack.layout.map((other) => maximum(map, other)));
  if (range === "clipped") {
    const sorted = map.slice(part.start, part.stop).map(Math.abs).sort();
    return sorted[Math.floor(CLIP_QUANTILE * (sorted.length - 1))] || sorted.at(-1);
  }
  return maximum(map, part);
}

// The same selection at the event that it is compared with: {state, notes}, or {reason} if there is none.
function correspondingState(explanation, other, selected) {
  const name = eventName(selected.compare);
  if (!other) return { reason: `${name} has no maps of this sample.` };
  return selected.method === "attention"
    ? correspondingLayer(explanation.layers[selected.layer], other, selected, name)
    : correspondingAnswer(explanation.answers[selected.answer], other, selected, name);
}

function correspondingLayer(layer, other, selected, name) {
  const { head, query } = selected;
  const index = other.layers.findIndex((candidate) => candidate.name === layer.name);
  const match = other.layers[index];
  if (!match) return { reason: `${name} has no layer ${layer.name}.` };
  if (head !== "mean" && head >= match.num_heads) return { reason: `${name} has no head ${head}.` };
  if (query !== "mean" && !match.queries.includes(query)) {
    return { reason: `${name} has no map of ${match.query_kind} ${query} in this page.` };
  }
  const isComparable = selected.compare.run === selected.run || (query === "mean" && head === "mean");
  const rows = capitalized(plural(layer.query_kind));
  const notes = isComparable ? [] : [`${rows} and heads of different runs do not correspond, whatever their index.`];
  return { state: { ...selected, layer: index }, notes };
}

function correspondingAnswer(answer, other, selected, name) {
  const { answers, methods } = other;
  const hasMethod = methods.some((method) => method.name === selected.method);
  if (!hasMethod) return { reason: `${name} has no ${selected.method}.` };
  const index = answers.findIndex(
    (candidate, position) => candidate.name === answer.name && (!answer.is_word || position === selected.answer),
  );
  if (index >= 0) {
    const own = methods.find(({ name: method }) => method === selected.method);
    const has = { foil: foilsOf(own, index).some((foil) => foil.name === selected.foil), evidence: Boolean(own.against) };
    if (selected.foil && !has.foil) return { reason: `${name} has no contrast with ${quoted(selected.foil)}.` };
    if (selected.evidence === "both" && !has.evidence) return { reason: `${name} has no evidence against answers.` };
    return { state: { ...selected, answer: index }, notes: [] };
  }
  const names = answers.slice(0, 12).map((candidate) => candidate.name);
  const position = answer.is_word ? ` at position ${selected.answer + 1}` : "";
  const predicted = names.join(answer.is_word ? " " : ", ");
  return { reason: `${name} did not predict ${quoted(answer.name)}${position}, but: ${predicted}.` };
}

// Left minus right; null if their cells differ.
function differenceOf(left, right) {
  if (JSON.stringify(left.stack.layout) !== JSON.stringify(right.stack.layout)) return null;
  return left.map.map((value, cell) => value - right.map[cell]);
}
