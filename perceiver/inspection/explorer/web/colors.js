// Colormaps, and the mapping of values to colors.

const COLORMAPS = Object.keys(page.colormaps);
const NUM_STEPS = 257; // odd, so that zero of a signed scale is a color of its own
const NUM_DECADES = 3; // of the logarithmic scale
const palettes = new Map();

const SCALES = {
  linear: (share) => share,
  sqrt: Math.sqrt,
  log: (share) => (share > 0 ? Math.max(0, 1 + Math.log10(share) / NUM_DECADES) : 0),
};

// The colors of a colormap, each [red, green, blue], interpolated between equidistant anchors; and the same as pixels.
function palette(name) {
  if (!palettes.has(name)) {
    const codes = { ...page.colormaps, difference: page.difference }[name].split(" ");
    const anchors = codes.map((code) => [0, 2, 4].map((at) => parseInt(code.slice(at, at + 2), 16)));
    const colors = Array.from({ length: NUM_STEPS }, (_, step) => {
      const position = (step / (NUM_STEPS - 1)) * (anchors.length - 1);
      const left = Math.min(Math.floor(position), anchors.length - 2);
      return anchors[left].map((low, i) => Math.round(low + (anchors[left + 1][i] - low) * (position - left)));
    });
    const bytes = new Uint8ClampedArray(colors.flatMap((color) => [...color, 255]));
    palettes.set(name, { colors, pixels: new Uint32Array(bytes.buffer) });
  }
  return palettes.get(name);
}

// Maps [0, top], or [-top, top] if signed, to positions from 0 to 1 and to colors.
function colorScale({ colormap, scale, top, isSigned = false }) {
  const { colors, pixels } = palette(isSigned ? "difference" : colormap);
  const position = (value) => {
    const share = top > 0 ? SCALES[scale](Math.min(1, Math.abs(value) / top)) : 0;
    return isSigned ? 0.5 + (Math.sign(value) * share) / 2 : share;
  };
  const step = (value) => Math.round(position(value) * (NUM_STEPS - 1));
  return {
    scale,
    top,
    isSigned,
    position,
    pixels,
    color: (value) => colors[step(value)],
    pixel: (value) => pixels[step(value)],
  };
}

// Black on bright colors and white on dark ones, by relative luminance (WCAG).
function textColorOn(color) {
  const [r, g, b] = color.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
