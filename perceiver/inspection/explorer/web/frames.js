// Frames of a video: side by side, or one at a time, selected by a slider or by the time of a sound.

const numFrames = ({ strip }) => (strip ?? []).slice(0, -1).reduce((product, { count }) => product * count, 1);

// The frame that is shown alone, or null for all of them.
function selectedFrame(description) {
  const count = numFrames(description);
  return count > 1 && state.frame !== ALL_FRAMES ? Math.min(state.frame, count - 1) : null;
}

// The position of a frame along each axis that numbers the frames.
function frameText({ strip }, frame) {
  const texts = [];
  for (const { axis, count } of strip.slice(0, -1).reverse()) {
    const index = frame % count;
    texts.unshift(spanText(axis, index / count, (index + 1) / count));
    frame = Math.floor(frame / count);
  }
  return texts.join(", ");
}

// The axis of time by which frames are numbered, if there is no other one.
function timeAxis({ strip }) {
  const [first, ...others] = (strip ?? []).slice(0, -1);
  return first?.axis.name === "time" && !others.length ? first : null;
}

// A slider over the frames of a modality, and a button for all of them; null for a single frame.
function frameControls({ name, description }) {
  const count = numFrames(description);
  if (count < 2) return null;
  const slider = element("input", { type: "range", min: 0, max: count - 1, step: 1, "aria-label": `frame of ${name}` });
  const text = element("span", { class: "clock" });
  const all = element("button", { type: "button" }, "all frames");
  slider.addEventListener("input", () => {
    const frame = Number(slider.value);
    const { axis } = timeAxis(description) ?? {};
    const seconds = axis && axis.start + ((frame + 0.5) / count) * (axis.stop - axis.start);
    if (axis) for (const player of players.values()) player.seek(Math.min(1, seconds / player.seconds));
    setState({ frame });
  });
  all.addEventListener("click", () => setState({ frame: ALL_FRAMES }));
  return { node: element("div", { class: "frames" }, slider, text, all), slider, text, all };
}

function showFrames({ description, panels, frames, versions }) {
  if (!frames) return;
  const frame = selectedFrame(description);
  const count = numFrames(description);
  for (const panel of panels) panel.showFrame(frame);
  versions?.showFrame(frame);
  frames.slider.value = frame ?? 0;
  frames.text.textContent = frame === null ? `${count} frames` : `${frame + 1} of ${count}: ${frameText(description, frame)}`;
  frames.all.disabled = frame === null;
}

// While a sound plays or is sought, videos show the frame of its time, or mark it among all frames.
function followTime(seconds) {
  for (const { description, panels } of figure.modalities) {
    const time = timeAxis(description);
    if (!time) continue;
    const { axis, count } = time;
    const frame = Math.floor((count * (seconds - axis.start)) / (axis.stop - axis.start));
    if (frame < 0 || frame >= count) continue;
    if (state.frame === ALL_FRAMES) for (const panel of panels) panel.showTime((frame + 0.5) / count);
    else if (state.frame !== frame) setState({ frame });
  }
}
