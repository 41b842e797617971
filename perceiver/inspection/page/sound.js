// Sound: the player of a modality, the moving time cursor over its planes, and seeking.

const RATE = 44100;
const WAVE_HEADER = 44;

// The address of the same sound as 16-bit PCM. In a short FLAC without an index, Chromium waits for ever once it is told
// to seek.
async function seekable(url) {
  if (url.startsWith("data:audio/wav")) return url;
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytesOf(url.split(",")[1]).buffer);
  return URL.createObjectURL(new Blob([waveOf(decoded.getChannelData(0))], { type: "audio/wav" }));
}

// One channel as a wave file.
function waveOf(samples) {
  const size = 2 * samples.length;
  const view = new DataView(new ArrayBuffer(WAVE_HEADER + size));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, WAVE_HEADER - 8 + size, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format, which are: PCM, one channel, rate, bytes a second, 2 bytes, 16 bits
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, size, true);
  samples.forEach((value, i) => view.setInt16(WAVE_HEADER + 2 * i, 32767 * Math.max(-1, Math.min(1, value)), true));
  return view.buffer;
}

// Null where the modality is no sound.
function soundOf(modality, { sound, seconds }) {
  if (!sound) return null;
  const audio = element("audio", { controls: true, preload: "auto", "aria-label": `sound of ${modality}` });
  const clock = element("span", { class: "clock" });
  const node = element("div", { class: "sound" }, audio, clock);
  let frame = null;
  seekable(sound).catch(() => sound).then((address) => (audio.src = address));

  const show = () => {
    const planes = figure.modalities.find(({ name }) => name === modality)?.planes ?? [];
    for (const plane of planes) plane.showTime(Math.min(1, audio.currentTime / seconds));
    clock.textContent = `${audio.currentTime.toFixed(2)} of ${short(seconds)} s`;
  };
  const follow = () => {
    show();
    frame = audio.paused || !audio.isConnected ? null : requestAnimationFrame(follow);
  };
  for (const event of ["play", "playing"]) audio.addEventListener(event, () => frame ?? follow());
  for (const event of ["seeking", "seeked", "pause", "timeupdate", "loadedmetadata"]) audio.addEventListener(event, show);

  return {
    node,
    audio,
    show,
    seek(share) {
      audio.currentTime = share * seconds;
      show();
    },
    toggle() {
      if (audio.paused) audio.play().catch(() => announce("This sound cannot be played here."));
      else audio.pause();
    },
  };
}

// Of the first modality that has one; false where none has.
function toggleSound() {
  const sound = figure.modalities.find((modality) => modality.sound)?.sound;
  sound?.toggle();
  return Boolean(sound);
}

// Pointer and keys on the planes of a modality. Only the first of them is a stop of the tabulator.
function listen({ name, part, planes, sound }) {
  for (const plane of planes) {
    plane.stage.addEventListener("pointermove", (event) => {
      const place = plane.cellAt(event);
      if (place) setCursor({ modality: name, place });
    });
    plane.stage.addEventListener("pointerleave", () => {
      if (document.activeElement !== planes[0].stage) setCursor(null);
    });
    if (!sound) continue;
    plane.stage.classList.add("seekable");
    plane.stage.addEventListener("click", (event) => sound.seek(plane.timeAt(event)));
  }
  const { stage } = planes[0];
  stage.tabIndex = 0;
  stage.setAttribute("role", "group");
  stage.setAttribute("aria-roledescription", "map");
  stage.setAttribute("aria-label", `map of ${name}: the arrow keys move the cell${sound ? ", Enter plays from there" : ""}`);
  stage.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const here = figure.cursor?.modality === name ? figure.cursor.place : null;
    if (event.key === "Escape") setCursor(null);
    else if (event.key === "Enter" && sound && here) sound.seek(cellSpan(here[1], part.pooled[1], planes[0].description.shape[1])[0]);
    else if (move) {
      const from = here ?? cellOf(brightest(figure.scene.left.map, part), part);
      const most = [part.rows - 1, part.columns - 1];
      const to = here ? from.map((index, axis) => Math.max(0, Math.min(most[axis], index + move[axis]))) : from;
      setCursor({ modality: name, place: to }, true);
    } else return;
    event.preventDefault();
  });
}
