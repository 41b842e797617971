// Audio players of the sample: the time cursor over the panels of their modality, and seeking.

const SAMPLE_RATE = 44100;
const players = new Map(); // by modality

// A URL of the same sound as 16-bit PCM: Chromium cannot seek in a short FLAC without an index.
async function seekableURL(url) {
  const decoded = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(bytesOf(url.split(",")[1]).buffer);
  return URL.createObjectURL(wavOf(decoded.getChannelData(0)));
}

// A WAV file of one channel. In its header, numbers are little-endian, as on all platforms of today's browsers.
function wavOf(samples) {
  const data = Int16Array.from(samples, (value) => 32767 * Math.max(-1, Math.min(1, value)));
  const format = [16, 0x00010001, SAMPLE_RATE, 2 * SAMPLE_RATE, 0x00100002]; // its size; PCM, 1 channel; 16 bits
  const header = [
    ["RIFF", Uint32Array.of(36 + data.byteLength)],
    ["WAVEfmt ", Uint32Array.from(format)],
    ["data", Uint32Array.of(data.byteLength)],
  ];
  return new Blob([...header.flat(), data], { type: "audio/wav" });
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
    this.audio.addEventListener("seeked", () => followTime(this.audio.currentTime));
  }

  show() {
    for (const panel of this.panels) panel.showTime(Math.min(1, this.audio.currentTime / this.seconds));
    this.clock.textContent = `${this.audio.currentTime.toFixed(2)} of ${short(this.seconds)} s`;
  }

  follow() {
    this.show();
    followTime(this.audio.currentTime);
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
