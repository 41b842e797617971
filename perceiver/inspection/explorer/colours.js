// Colour maps, and where on them a value lies.

// Anchors at even distances, as Python has them; what lies between them is interpolated.
const ANCHORS = { ...page.colormaps, difference: page.difference };
const COLOURS = Object.keys(page.colormaps);
const STEPS = 256;
const DECADES = 3;
const palettes = new Map();

const rgbOf = (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));

// {rgb: [256][3], pixels: 256 numbers as ImageData wants them}
function palette(name) {
  if (!palettes.has(name)) {
    const anchors = ANCHORS[name].split(" ").map(rgbOf);
    const rgb = Array.from({ length: STEPS }, (_, step) => {
      const place = (step / (STEPS - 1)) * (anchors.length - 1);
      const left = Math.min(Math.floor(place), anchors.length - 2);
      return anchors[left].map((low, i) => Math.round(low + (anchors[left + 1][i] - low) * (place - left)));
    });
    const pixels = new Uint32Array(new Uint8ClampedArray(rgb.flatMap((colour) => [...colour, 255])).buffer);
    palettes.set(name, { rgb, pixels });
  }
  return palettes.get(name);
}

const CURVES = {
  linear: (share) => share,
  sqrt: Math.sqrt,
  log: (share) => (share > 0 ? Math.max(0, 1 + Math.log10(share) / DECADES) : 0),
};

// How values become colours. `isSigned`: from -top to top, with zero in the middle.
function tone({ colours, scale, top, isSigned = false }) {
  const curve = CURVES[scale];
  const { rgb, pixels } = palette(isSigned ? "difference" : colours);
  const place = (value) => {
    const part = top > 0 ? curve(Math.min(1, Math.abs(value) / top)) : 0;
    return isSigned ? 0.5 + (Math.sign(value) * part) / 2 : part;
  };
  const step = (value) => Math.round(place(value) * (STEPS - 1));
  // Zero of a difference must be the neutral colour itself, which lies between two steps.
  const anchors = ANCHORS.difference.split(" ");
  const middle = rgbOf(anchors[(anchors.length - 1) / 2]);
  const neutral = new Uint32Array(new Uint8ClampedArray([...middle, 255]).buffer)[0];
  return {
    colours,
    top,
    scale,
    isSigned,
    place,
    rgb: (value) => (isSigned && place(value) === 0.5 ? middle : rgb[step(value)]),
    pixel: (value) => (isSigned && place(value) === 0.5 ? neutral : pixels[step(value)]),
  };
}

// What can be read on a colour: dark letters where it is bright.
function inkOn([red, green, blue]) {
  const [r, g, b] = [red, green, blue].map((c) =>
    c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4,
  );
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
