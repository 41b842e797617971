// Colour maps, and where on them a value lies.

// Anchors of perceptually even maps at even distances; what lies between them is interpolated.
const ANCHORS = {
  viridis:
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26818e 21908c 1f9f88 28ae80 3ebc74 5dc963 82d34c abdc32 d5e21a fde725",
  cividis:
    "00224e 002e6a 1a386f 32436d 434e6c 52596d 61656f 6f7073 7c7b78 8b8778 9b9376 aba072 bbad6c ccba64 ddc958 efd748 fee838",
  magma:
    "000004 0a0822 1d1146 36106a 50127c 691c81 822681 9c2e7f b63779 cf4170 e65163 f5695c fb8761 fea571 fec387 fde0a2 fcfdbf",
  gray: "000000 ffffff",
  // Blue, white, orange: told apart by those who do not see red and green as two.
  difference: "053a72 1b5fa0 4a8bc2 8ab6db c3dbee f7f7f7 fbdcb4 f5b469 e08a2b b45f06 7f3b08",
};
const COLOURS = ["viridis", "cividis", "magma", "gray"];
const STEPS = 256;
const DECADES = 3;
const palettes = new Map();

// {rgb: [256][3], pixels: 256 numbers as ImageData wants them}
function palette(name) {
  if (!palettes.has(name)) {
    const anchors = ANCHORS[name].split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
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
  const neutral = new Uint32Array(new Uint8ClampedArray([247, 247, 247, 255]).buffer)[0];
  return {
    colours,
    top,
    scale,
    isSigned,
    place,
    rgb: (value) => (isSigned && place(value) === 0.5 ? [247, 247, 247] : rgb[step(value)]),
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
