"""A small paint box for product pictures: shapes, palettes, patterns, shading and a soft shadow on a light background.

Coordinates are fractions of the picture (x to the right, y down). Everything is drawn `SUPERSAMPLING` times too large and
averaged down, which is what makes the edges smooth.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.interpolate import PchipInterpolator

PICTURE_SIZE = 96
SUPERSAMPLING = 3
CANVAS = PICTURE_SIZE * SUPERSAMPLING

Colour = tuple[int, int, int]
Point = tuple[float, float]
Shape = Callable[[ImageDraw.ImageDraw, int], None]

# base, accent, dark: the only colours of an item that differ between palettes.
PALETTES: dict[str, tuple[Colour, Colour, Colour]] = {
    "cherry": ((204, 44, 60), (255, 214, 208), (116, 16, 30)),
    "orange": ((244, 134, 44), (255, 234, 206), (164, 74, 10)),
    "lemon": ((240, 204, 60), (255, 248, 214), (158, 120, 14)),
    "lime": ((160, 200, 66), (238, 248, 206), (84, 118, 20)),
    "forest": ((52, 122, 80), (205, 234, 196), (18, 62, 38)),
    "teal": ((30, 164, 172), (207, 242, 240), (8, 84, 94)),
    "sky": ((118, 182, 236), (228, 242, 255), (44, 100, 160)),
    "navy": ((48, 72, 148), (196, 210, 244), (18, 28, 66)),
    "plum": ((130, 66, 150), (236, 208, 244), (66, 26, 80)),
    "blush": ((244, 164, 190), (255, 234, 240), (184, 78, 116)),
    "chocolate": ((128, 84, 60), (238, 218, 198), (64, 38, 24)),
    "charcoal": ((92, 94, 100), (222, 222, 220), (34, 36, 40)),
}
PATTERNS = ("plain", "stripes", "dots", "checks", "chevron")
WOOD: Colour = (186, 140, 96)
METAL: Colour = (176, 180, 186)
WHITE: Colour = (248, 247, 243)


def polygon(points: Sequence[Point]) -> Shape:
    """Straight-edged area."""
    return lambda draw, fill: draw.polygon([(x * CANVAS, y * CANVAS) for x, y in points], fill=fill)


def curve(points: Sequence[Point], steps: int = 10) -> Shape:
    """Closed smooth area through the points (uniform Catmull-Rom spline)."""
    p1 = np.asarray(points, dtype=float)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (p[:, None, :] for p in (p0, p1, p2, p3))
    path = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return polygon([(float(x), float(y)) for x, y in path.reshape(-1, 2)])


def ellipse(cx: float, cy: float, rx: float, ry: float) -> Shape:
    """Filled ellipse."""
    corners = [(cx - rx) * CANVAS, (cy - ry) * CANVAS, (cx + rx) * CANVAS, (cy + ry) * CANVAS]
    return lambda draw, fill: draw.ellipse(corners, fill=fill)


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Shape:
    """Rectangle with rounded corners."""
    corners = [x0 * CANVAS, y0 * CANVAS, x1 * CANVAS, y1 * CANVAS]
    return lambda draw, fill: draw.rounded_rectangle(corners, radius=radius * CANVAS, fill=fill)


def stroke(points: Sequence[Point], width: float) -> Shape:
    """Line of constant width with round ends."""
    path = [(x * CANVAS, y * CANVAS) for x, y in points]
    half = width * CANVAS / 2

    def paint(draw: ImageDraw.ImageDraw, fill: int) -> None:
        draw.line(path, fill=fill, width=round(2 * half), joint="curve")
        for x, y in (path[0], path[-1]):
            draw.ellipse([x - half, y - half, x + half, y + half], fill=fill)

    return paint


def arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float, width: float) -> Shape:
    """Part of an ellipse drawn as a line; angles in degrees, clockwise from 3 o'clock."""
    angles = np.radians(np.linspace(start, end, 28))
    return stroke([(float(cx + rx * np.cos(a)), float(cy + ry * np.sin(a))) for a in angles], width)


def mirror(points: list[Point]) -> list[Point]:
    """Left half of an outline (top to bottom) completed with its mirror image about x = 0.5."""
    return points + [(1 - x, y) for x, y in reversed(points)]


def turned(cx: float, profile: Sequence[Point], tilt: float = 0.2, steps: int = 24) -> Shape:
    """Solid of revolution seen slightly from above; `profile` lists (y, radius) from top to bottom."""
    heights, radii = (np.asarray(column, dtype=float) for column in zip(*profile, strict=True))
    y = np.linspace(heights[0], heights[-1], steps)
    r = PchipInterpolator(heights, radii)(y)
    angles = np.linspace(np.pi, 0, steps)
    x = np.concatenate([cx - r, cx + r[-1] * np.cos(angles), cx + r[::-1]])
    return polygon(list(zip(x.tolist(), np.concatenate([y, y[-1] + tilt * r[-1] * np.sin(angles), y[::-1]]).tolist(), strict=True)))


@lru_cache(maxsize=1)
def _grid() -> tuple[np.ndarray, np.ndarray]:
    """x and y of every canvas pixel, measured from the centre."""
    axis = np.arange(CANVAS, dtype=np.float32) / CANVAS - 0.5
    return axis[None, :], axis[:, None]


def pattern_share(pattern: str, scale: float, slant: float) -> np.ndarray:
    """Share of the second colour in every canvas pixel, uint8 (CANVAS, CANVAS); `scale` is the period in picture widths."""
    x, y = _grid()
    along, across = np.float32(np.cos(slant) / scale), np.float32(np.sin(slant) / scale)
    u, v = x * along + y * across, y * along - x * across
    if pattern == "plain":
        share: np.ndarray = np.zeros_like(u)
    elif pattern == "stripes":
        share = u - np.floor(u) < 0.46
    elif pattern == "dots":
        v /= np.float32(0.87)
        row = np.floor(v)
        u += 0.5 * (row % 2)
        share = (u - np.floor(u) - 0.5) ** 2 + (0.87 * (v - row - 0.5)) ** 2 < 0.29**2
    elif pattern == "checks":
        share = 0.5 * (u - np.floor(u) < 0.5) + 0.5 * (v - np.floor(v) < 0.5)
    else:
        u *= np.float32(0.8)
        v += np.abs(u - np.floor(u) - 0.5) * np.float32(1.5)
        share = v - np.floor(v) < 0.42
    return (share * np.float32(255)).astype(np.uint8)


@lru_cache(maxsize=1)
def _background() -> Image.Image:
    """Off-white studio sweep, a little darker towards the floor."""
    shade = np.linspace(252, 243, CANVAS)[:, None, None] + np.zeros((1, CANVAS, 3))
    return Image.fromarray(shade.astype(np.uint8))


class Scene:
    """One product picture in the making.

    Args:
        palette: a name in `PALETTES`.
        pattern: one of `PATTERNS`.
        rng: source of the small differences between items of one palette and pattern.
    """

    def __init__(self, palette: str, pattern: str, rng: np.random.Generator) -> None:
        self.image = _background().copy()
        jitter = rng.integers(-9, 10, size=3)
        base, accent, dark = (np.clip(np.asarray(colour) + jitter, 0, 255) for colour in PALETTES[palette])
        share = Image.fromarray(pattern_share(pattern, rng.uniform(0.105, 0.135), rng.uniform(-0.12, 0.12)))
        second, first = (Image.new("RGB", (CANVAS, CANVAS), tuple(c.tolist())) for c in (dark if pattern == "chevron" else accent, base))
        self.cloth = np.asarray(Image.composite(second, first, share))
        self.colours: dict[str, np.ndarray] = {"base": base, "accent": accent, "dark": dark}

    def shadow(self, cx: float, cy: float, rx: float, ry: float = 0.035) -> None:
        """Soft contact shadow on the floor."""
        mask = Image.new("L", (CANVAS, CANVAS), 0)
        ellipse(cx, cy, rx, ry)(ImageDraw.Draw(mask), 120)
        self.image.paste((92, 88, 96), mask=mask.filter(ImageFilter.BoxBlur(CANVAS * 0.018)))

    def part(self, *shapes: Shape, paint: str | Colour = "cloth", light: str = "round", holes: Sequence[Shape] = ()) -> None:
        """Paint the union of `shapes` minus `holes`.

        Args:
            paint: "cloth" (the pattern), "base", "accent", "dark", or a fixed colour.
            light: "round" (lit from the left, like a cylinder), "ball", "down" (darker below) or "flat".
        """
        mask = Image.new("L", (CANVAS, CANVAS), 0)
        draw = ImageDraw.Draw(mask)
        for shape in shapes:
            shape(draw, 255)
        for hole in holes:
            hole(draw, 0)
        left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
        pixels = (
            self.cloth[top:bottom, left:right] if paint == "cloth" else np.asarray(self.colours.get(str(paint), paint), dtype=np.float32)
        )
        crop = mask.crop((left, top, right, bottom))
        # The blurred silhouette is darkest at the rim: a cheap stand-in for the way form turns away from the light.
        margin = 6
        padded = Image.new("L", (crop.width + 2 * margin, crop.height + 2 * margin), 0)
        padded.paste(crop, (margin, margin))
        inner = padded.filter(ImageFilter.BoxBlur(CANVAS * 0.012)).crop((margin, margin, margin + crop.width, margin + crop.height))
        rim = 0.66 + 0.34 * np.clip(np.asarray(inner, dtype=np.float32) / 255 * 2 - 1, 0, 1)
        lit = pixels * (rim * _light(light, crop.height, crop.width))[:, :, None]
        self.image.paste(Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)), (left, top), crop)

    def gloss(self, *shapes: Shape, strength: int = 90) -> None:
        """A translucent white highlight."""
        mask = Image.new("L", (CANVAS, CANVAS), 0)
        draw = ImageDraw.Draw(mask)
        for shape in shapes:
            shape(draw, strength)
        self.image.paste((255, 255, 255), mask=mask.filter(ImageFilter.BoxBlur(CANVAS * 0.004)))

    def png(self) -> bytes:
        """The finished picture, `PICTURE_SIZE` pixels a side."""
        buffer = io.BytesIO()
        self.image.reduce(SUPERSAMPLING).save(buffer, format="PNG", compress_level=6)
        return buffer.getvalue()


def _light(kind: str, height: int, width: int) -> np.ndarray:
    """Brightness factor over a part's bounding box, (height, width)."""
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    if kind == "round":
        return 1.10 - 0.62 * (x - 0.34) ** 2 - 0.06 * y
    if kind == "ball":
        return 1.14 - 0.5 * ((x - 0.36) ** 2 + (y - 0.28) ** 2)
    if kind == "down":
        return 1.08 - 0.2 * y - 0.05 * x
    return np.ones((height, width), dtype=np.float32)
