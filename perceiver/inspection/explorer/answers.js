// The samples to choose from, what is true of the chosen one, and what the model said of it.

let preview = null;

// The state as it would be with the answer that is pointed at.
function previewed() {
  const method = state.method === "map" ? state.answerMethod || "map" : state.method;
  return { ...state, answer: preview, method };
}

function showPreview(answer) {
  if (preview === answer) return;
  preview = answer;
  renderFigure();
  for (const button of byId("answers").querySelectorAll("button")) {
    button.classList.toggle("previewed", Number(button.dataset.answer) === preview);
  }
}

function chooseAnswer(answer) {
  const said = lookAt(eventOf(state).explanation, state.sample)?.content.answers[answer];
  if (!said) return;
  choose({ answer, method: state.method === "map" && state.answerMethod ? state.answerMethod : state.method });
  announce(`answer ${said.name}: ${byId("shown").textContent}`);
}

function renderSamples() {
  byId("samples").hidden = byId("said").hidden = !page.samples.length;
  if (!page.samples.length) return;
  when("samples", [], () => {
    byId("samples").replaceChildren(
      ...page.samples.map(({ id, modalities }, number) => {
        const pictured = Object.values(modalities).find(({ picture }) => picture);
        const words = Object.values(modalities).find((modality) => modality.tokens)?.tokens ?? [];
        const image = pictured
          ? element("img", { src: pictured.picture, alt: "" })
          : element("span", { class: "excerpt", "aria-hidden": "true" }, words.slice(0, 12).join(" "));
        const button = element(
          "button",
          { type: "button", "data-sample": number, title: id },
          image,
          element("span", {}, element("bdi", {}, id)),
        );
        button.addEventListener("click", () => choose({ sample: number }));
        return button;
      }),
    );
  });
  when("sample", [state.sample], () => {
    for (const button of byId("samples").children) {
      const isChosen = Number(button.dataset.sample) === state.sample;
      button.setAttribute("aria-pressed", isChosen);
      if (isChosen) button.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    const { id, ground_truth: facts } = page.samples[state.sample];
    byId("sample-id").textContent = id;
    byId("facts-heading").hidden = !facts.length;
    byId("facts").replaceChildren(...facts.map((fact) => element("li", {}, fact)));
  });
}

function renderAnswers(look) {
  const answers = look?.content.answers ?? [];
  when("answers", [state.sample, state.run, state.event, Boolean(look)], () => {
    const areWords = answers.some(({ is_word }) => is_word);
    byId("answers").classList.toggle("words", areWords);
    byId("answers").replaceChildren(...answers.map(answerButton));
    byId("no-answers").hidden = answers.length > 0;
    byId("answers-hint").textContent = areWords
      ? "Point at a word, or tab to it, to see where it was read from; click to keep it."
      : "Point at an answer to see where it comes from; click to keep it.";
    byId("answers-hint").hidden = answers.length === 0;
  });
  when("answer", [state.sample, state.run, state.event, state.answer, Boolean(look)], () => {
    for (const button of byId("answers").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", Number(button.dataset.answer) === state.answer);
      button.classList.remove("previewed");
    }
  });
}

function answerButton({ name, detail, is_word: isWord }, number) {
  const share = Number(detail);
  const bar = !isWord && detail !== "" && share >= 0 && share <= 1;
  const button = element(
    "button",
    { type: "button", "data-answer": number, title: detail, ".style": bar ? `--share:${100 * share}%` : "" },
    element("span", { class: "name" }, name),
    detail ? element("small", {}, detail) : null,
  );
  button.addEventListener("pointerenter", () => showPreview(number));
  button.addEventListener("pointerleave", () => showPreview(null));
  button.addEventListener("focus", () => showPreview(number));
  button.addEventListener("blur", () => showPreview(null));
  button.addEventListener("click", () => chooseAnswer(number));
  return element("li", {}, button);
}
