// Statistics over training: one of them as curves of all runs, and all of them for the chosen event.

const plain = (name) => name.replace(/^attention\//, "");

// Names by what stands before their last slash: [[group, [name]]].
function grouped(names) {
  const groups = new Map();
  for (const name of names) {
    const parts = plain(name).split("/");
    const group = parts.slice(0, -1).join(" / ") || "scores";
    groups.set(group, [...(groups.get(group) ?? []), name]);
  }
  return [...groups];
}

const lastPart = (name) => plain(name).split("/").at(-1);

function renderStatistics() {
  byId("statistics-section").hidden = !statistics.length;
  if (!statistics.length) return;
  when("curve", [state.statistic, state.run, state.event], () =>
    byId("curve").replaceChildren(curveOf(state.statistic)),
  );
  when("values", [state.statistic, state.run, state.event], renderValues);
}

function curveOf(name) {
  const number = (value) => value !== null && value !== undefined;
  const pointsOf = (events, key) =>
    events.filter(({ values }) => number(values[key])).map(({ step, values }) => [step, values[key]]);
  const chance = chanceOf(name);
  const series = page.runs.flatMap(({ events }, run) => {
    const style = `run${run % 4}`;
    const [title, other] =
      page.runs.length > 1 ? [`run ${run + 1}`, `chance, run ${run + 1}`] : [lastPart(name), "chance"];
    const found = [{ name: title, points: pointsOf(events, name), style }];
    if (chance) found.push({ name: other, points: pointsOf(events, chance), style: `${style} chance` });
    return found;
  });
  const marks = page.runs.flatMap(({ events }, run) =>
    events.flatMap(({ name: title, step, values, explanation: look }, event) => {
      if (!number(values[name])) return [];
      const hasLook = look !== null && look !== undefined;
      const label = `${nameOfEvent({ run, event })}: ${short(values[name])}${hasLook ? "" : " (no maps)"}`;
      const isChosen = run === state.run && event === state.event;
      const chosen = hasLook ? () => chooseEvent({ run, event }) : null;
      return [{ x: step, y: values[name], style: `run${run % 4}`, label, isChosen, choose: chosen }];
    }),
  );
  return chart({
    series,
    marks,
    xLabel: "training step",
    yLabel: plain(name),
    description: `${plain(name)} over training`,
  });
}

function changeOf(value, before) {
  return Number.isFinite(value) && Number.isFinite(before) ? signed(value - before) : "–";
}

function chooseEvent({ run, event }) {
  const hadFocus = byId("curve").contains(document.activeElement);
  choose({ run, event });
  if (hadFocus) byId("curve").querySelector('[aria-pressed="true"]')?.focus();
  announce(`event ${nameOfEvent({ run, event })}`);
}

function renderValues() {
  const { events } = page.runs[state.run];
  const { values } = eventOf(state);
  const before = events[state.event - 1]?.values ?? {};
  byId("values-caption").textContent = `All values of ${nameOfEvent(state)}`;
  const rows = grouped(statistics.filter((name) => name in values)).flatMap(([group, names]) => [
    element("tr", {}, element("th", { colspan: 4, scope: "rowgroup", class: "group" }, group)),
    ...names.map((name) =>
      element(
        "tr",
        { class: name === state.statistic ? "chosen" : null },
        element("th", { scope: "row" }, lastPart(name)),
        element("td", {}, short(values[name])),
        element("td", {}, changeOf(values[name], before[name])),
        element("td", {}, short(values[chanceOf(name)])),
      ),
    ),
  ]);
  byId("values").replaceChildren(...rows);
}
