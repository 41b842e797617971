// Attention sinks: tokens that draw attention in most samples. They can be hidden in all maps.

// The cells of the tokens that are sinks of any layer, or of the rollout, at the selected event or the one compared with.
function sinksShown() {
  const found = [state, state.compare].flatMap((event) => (event && eventAt(event).sinks?.found) ?? []);
  const cells = found.map(({ modality, row, column }) => [JSON.stringify([modality, row, column]), { modality, row, column }]);
  return [...new Map(cells).values()];
}

// What the figure states about hidden cells, if there are any.
function hiddenText({ stack: { layout }, marks, hiddenShare }) {
  if (!marks || hiddenShare === undefined) return [];
  const isPooled = layout.some(({ pooled }) => Math.max(...pooled) > 1);
  const cells = counted(marks.filter((mark) => mark === HIDDEN).length, "cell");
  const what = `${cells} with attention sinks${isPooled ? ", or with tokens beside them," : ""} hidden`;
  return [`${what}: ${percent(hiddenShare)} of this map. The rest is scaled to the mass of the whole; other numbers are of all tokens.`];
}

function renderSinks() {
  const { sinks } = eventAt(state);
  byId("sinks-section").hidden = !sinks;
  if (!sinks) return;
  renderOnChange("sinks", [state.run, state.event, state.sample], () => {
    const { criterion, num_samples: numSamples, fewest_samples: fewest, found } = sinks;
    const rule =
      `more than ${short(criterion.times_uniform)} times the uniform share in more than ` +
      `${percent(criterion.sample_share)} of the ${numSamples} samples of ${eventName(state)}`;
    const none = numSamples < fewest ? `Not looked for in fewer than ${fewest} samples.` : `No token gets ${rule}.`;
    byId("sinks-hint").textContent = found.length
      ? `Tokens that get ${rule}. They may be places without content, or where every sample has some.`
      : none;
    byId("sinks-list").hidden = !found.length;
    byId("sinks-list").replaceChildren(...(found.length ? [sinkTable(sinks)] : []));
  });
}

function sinkTable({ numbers, mass, found }) {
  const groups = Object.entries(numbers).flatMap(([layer, number]) => {
    const own = found.filter((sink) => sink.layer === layer);
    if (!own.length) return [];
    const title = `${layer}: ${counted(number, "sink")} with ${percent(mass[layer])} of the attention to tokens`;
    const rest = number > own.length ? `; the ${own.length} with the largest weights` : "";
    const head = element("tr", {}, element("th", { colspan: 3, scope: "rowgroup", class: "group" }, title + rest));
    return [head, ...own.map(sinkRow)];
  });
  return element("table", {}, tableHead(["token", "samples", "mean weight"]), element("tbody", {}, ...groups));
}

function sinkRow({ modality, row, column, sample_share: share, weight }) {
  const description = page.samples[state.sample]?.modalities[modality];
  const where = !description || description.tokens ? `token ${column + 1}` : cellText(description, { pooled: [1, 1] }, [row, column]);
  const button = element("button", { type: "button", title: "mark its cell in the maps" }, `${modality}: ${where}`);
  button.addEventListener("click", () => {
    const part = figure.modalities.find(({ name }) => name === modality)?.part;
    if (!part) return;
    setCursor({ modality, cell: [row, column].map((index, axis) => Math.floor(index / part.pooled[axis])) });
    byId("panels").scrollIntoView({ block: "nearest" });
    announce(byId("readout").textContent);
  });
  return tableRow(button, [percent(share), percent(weight)]);
}
