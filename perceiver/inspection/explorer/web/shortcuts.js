// Keyboard shortcuts.

const SHORTCUTS = {
  "[": () => stepSelect("layer", -1),
  "]": () => stepSelect("layer", 1),
  ",": () => stepSelect("head", -1),
  ".": () => stepSelect("head", 1),
  n: () => stepSample(1),
  p: () => stepSample(-1),
  m: () => stepSelect("method", 1),
  w: () => stepSelect("quantity", 1),
  a: stepAnswer,
  r: () => stepSelect("foil", 1),
  v: () => stepSelect("evidence", 1),
  e: () => stepSelect("event", 1),
  k: () => stepSelect("knockout", 1),
  h: () => byId("sinks").disabled || setState({ sinks: !state.sinks }),
  g: () => saveFocused("PNG"),
  s: () => saveFocused("SVG"),
  c: () => saveFocused("CSV"),
  "?": () => byId("help").showModal(),
};

// Selects the next or previous option, cyclically.
function stepSelect(id, step) {
  const { options, selectedIndex, disabled } = byId(id);
  if (!options.length || disabled) return;
  setState(controlChange(id, options[(selectedIndex + step + options.length) % options.length].value));
}

function stepSample(step) {
  setState({ sample: (state.sample + step + page.samples.length) % page.samples.length });
}

function stepAnswer() {
  const count = explanationAt(state, state.sample)?.answers.length;
  if (count) selectAnswer((state.answer + 1) % count);
}

function listenToShortcuts() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || byId("help").open) return;
    const { target, key } = event;
    if (key === " ") {
      // Controls have a use of their own for the space bar, and selects for letters.
      if (target.closest("button, input, select, a, audio, summary, [role=button], [role=option]")) return;
      const player = figure.modalities.find((modality) => modality.player)?.player;
      if (!player) return;
      player.toggle();
    } else if (target.closest("select") && /^[a-z]$/.test(key)) return;
    else if ([document.body, document.documentElement].includes(target) && /^Arrow(Left|Right)$/.test(key)) {
      moveQuery(key === "ArrowLeft" ? -1 : 1);
    } else if (key in SHORTCUTS) SHORTCUTS[key]();
    else return;
    event.preventDefault();
  });
}
