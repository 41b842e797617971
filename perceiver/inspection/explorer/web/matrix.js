// Alignment matrices: the words of an output × the tokens of an input text, or × the columns of a recording.

const MATRIX_CELL = 30;
const MATRIX_WIDTH = 900; // above which cells are narrower
const MOST_COLUMN_LABELS = 45;
const MATRIX_FONT = "13px system-ui, sans-serif";
const MATRIX_MARGIN = 8;

// For each output and modality whose columns are the order of a text or time: {output, modality, words, columns, values,
// blanks, links}, words as indices of the answers; blanks: columns that are hidden; links: [word][column].
function matricesOf(explanation) {
  const method = explanation?.methods.find(({ name }) => name === state.attribution);
  if (!method || method.shared) return [];
  const stack = explanation.methodMaps(method);
  const { answers } = explanation;
  const outputs = [...new Set(answers.filter(({ is_word: isWord }) => isWord).map(({ output }) => output))];
  const parts = stack.layout.filter(({ modality }) => hasOrder(page.samples[state.sample].modalities[modality]));
  return outputs.flatMap((output) =>
    parts.map((part) => {
      const words = answers.flatMap((answer, i) => (answer.is_word && answer.output === output ? [i] : []));
      const description = page.samples[state.sample].modalities[part.modality];
      const columns = columnLabels(description, part);
      return {
        output: outputs.length > 1 ? output : "",
        modality: part.modality,
        unit: method.unit,
        label: method.label,
        words,
        names: words.map((answer) => answers[answer].name),
        columns,
        values: words.map((answer) => columnSums(stack.map(answer), part, columns.length)),
        blanks: columns.map((_, column) => isBlankColumn(stack.marks, part, column)),
        links: words.map((answer) =>
          linkedColumns(answers[answer].boxes[part.modality] ?? [], part, description, columns.length),
        ),
      };
    }),
  );
}

const hasOrder = ({ tokens, axes, strip }) => tokens !== null || (!strip && axes[1].unit === "s");

function columnSums(map, { start, rows, columns }, count) {
  const sums = new Float32Array(columns);
  for (let cell = 0; cell < rows * columns; cell++) sums[cell % columns] += map[start + cell];
  return sums.subarray(0, count);
}

function isBlankColumn(marks, part, column) {
  return Boolean(marks) && Array.from({ length: part.rows }, (_, row) => marks[cellIndex(part, [row, column])]).every(Boolean);
}

function columnLabels({ tokens, axes, shape }, { columns, pooled }) {
  const numReal = tokens ? tokens.length - [...tokens].reverse().findIndex((token) => token !== "<pad>") : shape[1];
  return Array.from({ length: Math.min(columns, Math.ceil(numReal / pooled[1])) }, (_, column) => {
    const [first, stop] = [column * pooled[1], Math.min((column + 1) * pooled[1], shape[1])];
    if (tokens) return tokens.slice(first, stop).join(" ") || "␣";
    return short(axes[1].start + ((axes[1].stop - axes[1].start) * (first + stop)) / (2 * shape[1]));
  });
}

function linkedColumns(boxes, part, { shape }, count) {
  return Array.from({ length: count }, (_, column) => {
    const [, [left, right]] = cellBounds([0, column], part, shape);
    return boxes.some((box) => Math.min(right, box.right) - Math.max(left, box.left) > ROUNDING);
  });
}

function renderMatrices(explanation) {
  const matrices = matricesOf(explanation);
  byId("matrix-section").hidden = !matrices.length;
  const { sample, run, event, compare, attribution, scale, colormap, boxes, answer, theme, sinks } = state;
  const display = [scale, colormap, boxes, answer, theme, isDark(), sinks];
  renderOnChange("matrices", [sample, run, event, compare, attribution, ...display], () =>
    byId("matrices").replaceChildren(...matrices.map(matrixNode)),
  );
}

function matrixNode(matrix) {
  const canvas = element("canvas", { role: "img" });
  const bar = element("div", { class: "bar" });
  const top = Math.max(...matrix.values.map((row) => Math.max(...row)));
  const colors = colorScale({ colormap: state.colormap, scale: state.scale, top });
  const place = paintMatrix(canvas, matrix, colors, window.devicePixelRatio || 1);
  renderColorBar(bar, colors, `${matrix.label}: ${matrix.unit}, ${state.scale} scale; one range for all words`);
  const title = [matrix.output, matrix.modality].filter(Boolean).join(" × ");
  canvas.setAttribute("aria-label", `alignment of ${matrix.names.join(" ")} with ${title}: ${strongest(matrix)}`);
  const readout = element("p", { class: "hint", "aria-live": "off" }, "Hover over a cell to read its value.");
  const cellAt = ({ offsetX, offsetY }) => {
    const [row, column] = [Math.floor((offsetY - place.top) / MATRIX_CELL), Math.floor((offsetX - place.left) / place.cell)];
    return row >= 0 && row < matrix.words.length ? { row, column } : null;
  };
  canvas.addEventListener("pointermove", (event) => {
    const { row, column } = cellAt(event) ?? {};
    const value = matrix.values[row]?.[column];
    if (value === undefined) return;
    const isLink = matrix.links[row][column] ? ", a true link" : "";
    readout.textContent = `${quoted(matrix.names[row])} ← ${quoted(matrix.columns[column])}: ${short(value)}${isLink}`;
  });
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell) selectAnswer(matrix.words[cell.row]);
  });
  const view = {
    label: `alignment with ${title}`,
    parts: () => [page.samples[state.sample].id, `alignment-${title}`, state.attribution, `step-${eventAt(state).step}`],
    svg: () => matrixDrawing(matrix, colors),
    csv: () => matrixRows(matrix),
  };
  const node = element("figure", { class: "matrix", "data-matrix": matrix.modality }, element("h4", {}, title), canvas, readout, bar);
  node.append(saveButtons(node, view));
  return node;
}

function strongest({ names, columns, values }) {
  const best = (row) => columns[row.indexOf(Math.max(...row))];
  return names.map((name, word) => `${name} ← ${best(values[word])}`).join(", ");
}

// Returns the place of the cells in CSS pixels.
function paintMatrix(canvas, { words, names, columns, values, blanks, links }, colors, ratio) {
  const { backgroundColor: background, color: ink } = getComputedStyle(document.body);
  const context = canvas.getContext("2d");
  context.font = MATRIX_FONT;
  const longest = (texts) => Math.ceil(Math.max(...texts.map((text) => context.measureText(text).width)));
  const [left, top] = [names, columns].map((texts) => longest(texts) + 2 * MATRIX_MARGIN);
  const cell = Math.max(2, Math.min(MATRIX_CELL, MATRIX_WIDTH / columns.length));
  const [width, height] = [left + cell * columns.length + MATRIX_MARGIN, top + MATRIX_CELL * names.length + MATRIX_MARGIN];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  context.scale(ratio, ratio);
  context.fillStyle = background;
  context.fillRect(0, 0, width, height);
  context.font = MATRIX_FONT;
  context.textBaseline = "middle";
  names.forEach((name, row) => {
    const y = top + MATRIX_CELL * row;
    context.fillStyle = ink;
    context.font = words[row] === state.answer ? `700 ${MATRIX_FONT}` : MATRIX_FONT;
    context.textAlign = "right";
    context.fillText(name, left - MATRIX_MARGIN, y + MATRIX_CELL / 2);
    values[row].forEach((value, column) => {
      if (blanks[column]) return;
      context.fillStyle = `rgb(${colors.color(value).join(" ")})`;
      context.fillRect(left + cell * column, y, Math.ceil(cell), MATRIX_CELL);
    });
  });
  context.font = MATRIX_FONT;
  context.textAlign = "left";
  context.fillStyle = ink;
  const step = Math.ceil(columns.length / MOST_COLUMN_LABELS);
  columns.forEach((label, column) => {
    if (column % step) return;
    context.save();
    context.translate(left + cell * (column + 0.5), top - MATRIX_MARGIN / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(label, 0, 0);
    context.restore();
  });
  if (state.boxes) {
    links.forEach((row, word) =>
      row.forEach((isLink, column) => {
        if (!isLink) return;
        const path = new Path2D();
        path.rect(left + cell * column + 1, top + MATRIX_CELL * word + 1, cell - 2, MATRIX_CELL - 2);
        strokeOutlined(context, path, [["#000b", 4], [page.outline, 2]], 1);
      }),
    );
  }
  return { left, top, cell };
}

function matrixRows({ names, columns, values, blanks }) {
  const rows = values.map((row, word) => [names[word], ...[...row].map((value, column) => (blanks[column] ? null : value))]);
  return [["", ...columns], ...rows];
}
