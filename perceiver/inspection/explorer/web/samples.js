// The list of samples, the ground truth of the selected one, and the predictions of the model.

function selectAnswer(answer) {
  const method = state.method === "attention" && state.attribution ? state.attribution : state.method;
  setState({ answer, method });
  announce(`answer ${explanationAt(state, state.sample).answers[answer].name}: ${byId("map-title").textContent}`);
}

// Shows the map of an answer, or again that of the selected one, without selecting it.
function showPreview(answer) {
  renderFigure(answer);
  for (const button of byId("answers").querySelectorAll("button")) {
    button.classList.toggle("previewed", Number(button.dataset.answer) === answer);
  }
}

function renderSamples() {
  byId("samples").hidden = byId("predictions").hidden = !page.samples.length;
  if (!page.samples.length) return;
  renderOnChange("samples", [], () => byId("samples").replaceChildren(...page.samples.map(sampleButton)));
  renderOnChange("sample", [state.sample], () => {
    [...byId("samples").children].forEach((button, sample) => {
      button.setAttribute("aria-pressed", sample === state.sample);
      if (sample === state.sample) button.scrollIntoView({ block: "nearest", inline: "nearest" });
    });
    const { id, ground_truth: lines } = page.samples[state.sample];
    byId("sample-id").textContent = id;
    byId("ground-truth-heading").hidden = !lines.length;
    byId("ground-truth").replaceChildren(...lines.map((line) => element("li", {}, line)));
  });
}

function sampleButton({ id, modalities }, sample) {
  const all = Object.values(modalities);
  const drawn = all.find((modality) => modality.picture);
  const tokens = all.find((modality) => modality.tokens)?.tokens ?? [];
  const preview = drawn
    ? element("img", { src: drawn.picture, alt: "", class: numFrames(drawn) > 1 ? "strip" : null })
    : element("span", { class: "excerpt", "aria-hidden": "true" }, tokens.slice(0, 12).join(" "));
  const name = element("span", {}, element("bdi", {}, id));
  const button = element("button", { type: "button", "data-sample": sample, title: id }, preview, name);
  button.addEventListener("click", () => setState({ sample }));
  return button;
}

function renderAnswers(explanation) {
  const answers = explanation?.answers ?? [];
  const dependencies = [state.sample, state.run, state.event, Boolean(explanation)];
  renderOnChange("answers", dependencies, () => {
    byId("answers").classList.toggle(
      "words",
      answers.some(({ is_word: isWord }) => isWord),
    );
    byId("answers").replaceChildren(...answers.map(answerButton));
    byId("no-answers").hidden = answers.length > 0;
    byId("answers-hint").hidden = answers.length === 0;
  });
  renderOnChange("answer", [...dependencies, state.answer], () => {
    for (const button of byId("answers").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", Number(button.dataset.answer) === state.answer);
      button.classList.remove("previewed");
    }
  });
}

function answerButton({ name, detail, is_word: isWord }, answer) {
  const share = Number(detail);
  const hasBar = !isWord && detail !== "" && share >= 0 && share <= 1;
  const button = element(
    "button",
    { type: "button", "data-answer": answer, title: detail, ".style": hasBar ? `--share:${100 * share}%` : "" },
    element("span", { class: "name" }, name),
    detail ? element("small", {}, detail) : null,
  );
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => showPreview(answer));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => showPreview(null));
  button.addEventListener("click", () => selectAnswer(answer));
  return element("li", {}, button);
}
