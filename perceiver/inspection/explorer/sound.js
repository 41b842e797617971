// Sound: the player of a modality, the moving time cursor over its planes, and seeking.

const RATE = 44100;
const WAVE_HEADER = 44;

// The address of the same sound as 16-bit PCM: in a short FLAC without an index, Chromium never finds where to go on.
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
  view.setUint32(16, 16, true); // bytes that follow: PCM, one channel, rate, bytes a second, 2 bytes a sample, 16 bits
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
  seekable(sound)
    .catch(() => sound)
    .then((address) => (audio.src = address));

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
  for (const event of ["seeking", "seeked", "pause", "timeupdate", "loadedmetadata"])
    audio.addEventListener(event, show);

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
