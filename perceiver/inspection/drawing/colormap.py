"""The colormaps of figures and of the explorer's page."""

import numpy as np
from jaxtyping import Float, UInt8

COLORMAPS = {
    "viridis": (
        "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26818e "
        "21908c 1f9f88 28ae80 3ebc74 5dc963 82d34c abdc32 d5e21a fde725"
    ),
    "cividis": (
        "00224e 002e6a 1a386f 32436d 434e6c 52596d 61656f 6f7073 "
        "7c7b78 8b8778 9b9376 aba072 bbad6c ccba64 ddc958 efd748 fee838"
    ),
    "magma": (
        "000004 0a0822 1d1146 36106a 50127c 691c81 822681 9c2e7f "
        "b63779 cf4170 e65163 f5695c fb8761 fea571 fec387 fde0a2 fcfdbf"
    ),
    "gray": "000000 ffffff",
}
"""Name -> anchors at equal distances, between which colors are interpolated; all but gray are perceptually uniform."""
DIFFERENCE = "053a72 1b5fa0 4a8bc2 8ab6db c3dbee f7f7f7 fbdcb4 f5b469 e08a2b b45f06 7f3b08"
"""Blue, white, orange, for signed values; suitable for red-green color blindness."""
OUTLINE = "#ff5a4f"
"""Color of boxes and marks, in no colormap; a dark line around it gives contrast to bright cells."""


def colorize(values: Float[np.ndarray, "rows columns"], low: float, high: float) -> UInt8[np.ndarray, "rows columns 3"]:
    """Map [low, high] to viridis."""
    codes = COLORMAPS["viridis"].split()
    anchors = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in codes], dtype=np.float64)
    place = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(anchors) - 1)
    channels = [np.interp(place, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
