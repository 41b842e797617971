// Statistics over training: one as curves of all runs, and all of them at the selected event.

const shortName = (name) => name.replace(/^attention\//, "");
const lastPart = (name) => name.split("/").at(-1);

// Names grouped by what precedes their last slash: [[group, names]].
function groupedNames(names) {
  const groups = new Map();
  for (const name of names) {
    const group = shortName(name).split("/").slice(0, -1).join(" / ") || "scores";
    groups.set(group, [...(groups.get(group) ?? []), name]);
  }
  return [...groups];
}

function renderStatistics() {
  byId("statistics-section").hidden = !statistics.length;
  if (!statistics.length) return;
  renderOnChange("statistics", [state.statistic, state.run, state.event], () => {
    byId("curve").replaceChildren(statisticChart(state.statistic));
    renderValues();
  });
}

function statisticChart(name) {
  const runCurves = ({ events }, run) => {
    const pointsOf = (key) =>
      events.filter(({ values }) => Number.isFinite(values[key])).map(({ step, values }) => [step, values[key]]);
    const isSingle = page.runs.length === 1;
    return [
      { name: isSingle ? lastPart(name) : `run ${run + 1}`, points: pointsOf(name), style: `run${run % 4}` },
      {
        name: isSingle ? "chance" : `chance, run ${run + 1}`,
        points: pointsOf(chanceNames.get(name)),
        style: `run${run % 4} chance`,
      },
    ];
  };
  const runMarkers = ({ events }, run) =>
    events.flatMap(({ step, values, explanation }, event) => {
      if (!Number.isFinite(values[name])) return [];
      const hasMaps = Number.isInteger(explanation);
      return {
        x: step,
        y: values[name],
        style: `run${run % 4}`,
        label: `${eventName({ run, event })}: ${short(values[name])}${hasMaps ? "" : " (no maps)"}`,
        isSelected: run === state.run && event === state.event,
        select: hasMaps ? () => selectEvent({ run, event }) : null,
      };
    });
  return lineChart({
    series: page.runs.flatMap(runCurves),
    markers: page.runs.flatMap(runMarkers),
    xLabel: "training step",
    yLabel: shortName(name),
    description: `${shortName(name)} over training`,
    parts: [page.title, shortName(name)],
  });
}

function selectEvent(event) {
  const hadFocus = byId("curve").contains(document.activeElement);
  setState(event);
  if (hadFocus) byId("curve").querySelector('[aria-pressed="true"]')?.focus();
}

function renderValues() {
  const { values } = eventAt(state);
  const previous = page.runs[state.run].events[state.event - 1]?.values ?? {};
  byId("values-caption").textContent = `All statistics at ${eventName(state)}`;
  const names = statistics.filter((name) => name in values);
  const rows = groupedNames(names).flatMap(([group, members]) => [
    element("tr", {}, element("th", { colspan: 4, scope: "rowgroup", class: "group" }, group)),
    ...members.map((name) => {
      const hasBoth = Number.isFinite(values[name]) && Number.isFinite(previous[name]);
      const change = hasBoth ? signed(values[name] - previous[name]) : "–";
      const cells = [short(values[name]), change, short(values[chanceNames.get(name)])];
      return tableRow(lastPart(name), cells, { class: name === state.statistic ? "selected" : null });
    }),
  ]);
  byId("values").replaceChildren(...rows);
}
