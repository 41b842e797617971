// Audio players of the sample: the time cursor over the panels of their modality, and seeking.

const SAMPLE_RATE = 44100;
const WAV_HEADER_SIZE = 44;
const players = new Map(); // by modality

// A URL of the same sound as 16-bit PCM: Chromium cannot seek in a short FLAC without an index.
async function seekableURL(url) {
  const decoded = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(bytesOf(url.split(",")[1]).buffer);
  return URL.createObjectURL(new Blob([wavOf(decoded.getChannelData(0))], { type: "audio/wav" }));
}

// A WAV file of one channel.
function wavOf(samples) {
  const size = 2 * samples.length;
  const view = new DataView(new ArrayBuffer(WAV_HEADER_SIZE + size));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, WAV_HEADER_SIZE - 8 + size, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // size of the format: PCM, 1 channel, rate, bytes per second, 2 bytes per sample, 16 bits
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, SAMPLE_RATE, true);
  view.setUint32(28, 2 * SAMPLE_RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, size, true);
  samples.forEach((x, i) => view.setInt16(WAV_HEADER_SIZE + 2 * i, 32767 * Math.max(-1, Math.min(1, x)), true));
  return view.buffer;
}

class Player {
  constructor(modality, { sound, seconds }) {
    this.audio = element("audio", { controls: true, preload: "auto", "aria-label": `sound of ${modality}` });
    this.clock = element("span", { class: "clock" });
    this.node = element("div", { class: "sound" }, this.audio, this.clock);
    Object.assign(this, { seconds, panels: [], frame: null });
    seekableURL(sound)
      .catch(() => sound)
      .then((url) => (this.audio.src = url));
    for (const event of ["play", "playing"]) this.audio.addEventListener(event, () => this.frame ?? this.follow());
    for (const event of ["seeking", "seeked", "pause", "timeupdate", "loadedmetadata"]) {
      this.audio.addEventListener(event, () => this.show());
    }
  }

  show() {
    for (const panel of this.panels) panel.showTime(Math.min(1, this.audio.currentTime / this.seconds));
    this.clock.textContent = `${this.audio.currentTime.toFixed(2)} of ${short(this.seconds)} s`;
  }

  follow() {
    this.show();
    const isPlaying = !this.audio.paused && this.audio.isConnected;
    this.frame = isPlaying ? requestAnimationFrame(() => this.follow()) : null;
  }

  seek(share) {
    this.audio.currentTime = share * this.seconds;
    this.show();
  }

  toggle() {
    if (this.audio.paused) this.audio.play().catch(() => announce("This sound cannot be played in this browser."));
    else this.audio.pause();
  }
}

// The player of a modality of the current sample, which persists while its panels are rebuilt; null without a sound.
function playerFor(modality, description, panels) {
  if (!description.sound) return null;
  if (!players.has(modality)) players.set(modality, new Player(modality, description));
  return Object.assign(players.get(modality), { panels });
}

function pausePlayers() {
  for (const { audio } of players.values()) audio.pause();
}
