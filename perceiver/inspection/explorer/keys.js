// Shortcuts, and what is read out to those who do not see the page.

const SPEECH_DELAY = 250;
let speech = null;

// Only the last of many messages in a row is said.
function announce(text) {
  clearTimeout(speech);
  speech = setTimeout(() => {
    byId("announced").textContent = text;
  }, SPEECH_DELAY);
}

// The element before or after the current one, round and round.
function turned(choices, current, step) {
  const here = choices.indexOf(current);
  return choices[(here + step + choices.length) % choices.length];
}

function turnSelect(id, step) {
  const values = [...byId(id).options].map(({ value }) => value);
  if (values.length) choose(CHANGES[id](turned(values, byId(id).value, step)));
}

function turnSample(step) {
  choose({ sample: (state.sample + step + page.samples.length) % page.samples.length });
}

function turnAnswer() {
  const answers = lookAt(eventOf(state).explanation, state.sample)?.content.answers ?? [];
  if (answers.length) chooseAnswer((state.answer + 1) % answers.length);
}

const SHORTCUTS = {
  "[": () => turnSelect("layer", -1),
  "]": () => turnSelect("layer", 1),
  ",": () => turnSelect("head", -1),
  ".": () => turnSelect("head", 1),
  n: () => turnSample(1),
  p: () => turnSample(-1),
  m: () => turnSelect("method", 1),
  a: turnAnswer,
  e: () => turnSelect("event", 1),
  "?": () => byId("help").showModal(),
};

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || byId("help").open) return;
    const target = event.target;
    if (event.key === " ") {
      const hasOwnSpace = target.closest("button, input, select, a, audio, summary, [role=button], [role=option]");
      if (!hasOwnSpace && toggleSound()) event.preventDefault();
      return;
    }
    // Letters choose an option where a list has the focus.
    if (target.closest("select") && /^[a-z]$/.test(event.key)) return;
    const isFree = target === document.body || target === document.documentElement;
    const arrow = isFree ? { ArrowLeft: -1, ArrowRight: 1 }[event.key] : undefined;
    if (arrow) moveLatent(arrow);
    else if (event.key in SHORTCUTS) SHORTCUTS[event.key]();
    else return;
    event.preventDefault();
  });
}
