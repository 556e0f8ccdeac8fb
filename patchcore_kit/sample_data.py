"""The built-in data set: eight kinds of part, drawn good and defective, for rooms without data.

The images are computer drawings, not photographs: good to learn with and to test with, no measure of a detector's
worth in a factory.

A painter lays materials on a `Scene` (colour, height, shine, metal); `photograph` lights it; `expose` adds a
camera's blur and noise. A defect has a random generator of its own: a defective part and its good twin differ by
the defect alone, and its mask is where their pictures differ before blur and noise.
"""

import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from patchcore_kit.errors import ResultsError, SettingsError, check_choice
from patchcore_kit.files import user_path
from patchcore_kit.progress import Line, line_of

FRAME = 256  # lengths are in units of 1/256 of the frame's side, whatever the size of the image
CENTRE = 224  # defects lie in the central square of this side: a centre crop keeps them
AREA = (20, 8000)  # least and greatest area of a defect, square units
VISIBLE = 3 / 255  # what changes the picture less than this is no defect
SUPERSAMPLE = 2  # scenes are this much finer than the image, for clean edges

# --- the canvas: a place is a complex number, x + 1j * y, the middle of the frame 0 and y downwards --------------


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """A colour (3, 1, 1), which spreads over maps (H, W)."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


@dataclass(frozen=True, slots=True)
class Scene:
    """What stands before the camera: maps (H, W), drawn on in the part's own places."""

    u: np.ndarray  # where each pixel is on the part, across
    v: np.ndarray  # and down
    colour: np.ndarray  # (3, H, W), 0 to 1
    height: np.ndarray  # in units of length
    shine: np.ndarray  # strength of highlights, 0 to 1
    metal: np.ndarray  # 0: matt, 1: mirrors the room
    scale: float  # pixels per unit
    turn: complex  # frame = turn * part + shift
    shift: complex

    def pixels(self, places: complex | np.ndarray) -> np.ndarray:
        """Places (...) -> x and y in pixels (..., 2)."""
        there = (self.turn * places + self.shift + FRAME / 2 * (1 + 1j)) * self.scale
        return np.stack([there.real, there.imag], -1)

    def near(self, place: complex, reach: float) -> "Scene":
        """The scene around a place, at least `reach` units to every side: drawing on it draws on the whole."""
        (x, y), reach = self.pixels(place), 1.5 * reach * self.scale
        rows, columns = (slice(max(int(at - reach), 0), max(int(at + reach), 0)) for at in (y, x))
        maps = (self.u, self.v, self.colour, self.height, self.shine, self.metal)
        return Scene(*(m[..., rows, columns] for m in maps), self.scale, self.turn, self.shift)

    def cover(
        self,
        alpha: np.ndarray,
        colour: np.ndarray | None = None,
        *,
        height: np.ndarray | float | None = None,
        shine: float | None = None,
        metal: float | None = None,
    ):
        """Lay a material over the scene: whole where alpha is 1, mixed with what is there below 1."""
        layers = ((self.colour, colour), (self.height, height), (self.shine, shine), (self.metal, metal))
        for below, above in layers:
            if above is not None:
                below[:] += alpha * (above - below)

    def solid(
        self,
        distance: np.ndarray,
        colour: np.ndarray,
        top: float,
        bevel: float = 2,
        *,
        shine: float = 0,
        metal: float = 0,
    ):
        """Lay a flat body with bevelled edges inside an outline."""
        height = top - bevel * inside(-distance - 1, 2)
        self.cover(inside(distance), colour, height=height, shine=shine, metal=metal)

    def soak(self, alpha: np.ndarray):
        """Darken and yellow the colour, as a liquid does."""
        self.colour[:] *= 1 - alpha * rgb(0.7, 1.0, 1.35)


def blank_scene(size: int, turn: complex, shift: complex) -> Scene:
    """A black, flat, matt scene for an image of the given size."""
    side = size * SUPERSAMPLE
    x = (np.arange(side, dtype=np.float32) + 0.5) * FRAME / side - FRAME / 2
    part = ((x + 1j * x[:, None] - shift) / turn).astype(np.complex64)
    maps = (np.zeros(shape, np.float32) for shape in ((3, side, side), *3 * [(side, side)]))
    return Scene(part.real.copy(), part.imag.copy(), *maps, side / FRAME, turn, shift)


def field(rng: Generator, scene: Scene, scale: float, stretch: float = 1) -> np.ndarray:
    """A smooth random map (H, W) around 0, deviation 0.7: features of `scale` units, `stretch` times as wide."""
    rows, columns = FRAME / scale, FRAME / (scale * stretch)
    grid = Image.fromarray(rng.standard_normal((int(rows) + 4, int(columns) + 4), np.float32))
    size, box = (len(scene.u), len(scene.u)), (1, 1, 1 + columns, 1 + rows)
    return np.asarray(grid.resize(size, Image.Resampling.BICUBIC, box))


def rough(rng: Generator, scene: Scene, scale: float) -> np.ndarray:
    """A random map (H, W) with detail at three scales."""
    return sum(field(rng, scene, scale / 2**k) / 2**k for k in range(3))


def inside(distance: np.ndarray, soft: float = 1) -> np.ndarray:
    """Signed distance to an outline (negative inside) -> alpha, with an edge `soft` units wide."""
    return np.clip(0.5 - distance / soft, 0, 1)


def box(scene: Scene, place: complex, wide: float, tall: float, corner: float = 0, turn: float = 0) -> np.ndarray:
    """Signed distance to a rectangle with round corners, turned by `turn` radians."""
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    u, v = scene.u - float(place.real), scene.v - float(place.imag)
    a = np.abs(cos * u + sin * v) - (wide / 2 - corner)
    b = np.abs(cos * v - sin * u) - (tall / 2 - corner)
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - corner


def disc(scene: Scene, place: complex, radius: float) -> np.ndarray:
    """Signed distance to a circle."""
    return np.hypot(scene.u - float(place.real), scene.v - float(place.imag)) - radius


def blob(rng: Generator, scene: Scene, place: complex, radius: float, uneven: float = 0.2) -> np.ndarray:
    """Signed distance to an uneven round outline."""
    angle = np.arctan2(scene.v - float(place.imag), scene.u - float(place.real))
    waves = (rng.normal(0, uneven / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 7))
    return disc(scene, place, radius) - radius * sum(waves)


def wander(rng: Generator, at: complex, length: float, wiggle: float, heading: float | None = None) -> np.ndarray:
    """Points, half a unit apart, of a random curve: a wiggle of 0.02 bends like a scratch, 0.2 like a crack."""
    heading = rng.uniform(0, 2 * np.pi) if heading is None else heading
    bends = np.cumsum(rng.normal(0, wiggle, int(2 * length)))
    points = np.cumsum(0.5 * np.exp(1j * (heading + bends - bends.mean())))
    return points - points.mean() + at


def stroke(scene: Scene, points: np.ndarray, width: float, ends: float = 0.45) -> np.ndarray:
    """Alpha of a brush put on each point, so a line if they are close; `ends`: how wide the first and last are."""
    canvas = Image.new("L", (2 * len(scene.u), 2 * len(scene.u)))
    draw = ImageDraw.Draw(canvas)
    radii = scene.scale * width * np.minimum(1, ends + 4 * np.sin(np.linspace(0, np.pi, len(points))))
    for (x, y), r in zip((2 * scene.pixels(points)).tolist(), radii.tolist(), strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return np.asarray(canvas.reduce(2), np.float32) / 255


@cache
def printed(text: str) -> np.ndarray:
    """A line of text (H, W), 0 to 1, with a margin of 4 pixels."""
    font = ImageFont.load_default(48)
    left, top, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(canvas).text((4 - left, 4 - top), text, fill=255, font=font)
    return np.asarray(canvas, np.float32) / 255


def lettering(text: str, along: np.ndarray, down: np.ndarray, tall: float) -> np.ndarray:
    """Alpha of a line of text, `tall` units high, around the origin of two coordinates, bent as they are."""
    picture = printed(text)
    dots = (len(picture) - 8) / tall
    at = np.stack([down * dots + picture.shape[0] / 2, along * dots + picture.shape[1] / 2])
    return ndimage.map_coordinates(picture, at, order=1)


def anywhere(rng: Generator, reach: float) -> complex:
    """A random place in the square of half side `reach`."""
    return complex(*rng.uniform(-reach, reach, 2))


def around(rng: Generator, least: float, most: float) -> complex:
    """A random place between two distances from the middle."""
    return complex(rng.uniform(least, most) * np.exp(1j * rng.uniform(0, 2 * np.pi)))


def shades(rng: Generator, spread: float, *colours: np.ndarray) -> list[np.ndarray]:
    """The colours, all a little lighter or darker and of another tint, as one batch differs from the next."""
    change = rng.normal(1, spread) * rgb(*rng.normal(1, spread / 3, 3))
    return [colour * change for colour in colours]


def table(rng: Generator, scene: Scene, colour: np.ndarray):
    """Lay the plain surface that an object lies on."""
    grain = 0.012 * field(rng, scene, 1.5) + 0.01 * field(rng, scene, 60)
    scene.colour[:] = shades(rng, 0.008, colour)[0] + grain


# --- painters: (generator of the part, scene, defect or None, generator of the defect) ---------------------------


def weave(rng: Generator, scene: Scene, defect: str | None, flaw: Generator):
    """Plain weave of pale warp and blue weft."""
    u = (scene.u + 0.8 * field(rng, scene, 45) + rng.uniform(0, 18)) / 9
    v = (scene.v + 0.8 * field(rng, scene, 45) + rng.uniform(0, 18)) / 9
    i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)  # number of the warp, of the weft thread
    a, b = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5  # place across the thread, -0.5 to 0.5

    def each(per_thread: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return per_thread.astype(np.float32).take(numbers, mode="wrap")

    slack, dye = rng.normal(1.35, 0.05, (2, 64)), rng.normal(1, 0.02, (2, 64))
    fuzz = field(rng, scene, 1.2)
    warp_left = weft_left = 1.0  # how much of the threads the defect leaves
    if defect == "broken_thread":
        at = anywhere(flaw, 75)
        row = j.flat[np.argmin(disc(scene, at, 0))]
        gap = np.abs(scene.u - at.real + 2 * fuzz) - flaw.uniform(9, 22)
        weft_left = np.where(j == row, 1 - inside(gap, 3), 1)
    elif defect == "hole":
        hole = blob(flaw, scene, anywhere(flaw, 75), flaw.uniform(7, 18), 0.3)
        torn = flaw.uniform(-7, 2, (2, 64))  # every thread ends where it tore
        warp_left, weft_left = inside(each(torn[0], i) - hole, 2), inside(each(torn[1], j) - hole, 2)
    over = (1 - 2 * ((i + j) % 2)).astype(np.float32)  # 1: the warp lies on top, -1: the weft
    warp = warp_left * np.sqrt(np.maximum(0.27 - a * a, 0)) * (each(slack[0], i) + 0.65 * over * np.cos(np.pi * b))
    weft = weft_left * np.sqrt(np.maximum(0.27 - b * b, 0)) * (each(slack[1], j) - 0.65 * over * np.cos(np.pi * a))
    on_top = warp > weft
    twist = np.sin(2 * np.pi * (2.2 * np.where(on_top, v, u) + 1.2 * np.where(on_top, a, b)))
    pale, blue = shades(rng, 0.006, rgb(0.84, 0.81, 0.74), rgb(0.36, 0.46, 0.60))
    scene.colour[:] = np.where(on_top, pale, blue)
    scene.colour[:] *= np.where(on_top, each(dye[0], i), each(dye[1], j)) * (1 + 0.09 * twist + 0.1 * fuzz)
    scene.height[:] = 5.2 * np.maximum(warp, weft)
    scene.cover(inside(np.maximum(warp, weft) - 0.12, 0.16), rgb(0.09, 0.08, 0.08))
    if defect == "stain":
        edge = blob(flaw, scene, anywhere(flaw, 75), flaw.uniform(11, 24), 0.35)
        scene.soak(inside(edge + 2 * fuzz, 5) * flaw.uniform(0.2, 0.45))


def terrazzo(rng: Generator, scene: Scene, defect: str | None, flaw: Generator):
    """Polished chips of five kinds of stone in cement."""
    cement, *stones = shades(
        rng,
        0.008,
        rgb(0.72, 0.70, 0.67),
        rgb(0.88, 0.86, 0.82),
        rgb(0.42, 0.40, 0.40),
        rgb(0.70, 0.47, 0.38),
        rgb(0.58, 0.60, 0.60),
        rgb(0.80, 0.68, 0.50),
    )
    radii = np.concatenate([rng.uniform(4, 6.5, 330), rng.uniform(1.2, 3.5, 700)])
    places = rng.uniform(-140, 140, len(radii)) + 1j * rng.uniform(-140, 140, len(radii))
    angles = np.arange(8) * np.pi / 4 + rng.uniform(0, 1.2, (len(radii), 8))
    corners = rng.uniform(0.8, 1.1, (len(radii), 8)) * np.exp(1j * angles) * radii[:, None] + places[:, None]
    corners = scene.pixels(corners).reshape(len(radii), 16).tolist()
    fills = np.reshape(stones, (5, 3))[rng.integers(5, size=len(radii))] * rng.normal(255, 9, (len(radii), 1))
    touch = np.abs(places[:, None] - places) < radii[:, None] + radii + 0.5
    canvas = Image.new("RGB", scene.u.shape, tuple((255 * cement).ravel().astype(int)))
    laid = np.zeros(len(radii), bool)
    for k, fill in enumerate(fills.clip(0, 255).astype(int).tolist()):
        laid[k] = not (touch[k] & laid).any()  # big chips first, none over another
        if laid[k]:
            ImageDraw.Draw(canvas).polygon(corners[k], fill=tuple(fill))
    bare = np.moveaxis(np.asarray(canvas, np.float32) / 255, 2, 0)
    veins = 0.04 * field(rng, scene, 5) * np.abs(bare - cement).max(0).clip(0, 0.1) * 10
    scene.colour[:] = bare + (veins + 0.02 * field(rng, scene, 1.2) + 0.012 * rough(rng, scene, 40))
    scene.shine[:] = 0.25
    if defect == "pit":
        pit = inside(blob(flaw, scene, anywhere(flaw, 80), flaw.uniform(7, 13), 0.3) + rough(flaw, scene, 5))
        floor = -6 + 1.2 * field(flaw, scene, 3)
        scene.cover(pit, cement * 0.55 + 0.05 * field(flaw, scene, 2), height=floor, shine=0)
    elif defect == "crack":
        crack = wander(flaw, anywhere(flaw, 60), flaw.uniform(40, 100), 0.2)
        branch = wander(flaw, crack[len(crack) // 3], 40, 0.2)
        alpha = np.maximum(stroke(scene, crack, flaw.uniform(1, 1.8)), stroke(scene, branch[40:], 0.9))
        scene.cover(alpha * flaw.uniform(0.6, 1), rgb(0.22, 0.20, 0.19), height=-1.5)
    elif defect == "oil_spot":
        spot = blob(flaw, scene, anywhere(flaw, 75), flaw.uniform(12, 26), 0.15)
        scene.soak(inside(spot, 6) * flaw.uniform(0.2, 0.42))


def wood(rng: Generator, scene: Scene, defect: str | None, flaw: Generator):
    """A planed board of oak, its grain from left to right."""
    bend = 10 * field(rng, scene, 60, 4) + 2 * field(rng, scene, 12, 8)
    ring = (scene.v + bend + rng.uniform(0, 50)) / rng.uniform(11, 13)
    late = ndimage.uniform_filter1d((ring - np.floor(ring)) ** 2.5, 5, axis=0)  # dark, then suddenly pale
    fibre = field(rng, scene, 1, 40) + 0.7 * field(rng, scene, 2.5, 16)
    pores = inside(1.35 - field(rng, scene, 1.1, 9) - 0.35 * late, 0.5)
    pale, dark = shades(rng, 0.008, rgb(0.80, 0.63, 0.43), rgb(0.60, 0.41, 0.24))
    tone = 0.62 * late + 0.16 * fibre + 0.12 * field(rng, scene, 70, 2)
    scene.colour[:] = pale + (dark - pale) * tone
    scene.cover(0.55 * pores, dark * 0.62)
    scene.height[:] = 0.25 * fibre - 0.5 * pores
    if defect == "holes":
        for _ in range(flaw.integers(1, 5)):
            hole = blob(flaw, scene, anywhere(flaw, 80), flaw.uniform(1.5, 3.2), 0.12)
            scene.cover(0.35 * inside(hole - 1, 2.5), dark * 0.6)
            scene.cover(inside(hole), rgb(0.10, 0.06, 0.04), height=-5)
    elif defect == "scratch":
        line = wander(flaw, anywhere(flaw, 60), flaw.uniform(40, 95), 0.015, flaw.uniform(0.5, 2.6))
        scene.cover(stroke(scene, line, flaw.uniform(1.2, 2.2)) * flaw.uniform(0.65, 1), pale * 1.18, height=-0.8)
    elif defect == "liquid":
        drop = blob(flaw, scene, anywhere(flaw, 75), flaw.uniform(8, 20), 0.2)
        scene.soak(inside(drop, 2) * flaw.uniform(0.12, 0.28) * (1 + 0.6 * inside(np.abs(drop + 1), 3)))


def bottle_cap(rng: Generator, scene: Scene, defect: str | None, flaw: Generator):
    """A crown cap from above: red enamel, white print, 21 flutes."""
    table(rng, scene, rgb(0.62, 0.63, 0.64))
    out, angle = np.hypot(scene.u, scene.v), np.arctan2(scene.v, scene.u)
    crush = 0.0
    if defect == "bent_rim":
        away = np.abs((angle - flaw.uniform(0, 2 * np.pi)) % (2 * np.pi) - np.pi)
        crush = flaw.uniform(0.5, 1) * np.exp(-((away / flaw.uniform(0.16, 0.3)) ** 4))
    wave = np.cos(21 * angle) * (1 - crush)
    rim = 90 + 3.5 * wave - 7 * crush
    slope = np.clip((out - 62) / (rim - 62), 0, 1)  # 0 on the flat top, 1 at the rim
    dome = 26 * np.sqrt(1 - 0.92 * slope**2) - 3 * slope + 5 * wave * slope * (1 - slope)
    body = inside(out - rim)
    red, white = shades(rng, 0.015, rgb(0.62, 0.07, 0.09), rgb(0.92, 0.90, 0.86))
    slip = anywhere(rng, 0.6)  # the print is never quite central
    u, v = scene.u - slip.real, scene.v - slip.imag
    out, angle = np.hypot(u, v), np.arctan2(v, u)
    words = lettering("SPRUDEL   ·   MINERAL   ·   NATUR   ·   QUELLE   ·", angle * 45.5, 45.5 - out, 9.5)
    rings = inside(np.minimum(np.abs(out - 35) - 0.9, np.abs(out - 56) - 0.6))
    ink = np.maximum.reduce([words, rings, lettering("21", u, v, 30)]) * body
    if defect == "misprint":
        dry = blob(flaw, scene, around(flaw, 15, 52), flaw.uniform(4, 14), 0.3) + field(flaw, scene, 3)
        ink *= 1 - inside(dry, 2)
    speck = 0.015 * field(rng, scene, 1.5)
    scene.cover(body, red + speck, height=dome - 1.2 * inside(np.abs(out - 60) - 1, 4), shine=0.8, metal=0.12)
    scene.cover(ink, white + speck, shine=0.6)
    if defect == "scratch":
        line = stroke(scene, wander(flaw, around(flaw, 0, 70), flaw.uniform(14, 45), 0.02), flaw.uniform(0.8, 1.5))
        line *= flaw.uniform(0.4, 0.9)
        scene.cover(line, rgb(0.70, 0.68, 0.66), metal=0.6)
        scene.height[:] -= 0.7 * line


def screw(rng: Generator, scene: Scene, defect: str | None, flaw: Generator):
    """A wood screw of galvanised steel."""
    table(rng, scene, rgb(0.80, 0.80, 0.79))
    u, v, depth = scene.u, scene.v, 3.4
    if defect == "bent_tip":
        bend = flaw.choice([-1, 1]) * flaw.uniform(0.003, 0.008)
        v = v - bend * np.maximum(u - flaw.uniform(20, 50), 0) ** 2
    elif defect == "stripped_thread":
        worn = inside(np.abs(u - flaw.uniform(-20, 55)) - flaw.uniform(6, 14), 4)
        depth = depth * (1 - flaw.uniform(0.6, 1) * worn)
    turn = u / 9.2 + 0.26 * np.clip(v / 11, -1.3, 1.3) + rng.uniform(0, 1)
    ridge = np.abs(2 * (turn - np.floor(turn)) - 1) ** 1.5
    radius = 9 + inside(-32 - u, 8) * (depth * ridge - 1)
    radius = radius * np.clip((88 - u) / 26, 0, 1) ** 0.7  # the tip
    radius = np.where(u < -62, 22 * np.sqrt(np.clip(1 - ((u + 62) / 22) ** 2, 0, 1)), radius)  # the head
    slot = (np.abs(v) < 2.2) & (u < -75)
    body = inside(np.maximum(np.abs(v) - radius, np.abs(u - 2) - 86), 0.8) * ~slot
    patina = 0.03 * rough(rng, scene, 14) + 0.03 * field(rng, scene, 1.3)
    steel = shades(rng, 0.015, rgb(0.84, 0.85, 0.87))[0] + patina
    scene.cover(body, steel, height=22 + np.sqrt(np.maximum(radius**2 - v * v, 0)), shine=0.4, metal=0.85)
    if defect == "rust":
        at = complex(flaw.uniform(-70, 65), flaw.uniform(-4, 4))
        spot = inside(blob(flaw, scene, at, flaw.uniform(4, 9), 0.3) + 3 * rough(flaw, scene, 5), 2)
        scene.cover(spot * body * flaw.uniform(0.4, 0.9), rgb(0.42, 0.24, 0.12), shine=0, metal=0.1)


TIN, GOLD, WHITE, BLACK = rgb(0.8, 0.81, 0.82), rgb(0.8, 0.66, 0.34), rgb(0.88, 0.89, 0.86), rgb(0.1, 0.1, 0.11)
BOARD_CHIPS = ((-42, -14, 46, 26, 8, 0), (34, 4, 40, 40, 7, 7))  # x, y, width, height, pins above, pins beside
# fmt: off
BOARD_PARTS = (  # x, y, upright, capacitor (or resistor)
    (-64, -50, 0, 0), (-42, -50, 0, 0), (-20, -50, 0, 1), (8, -48, 1, 1), (22, -48, 1, 1), (36, -48, 1, 0),
    (-84, 26, 1, 0), (-70, 26, 1, 0), (-56, 26, 1, 1), (-62, 54, 0, 0), (-40, 54, 0, 1), (0, -14, 1, 1),
    (80, 0, 1, 0),
)
BOARD_TEXTS = (  # text, x, y, height of the letters
    ("PCK-21", -8, 64, 9), ("R1", -64, -60, 5), ("R2", -42, -60, 5), ("C1", -20, -60, 5), ("U1", -72, -4, 5),
    ("U2", 34, 36, 5), ("C7", -40, 64, 5), ("Q1", 6, 22, 5),
)
# fmt: on


@cache
def board_tracks() -> list[np.ndarray]:
    """The copper of the board: runs with two bends, as points about half a unit apart."""
    layout, tracks = np.random.default_rng(21), []  # a fixed seed: all boards have one layout
    for _ in range(90):
        first, bend = layout.choice([1, -1, 1j, -1j]), layout.choice([1 + 1j, 1 - 1j])
        runs = first * 7 * np.array([layout.integers(1, 5), layout.integers(1, 3) * bend, layout.integers(1, 5)])
        knees = np.cumsum([complex(*(7 * layout.integers((-12, -9), (13, 10)))), *runs])
        if (np.abs(knees.real) < 92).all() and (np.abs(knees.imag) < 68).all():
            tracks.append(np.interp(np.arange(0, 3, 0.03), range(4), knees))
    return tracks


def board(rng: Generator, scene: Scene, defect: str | None, flaw: Generator):
    """A printed circuit board, of the same layout every time."""
    table(rng, scene, rgb(0.66, 0.66, 0.65))
    green = shades(rng, 0.015, rgb(0.08, 0.32, 0.19))[0]
    scene.solid(box(scene, 0j, 200, 150, 6), green + 0.012 * field(rng, scene, 1.4), 8, 1, shine=0.3)
    copper = stroke(scene, np.concatenate(board_tracks()), 1.8)
    scene.cover(copper, green * 1.4 + 0.03)
    scene.height[:] += 0.4 * copper
    vias = np.concatenate([track[[0, -1]] for track in board_tracks()])
    for places, outer, inner in ((vias, 5, 2.2), (np.array([-90 - 65j, -90 + 65j, 90 - 65j, 90 + 65j]), 14, 9)):
        scene.cover(stroke(scene, places, outer, 1), GOLD, metal=0.3)
        scene.cover(stroke(scene, places, inner, 1), BLACK, height=4, metal=0)
    for text, x, y, tall in BOARD_TEXTS:
        spot = scene.near(complex(x, y), 3 * tall)
        spot.cover(lettering(text, spot.u - x, spot.v - y, tall), WHITE)

    can, crystal, plug = 76 - 38j, 4 + 42j, 54 + 58j
    spot = scene.near(can, 15)
    spot.solid(disc(spot, can, 14), TIN, 24, 6, metal=0.5)
    spot.cover(inside(np.maximum(disc(spot, can, 12), spot.u - 70)), BLACK)
    spot = scene.near(crystal, 16)
    spot.solid(box(spot, crystal, 30, 13, 6), TIN, 16, 4, metal=0.5)
    spot = scene.near(plug, 28)
    spot.solid(box(spot, plug, 54, 10, 1), BLACK, 18, shine=0.2)
    for n in range(6):
        spot.solid(box(spot, plug + 9 * n - 22.5, 3, 3), GOLD, 24, metal=0.4)

    for x, y, width, height, above, beside in BOARD_CHIPS:
        place = complex(x, y) + anywhere(rng, 0.2)
        spot = scene.near(place, 26)
        a, b = spot.u - place.real, spot.v - place.imag
        for along, across, pins, long, wide in ((a, b, above, width, height), (b, a, beside, height, width)):
            if pins:
                pitch = (long - 4) / pins
                pin = np.abs((along + long / 2 - 2) % pitch - pitch / 2) - 1.3
                row = np.maximum(np.abs(along) - long / 2 + 2, np.abs(across) - wide / 2 - 5)
                spot.solid(np.maximum(pin, row), TIN, 11, 1, metal=0.5)
        spot.solid(box(spot, place, width, height, 1), BLACK, 17, 3, shine=0.2)
        spot.cover(0.6 * lettering("KT 4021", a, b, 6), rgb(0.6, 0.6, 0.6))
        spot.cover(inside(disc(spot, place + complex(5 - width / 2, 5 - height / 2), 1.6)), rgb(0.04, 0.04, 0.04))
    if defect == "solder_bridge":
        x, y, width, height, pins, _ = flaw.choice(BOARD_CHIPS)
        gap = (flaw.integers(1, pins) / pins - 0.5) * (width - 4)
        place = complex(x + gap, y + flaw.choice([-1, 1]) * (height / 2 + 3.2))
        spot = scene.near(place, 11)
        spot.solid(blob(flaw, spot, place, flaw.uniform(4, 7)), TIN, 15, 4, metal=0.5)

    odd = flaw.integers(len(BOARD_PARTS)) if defect in ("missing_part", "shifted_part") else None
    for n, (x, y, upright, capacitor) in enumerate(BOARD_PARTS):
        place, turn = complex(x, y), upright * np.pi / 2
        spot = scene.near(place, 12)
        for end in (-5.5, 5.5):
            spot.solid(box(spot, place + end * np.exp(1j * turn), 6, 8, 1, turn), TIN, 9, 1, metal=0.4)
        place, turn = place + anywhere(rng, 0.25), turn + rng.normal(0, 0.01)
        if n == odd and defect == "missing_part":
            continue
        if n == odd:
            place, turn = place + around(flaw, 1.5, 5), turn + flaw.choice([-1, 1]) * flaw.uniform(0.3, 0.9)
        body, middle = box(spot, place, 14, 7, 0.6, turn), box(spot, place, 8.5, 8, 0, turn)
        spot.solid(body, TIN, 13 + 2 * capacitor, metal=0.4)
        colour = rgb(0.62, 0.47, 0.33) if capacitor else BLACK
        spot.cover(inside(np.maximum(body, middle)), colour, shine=0.2, metal=0)


def pill(rng: Generator, scene: Scene, defect: str | None, flaw: Generator):
    """A coated tablet with an imprint."""
    table(rng, scene, rgb(0.26, 0.31, 0.38))
    coat = shades(rng, 0.01, rgb(0.88, 0.83, 0.73))[0]
    edge = box(scene, 0j, 152, 84, 42)
    body = inside(edge, 1.2)
    text = flaw.choice(["K 26", "K 52", "X 25", "K 35", "K 28", "R 25"]) if defect == "misprint" else "K 25"
    imprint = lettering(text, scene.u, scene.v, 26)
    tint = coat + (0.015 * rough(rng, scene, 20) + 0.012 * field(rng, scene, 1.3))
    dome = 36 - 24 * (1 - np.clip(-edge / 30, 0, 1)) ** 2.2 + 0.12 * field(rng, scene, 2)
    scene.cover(body, tint, height=dome - 1.6 * ndimage.gaussian_filter(imprint, 0.75 * scene.scale), shine=0.35)
    speckles = inside(1.45 - field(rng, scene, 2.2), 0.5)
    scene.cover(0.35 * body * speckles, coat * rgb(0.86, 0.72, 0.60))
    scene.cover(0.12 * imprint, coat * 0.7)
    if defect == "chip":
        outwards = np.exp(1j * flaw.uniform(0, 2 * np.pi))
        at = 34 * np.sign(outwards.real) + 42 * outwards
        gone = inside(blob(flaw, scene, at, flaw.uniform(7, 15), 0.3) + 1.2 * rough(flaw, scene, 5)) * body
        floor = np.minimum(scene.height, 15 + 1.5 * rough(flaw, scene, 5))
        scene.cover(gone, rgb(0.97, 0.95, 0.91) + 0.03 * rough(flaw, scene, 3), height=floor, shine=0)
    elif defect == "spots":
        for _ in range(flaw.integers(1, 4)):
            at = complex(flaw.uniform(-60, 60), flaw.uniform(-30, 30))
            dot = inside(blob(flaw, scene, at, flaw.uniform(1.8, 3.8), 0.25), 1.5)
            scene.cover(dot * body * flaw.uniform(0.25, 0.7), rgb(0.30, 0.16, 0.12))


def biscuit(rng: Generator, scene: Scene, defect: str | None, flaw: Generator):
    """A butter biscuit with a scalloped edge and pricked holes."""
    table(rng, scene, rgb(0.42, 0.44, 0.48))
    u, v = scene.u, scene.v
    along = np.where(np.abs(v) / 62 > np.abs(u) / 84, u / 13, v / 12.4)  # counts the scallops of the nearest side
    edge = box(scene, 0j, 168, 124, 8) - 2.2 * np.abs(np.cos(np.pi * along)) + 0.5 * field(rng, scene, 8)
    crumb = rough(rng, scene, 6)
    bake = 0.16 * rough(rng, scene, 60) + 1.1 * np.exp(np.minimum(edge, 0) / 9) + rng.normal(0.1, 0.06)
    if defect == "broken":
        corner = complex(84 * flaw.choice([-1, 1]), 62 * flaw.choice([-1, 1])) * flaw.uniform(0.85, 1)
        bite = blob(flaw, scene, corner, flaw.uniform(10, 26), 0.3) + 1.5 * rough(flaw, scene, 5)
        edge = np.maximum(edge, -bite)
    elif defect == "burnt":
        spot = blob(flaw, scene, complex(flaw.uniform(-65, 65), flaw.uniform(-45, 45)), flaw.uniform(8, 18), 0.3)
        bake += flaw.uniform(0.5, 1.2) * inside(spot + 2 * crumb, 12)
    golden, brown = rgb(0.84, 0.65, 0.38), rgb(0.60, 0.36, 0.15)
    tint = golden + (brown - golden) * bake + 0.035 * field(rng, scene, 1.5)
    rise = 17 - 12 * (1 - np.clip(-edge / 9, 0, 1)) ** 2 + 0.45 * crumb + 1.5 * inside(np.abs(edge + 11) - 1.5, 3)
    rise += 2.4 * ndimage.gaussian_filter(lettering("BEURRE", u, v, 21), 0.9 * scene.scale)
    scene.cover(inside(edge), tint, height=rise)
    holes = [complex(x, y) for y in (-42, -22, 22, 42) for x in (-64, -38.4, -12.8, 12.8, 38.4, 64)]
    blocked = flaw.choice(holes) if defect == "blocked_hole" else None
    for hole in holes:
        at, width = hole + anywhere(rng, 0.8), rng.uniform(1.9, 2.5)
        if hole != blocked:
            spot = scene.near(at, 5)
            deep = disc(spot, at, width)
            spot.cover(0.8 * inside(deep, 1.8), brown * 0.35)
            spot.height[:] -= 6 * inside(deep, 2.2)


@dataclass(frozen=True, slots=True)
class Product:
    """A kind of part: who paints it, its kinds of defect, how far from straight and from the middle it lies."""

    painter: Callable[[Generator, Scene, str | None, Generator], None]
    defects: tuple[str, ...]
    turn: float = 2  # degrees, to either side
    shift: float = 4  # units, along x and along y


PRODUCTS = {
    "weave": Product(weave, ("hole", "broken_thread", "stain")),
    "terrazzo": Product(terrazzo, ("pit", "crack", "oil_spot")),
    "wood": Product(wood, ("holes", "scratch", "liquid"), turn=0),
    "bottle_cap": Product(bottle_cap, ("bent_rim", "misprint", "scratch"), turn=8),
    "screw": Product(screw, ("bent_tip", "stripped_thread", "rust"), turn=25),
    "board": Product(board, ("missing_part", "shifted_part", "solder_bridge"), turn=1, shift=3),
    "pill": Product(pill, ("chip", "misprint", "spots"), turn=4),
    "biscuit": Product(biscuit, ("broken", "burnt", "blocked_hole"), turn=3),
}
CATEGORIES: tuple[str, ...] = tuple(PRODUCTS)
DEFECTS: dict[str, tuple[str, ...]] = {name: product.defects for name, product in PRODUCTS.items()}

# --- the camera --------------------------------------------------------------------------------------------------


def shade(height: np.ndarray, sun: complex, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Heights (H, W) -> cast shadows, and the dimness beside tall neighbours: both (H, W), 0 to 1."""
    size, smooth = height.shape, Image.Resampling.BICUBIC
    coarse = np.ascontiguousarray(height[::2, ::2])  # shadows are soft: half and an eighth of the pixels will do
    shadow = np.zeros_like(coarse)
    for step in (1.5, 3, 5, 8, 12, 17):
        back = np.rint(-step * scale / 2 * sun)
        above = np.roll(coarse, (int(back.imag), int(back.real)), (0, 1)) - coarse - 1.1 * step
        np.maximum(shadow, np.clip(above / 3, 0, 1), out=shadow)
    shadow = Image.fromarray(ndimage.gaussian_filter(shadow, 0.6 * scale, truncate=2.5)).resize(size, smooth)
    usual = Image.fromarray(ndimage.gaussian_filter(height[::8, ::8], 0.75 * scale)).resize(size, smooth)
    return np.asarray(shadow).clip(0, 1), np.clip((np.asarray(usual) - height) / 12, 0, 1)


def photograph(scene: Scene, rng: Generator) -> np.ndarray:
    """Light the scene from the upper left -> picture (3, H, W) of the image's size, 0 black to 1 white."""
    sun = complex(np.exp(1j * rng.normal(-2.2, 0.05)))  # direction towards the light
    slope_y, slope_x = np.gradient(scene.height * scene.scale)
    up = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    tilt = -up * (slope_x * sun.real + slope_y * sun.imag)  # 1: faces the light, -1: faces away
    aside = -up * (slope_x * sun.imag - slope_y * sun.real)
    shadow, crowd = shade(scene.height, sun, scene.scale)
    light = (0.45 + (0.55 * up + 0.41 * tilt) * (1 - 0.75 * shadow)) * (1 - 0.45 * crowd)
    if scene.metal.any():  # metal mirrors a lamp and a wall behind
        lobes = 0.85 * np.exp(-(((tilt - 0.45) / 0.25) ** 2)) + 0.35 * np.exp(-(((tilt + 0.55) / 0.22) ** 2))
        light += scene.metal * ((0.25 + lobes + 0.15 * aside) * (1 - 0.5 * shadow) - light)
    picture = scene.colour * light.clip(0)
    if scene.shine.any():
        glint = np.exp(-((tilt - 0.38) ** 2 + aside**2) / 0.03) * (1 - shadow)
        picture += 0.5 * scene.shine * glint
    steps = range(SUPERSAMPLE)
    picture = sum(picture[:, y::SUPERSAMPLE, x::SUPERSAMPLE] for y in steps for x in steps) / SUPERSAMPLE**2
    x = np.linspace(-1, 1, picture.shape[1], dtype=np.float32)
    lean_x, lean_y = rng.normal(-0.045, 0.015, 2).astype(np.float32)
    lamp = 1 + lean_x * x + lean_y * x[:, None] - 0.10 * (x**2 + x[:, None] ** 2)  # uneven light, and vignetting
    return (picture * lamp * rng.normal(1.06, 0.008)).clip(0, 1)


def expose(picture: np.ndarray, rng: Generator) -> np.ndarray:
    """(3, H, W) -> image (H, W, 3) of uint8, with the blur of a lens and the noise of a sensor."""
    blur = rng.uniform(0.5, 0.65) * picture.shape[1] / FRAME
    picture = ndimage.gaussian_filter(picture, (0, blur, blur))
    noise = rng.standard_normal(picture.shape[1:], np.float32)
    noise = noise + 0.3 * rng.standard_normal(picture.shape, np.float32)
    picture = 255 * picture + noise * (0.3 + 0.7 * np.sqrt(picture)) + 0.5
    return np.moveaxis(picture.clip(0, 255), 0, 2).astype(np.uint8, order="C")


def look(
    category: str, size: int, part: int, light: int, defect: str | None = None, flaw: Sequence[int] = ()
) -> np.ndarray:
    """One part as the camera sees it before blur and noise; `part`, `light` and `flaw` are seeds."""
    product, rng = PRODUCTS[category], np.random.default_rng(part)
    turn = rng.uniform(0.99, 1.01) * np.exp(1j * np.radians(rng.uniform(-product.turn, product.turn)))
    scene = blank_scene(size, complex(turn), anywhere(rng, product.shift))
    product.painter(rng, scene, defect, np.random.default_rng(flaw))
    return photograph(scene, np.random.default_rng(light))


def sensible(mask: np.ndarray) -> bool:
    """Whether a defect can be found: neither too small nor too large, and not cut by a centre crop."""
    unit = FRAME / len(mask)
    margin = int(np.ceil((FRAME - CENTRE) / 2 / unit))
    return AREA[0] <= mask.sum() * unit**2 <= AREA[1] and mask.sum() == mask[margin:-margin, margin:-margin].sum()


def paint(category: str, rng: Generator, defect: str | None = None, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """One part -> image (size, size, 3) of uint8, and mask (size, size) of bool: what the defect changed.

    It takes as much from `rng` with a defect as without: from equal generators it draws the same part, lit and
    exposed the same way. Raises SettingsError for a category, a defect or a size that cannot be drawn.
    """
    check_choice("category", category, CATEGORIES)
    if defect is not None:
        check_choice(f"defect of {category}", defect, DEFECTS[category])
    if size < 32:
        raise SettingsError(f"size={size} is too small to show a defect; use 32 or more")
    part, light, flaw, camera = rng.integers(2**63, size=4)
    view = partial(look, category, size, part, light)
    picture, mask = view(), np.zeros((size, size), bool)
    if defect is not None:
        good = picture
        for attempt in count():  # a defect that is hidden, off centre or of the wrong size is drawn again
            picture = view(defect, (flaw, attempt))
            mask = np.abs(picture - good).max(0) > VISIBLE
            mask |= ndimage.binary_closing(mask, iterations=2)  # pixels that happen to look the same
            if sensible(mask):
                break
    return expose(picture, np.random.default_rng(camera)), mask


# --- the data set ------------------------------------------------------------------------------------------------


def plan(category: str, train: int, good: int, defective: int) -> list[tuple[str, str, int]]:
    """The images of a category: split, kind and number of each."""
    kinds = DEFECTS[category]
    return [
        *(("train", "good", n) for n in range(train)),
        *(("test", "good", n) for n in range(good)),
        *(("test", kinds[n % len(kinds)], n // len(kinds)) for n in range(defective)),
    ]


def files(folder: Path, split: str, kind: str, n: int) -> list[Path]:
    """Where an image goes, and the mask if it has one."""
    image = folder / split / kind / f"{n:03d}.png"
    return [image] if kind == "good" else [image, folder / "ground_truth" / kind / f"{n:03d}_mask.png"]


def draw_image(folder: Path, category: str, size: int, seed: int, job: tuple[str, str, int]):
    """Paint one image of the plan and write it and its mask."""
    split, kind, n = job
    names = (zlib.crc32(name.encode()) for name in (category, split, kind))
    image, mask = paint(category, np.random.default_rng([seed, *names, n]), None if kind == "good" else kind, size)
    for path, pixels in zip(files(folder, *job), (image, mask.astype(np.uint8) * 255), strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_type=zlib.Z_RLE)  # as small as the default, five times as fast


def draw_sample_data(
    folder: Path | str,
    categories: Sequence[str] = CATEGORIES,
    *,
    train: int = 40,
    good: int = 12,
    defective: int = 18,
    size: int = 256,
    seed: int = 0,
    workers: int | None = None,
    progress: bool | Line = True,
) -> Path:
    """Draw categories in the layout of MVTec AD -> their folder. Computer drawings, not photographs.

    FOLDER/CATEGORY/train/good/000.png, test/good/000.png, test/DEFECT/000.png: RGB, 8 bits, size x size pixels.
    FOLDER/CATEGORY/ground_truth/DEFECT/000_mask.png: 8 bits, 255 where the defect is and 0 elsewhere.

    `train`, `good` and `defective` are numbers of images for each category; the last is spread over its kinds of
    defect. The same seed gives the same bytes, whatever the number of threads (`workers`; None: one for each core)
    and whatever the other categories. A category appears when it is complete; one that has all these images is
    left alone, whatever they show.

    Raises SettingsError for an unknown category or a number that cannot work, ResultsError where a category cannot
    be written or something else is in its place.
    """
    folder = user_path(folder)
    for name in categories:
        check_choice("category", name, CATEGORIES)
    if min(train, good, defective, seed) < 0 or (workers is not None and workers < 1):
        raise SettingsError(f"{train=}, {good=}, {defective=}, {seed=}, {workers=}: numbers start at 0, workers at 1")
    plans = {name: plan(name, train, good, defective) for name in categories}

    def complete(name: str) -> bool:
        return all(path.exists() for job in plans[name] for path in files(folder / name, *job))

    todo = [name for name in plans if not complete(name)]
    for name in todo:
        if (folder / name).exists():
            raise ResultsError(f"{folder / name} lacks some of these images: move it away or use another folder")
    n = sum(len(plans[name]) for name in todo)
    with line_of(progress and n > 0, f"drawn: {n} images") as line, line.bar("draw", n) as bar:
        for name in todo:
            draft = folder / f".{name}-{secrets.token_hex(4)}"
            try:
                with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
                    for _ in pool.map(partial(draw_image, draft, name, size, seed), plans[name]):
                        bar.update()
                draft.rename(folder / name)
            except OSError as error:
                if not complete(name):  # else another process was faster
                    raise ResultsError(f"cannot write {folder / name}: {error}") from error
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder
