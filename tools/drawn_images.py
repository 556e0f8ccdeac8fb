"""Images drawn without end for `train_starter.py`: materials, leaves, objects, repeats, marks, light and a camera."""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from patchcore_kit import sample_data

SIDE = 256


@cache
def fonts() -> list[Path]:
    """The letters there are: those that come with matplotlib."""
    return sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))


# --- materials: colour (3, S, S) and height (S, S), in pixels ------------------------------------------------


def unit(values: np.ndarray) -> np.ndarray:
    """To mean 0 and deviation 1."""
    return (values - values.mean()) / (values.std() + 1e-6)


def noise(rng: Generator, slope: float | None = None, stretch: float | None = None) -> np.ndarray:
    """Fractal noise (S, S), mean 0, deviation 1: amplitude ~ frequency ** -slope, drawn out along one direction."""
    slope = rng.uniform(0, 2.2) if slope is None else slope
    stretch = np.exp(abs(rng.normal(0, 1.2))) if stretch is None else stretch
    turn = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    x, y = np.meshgrid(fft.rfftfreq(SIDE) * SIDE, fft.fftfreq(SIDE) * SIDE)
    a, b = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    radius = np.sqrt((a * stretch) ** 2 + (b / min(stretch, 3)) ** 2) + 1
    if rng.random() < 0.3:  # grain of one size
        centre = np.exp(rng.uniform(np.log(4), np.log(80)))
        amplitude = np.exp(-(np.log(radius / centre) ** 2) / 0.15)
    else:
        amplitude = radius**-slope * np.exp(-((radius / rng.uniform(30, 300)) ** 2))
    spectrum = fft.rfft2(rng.standard_normal((SIDE, SIDE), np.float32)) * amplitude.astype(np.float32)
    return unit(fft.irfft2(spectrum, (SIDE, SIDE)))


def places(rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (S, S) in pixels, turned and a little bent."""
    turn = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    if rng.random() < 0.7:
        bend = rng.uniform(0.3, 6)
        x, y = x + bend * noise(rng, slope=2, stretch=1), y + bend * noise(rng, slope=2, stretch=1)
    return x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)


def wave(rng: Generator, phase: np.ndarray) -> np.ndarray:
    """A periodic profile of phase (1 a period): sine, ridges, steps or saw teeth; -1 to 1."""
    kind = rng.integers(4)
    s = np.sin(2 * np.pi * phase)
    if kind == 0:
        return s
    if kind == 1:
        return 1 - 2 * np.abs(s) ** rng.uniform(0.3, 1)
    if kind == 2:
        return np.tanh(rng.uniform(2, 8) * (s + rng.uniform(-0.8, 0.8)))
    return 2 * (phase - np.floor(phase)) - 1


def grating(rng: Generator, period: float | None = None) -> np.ndarray:
    """Parallel lines."""
    x, _ = places(rng)
    return wave(rng, x / (period or np.exp(rng.uniform(np.log(3), np.log(60)))))


def lattice(rng: Generator, period: float | None = None) -> np.ndarray:
    """Two sets of parallel lines across each other."""
    x, y = places(rng)
    period = period or np.exp(rng.uniform(np.log(4), np.log(50)))
    a, b = wave(rng, x / period), wave(rng, y / (period * rng.choice([1, 1, rng.uniform(0.5, 2)])))
    return [np.maximum(a, b), a * b, a + b, np.minimum(a, b)][rng.integers(4)]


def threads(rng: Generator, period: float | None = None) -> np.ndarray:
    """Plain or twill weave."""
    x, y = places(rng)
    period = period or np.exp(rng.uniform(np.log(4), np.log(24)))
    u, v = x / period, y / period
    i, j = np.floor(u), np.floor(v)
    over = ((i + j * rng.choice([1, 2])) % rng.choice([2, 2, 3, 4])) < 1
    a, b = u - i - 0.5, v - j - 0.5
    tint = rng.normal(0, 0.3, (2, 97))[:, :, None]
    warp = np.sqrt(np.maximum(0.27 - a * a, 0)) + tint[0, i.astype(int) % 97, 0] * 0.2
    weft = np.sqrt(np.maximum(0.27 - b * b, 0)) + tint[1, j.astype(int) % 97, 0] * 0.2
    return np.where(over, warp, weft) + rng.uniform(0, 0.4) * np.where(over, 1, -1)


def cells(rng: Generator) -> np.ndarray:
    """Voronoi cells: their edges, their distances, or a value for each."""
    count = int(np.exp(rng.uniform(np.log(12), np.log(1500))))
    tree = cKDTree(rng.uniform(0, SIDE, (count, 2)), boxsize=SIDE)
    side = 128
    grid = (np.stack(np.mgrid[:side, :side], -1) + 0.5) * SIDE / side
    distances, nearest = tree.query(grid.reshape(-1, 2), k=2, eps=0.05)
    kind = rng.integers(4)
    if kind == 0:
        values = np.minimum(distances[:, 1] - distances[:, 0], rng.uniform(1, 6))
    elif kind == 1:
        values = distances[:, 0]
    elif kind == 2:
        values = rng.standard_normal(count)[nearest[:, 0]]
    else:
        values = np.minimum(distances[:, 1] - distances[:, 0], 3) / 2 + 0.7 * rng.standard_normal(count)[nearest[:, 0]]
    picture = Image.fromarray(values.reshape(side, side).astype(np.float32))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def dots(rng: Generator) -> np.ndarray:
    """Spots, grains, short fibres."""
    canvas = Image.new("L", (2 * SIDE, 2 * SIDE), 128)
    draw = ImageDraw.Draw(canvas)
    size, long = np.exp(rng.uniform(np.log(1.2), np.log(14))), rng.choice([0, 0, rng.uniform(2, 15)])
    heading, spread = rng.uniform(0, np.pi), rng.choice([0.1, 3])
    for _ in range(int(min(900, rng.uniform(0.1, 0.9) * SIDE**2 / (size**2 * (1 + long))))):
        x, y = rng.uniform(0, 2 * SIDE, 2)
        r, value, angle = size * rng.lognormal(0, 0.4), int(rng.integers(256)), heading + rng.normal(0, spread)
        if long:
            dx, dy = r * long * np.cos(angle), r * long * np.sin(angle)
            draw.line((x - dx, y - dy, x + dx, y + dy), value, max(1, int(r)))
        else:
            draw.ellipse((x - r, y - r, x + r, y + r), value)
    return np.asarray(canvas.reduce(2), np.float32) / 64 - 2


PATTERNS = (noise, noise, noise, grating, lattice, threads, cells, cells, dots)


def palette(rng: Generator, count: int) -> np.ndarray:
    """Colours (n, 3): any, of one hue, or grays."""
    kind = rng.integers(4)
    if kind == 0:
        return rng.uniform(0.02, 0.98, (count, 3))
    gray = rng.uniform(0.03, 0.97, (count, 1))
    if kind == 1:
        return np.clip(gray * rng.normal(1, 0.03, (count, 3)), 0, 1)
    tint = np.exp(rng.normal(0, 0.35, (1, 3)) + rng.normal(0, 0.12, (count, 3)))
    return np.clip(gray * tint / tint.max(1, keepdims=True) * 1.1, 0, 1)


def material(rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colour (3, S, S), 0 to 1, and height (S, S)."""
    if rng.random() < 0.25:  # plain, hardly a texture
        pattern = noise(rng)
        contrast = np.exp(rng.uniform(np.log(0.003), np.log(0.04)))
        colour = palette(rng, 1)[0][:, None, None] * (1 + contrast * pattern)
        return colour.astype(np.float32), (contrast * 10 * rng.choice([0, 1]) * pattern).astype(np.float32)
    pattern = unit(PATTERNS[rng.integers(len(PATTERNS))](rng))
    if rng.random() < 0.5:
        pattern = pattern + rng.uniform(0.1, 0.8) * unit(PATTERNS[rng.integers(len(PATTERNS))](rng))
    colours = palette(rng, rng.integers(2, 5))
    middle = rng.uniform(0, 1)  # how far apart the colours are
    contrast = rng.uniform(0.05, 1)
    colours = colours * contrast + colours[:1] * (1 - contrast)
    steps = np.linspace(-2, 2, len(colours)) + middle - 0.5
    colour = np.stack([np.interp(pattern, steps, c) for c in colours.T])
    if rng.random() < 0.5:
        colour *= 1 + rng.uniform(0.01, 0.12) * noise(rng)
    relief = rng.choice([0, rng.uniform(0, 2.5)])
    height = relief * (pattern if rng.random() < 0.7 else noise(rng)) * rng.choice([-1, 1])
    return colour.astype(np.float32), height.astype(np.float32)


# --- shapes: alpha (h, w), 0 to 1 ------------------------------------------------------------------------------


def outline(rng: Generator, radius: float) -> np.ndarray:
    """Corners (n, 2) of a closed shape around 0: ellipse, box, polygon, star, gear or blob."""
    kind = rng.integers(7)
    turn = rng.choice([0, rng.uniform(0, 2 * np.pi)])
    squeeze = rng.choice([1, rng.uniform(0.15, 1)])
    t = np.linspace(0, 2 * np.pi, 97)[:-1]
    if kind == 0:
        r = np.ones_like(t)
    elif kind == 1:  # round box
        p = rng.choice([3, 6, 30])
        r = (np.abs(np.cos(t)) ** p + np.abs(np.sin(t)) ** p) ** (-1 / p)
    elif kind == 2:  # polygon
        t = np.linspace(0, 2 * np.pi, rng.integers(3, 9) + 1)[:-1]
        r = np.ones_like(t)
    elif kind == 3:  # irregular polygon
        t = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
        r = rng.uniform(0.4, 1, len(t))
    elif kind == 4:  # star, gear
        r = 1 + rng.uniform(0.05, 0.5) * np.tanh(rng.uniform(1, 8) * np.sin(rng.integers(3, 16) * t))
    else:  # blob
        r = 1 + sum(rng.normal(0, 0.25 / k) * np.cos(k * t + rng.uniform(0, 7)) for k in range(2, 7))
    points = np.stack([r * np.cos(t), squeeze * r * np.sin(t)], -1) * radius
    c, s = np.cos(turn), np.sin(turn)
    return points @ np.array([[c, s], [-s, c]])


def font(rng: Generator, size: float) -> ImageFont.FreeTypeFont:
    """Any of the fonts."""
    return ImageFont.truetype(str(fonts()[rng.integers(len(fonts()))]), int(size))


def shape(rng: Generator, radius: float) -> np.ndarray:
    """A filled outline, a ring, a line, or a letter -> alpha (n, n), n about 2 radius."""
    n = int(2 * radius * 1.3) + 4
    canvas = Image.new("L", (2 * n, 2 * n))
    draw = ImageDraw.Draw(canvas)
    kind = rng.random()
    if kind < 0.12:
        text = "".join(chr(c) for c in rng.integers(33, 127, rng.integers(1, 6)))
        draw.text((n, n), text, 255, font(rng, max(6, 3.2 * radius / len(text) ** 0.8)), anchor="mm")
        if rng.random() < 0.5:
            canvas = canvas.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
    elif kind < 0.24:  # a bent line
        t = np.linspace(-1, 1, 24)
        a, b, c = rng.normal(0, 0.5, 3)
        turn = np.exp(1j * rng.uniform(0, 2 * np.pi))
        z = (t + 1j * (a * t**2 + b * t**3 + c * 0.3 * np.sin(5 * t))) * radius * turn
        draw.line(
            [(2 * p.real + n, 2 * p.imag + n) for p in z],
            255,
            max(1, int(rng.uniform(0.02, 0.3) * radius * 2)),
            "curve",
        )
    else:
        points = outline(rng, radius)
        draw.polygon([tuple(p) for p in (2 * points + n).tolist()], 255)
        if kind < 0.4:  # a ring
            draw.polygon([tuple(p) for p in (2 * points * rng.uniform(0.4, 0.95) + n).tolist()], 0)
    return np.asarray(canvas.reduce(2), np.float32) / 255


# --- the scene ---------------------------------------------------------------------------------------------------


class Scene:
    """Colour and height, and the materials that things are made of."""

    def __init__(self, rng: Generator, kinds: int):
        self.rng = rng
        self.materials = [material(rng) for _ in range(kinds)]
        colour, height = self.materials[0]
        self.colour, self.height = colour.copy(), height.copy()
        self.deep = rng.uniform(0.3, 1.5)  # how much things stand out
        self.sun = np.exp(1j * rng.uniform(0, 2 * np.pi))
        self.shadows = rng.random() < 0.5

    def lay(
        self,
        alpha: np.ndarray,
        x: float,
        y: float,
        which: int,
        tint: np.ndarray | float = 1,
        rise: float = 0,
        bevel: float = 1.5,
        strength: float = 1,
    ):
        """Lay a thing of one material with its middle at x, y."""
        n = len(alpha)
        x0, y0 = int(x - n / 2), int(y - n / 2)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x0 + n, SIDE), min(y0 + n, SIDE)
        if right <= left or bottom <= top:
            return
        part = alpha[top - y0 : bottom - y0, left - x0 : right - x0]
        rows, columns = slice(top, bottom), slice(left, right)
        colour, height = self.materials[which]
        h, w = part.shape
        oy, ox = self.rng.integers(0, SIDE - h + 1), self.rng.integers(0, SIDE - w + 1)
        if self.shadows and rise:
            soft = ndimage.gaussian_filter(part, 1 + abs(rise))
            dx, dy = np.rint(-2 * rise * np.array([self.sun.real, self.sun.imag])).astype(int)
            self.colour[:, rows, columns] *= 1 - 0.5 * np.roll(soft, (dy, dx), (0, 1))
        below, a = self.colour[:, rows, columns], strength * part
        below += a * (colour[:, oy : oy + h, ox : ox + w] * tint - below)
        below = self.height[rows, columns]
        above = height[oy : oy + h, ox : ox + w]
        if rise:
            above = above + rise * ndimage.gaussian_filter(part, bevel)
        below += a * (above - below)

    def tint(self) -> np.ndarray:
        """A little brighter or darker, with a little hue."""
        return np.exp(self.rng.normal(0, 0.15) + self.rng.normal(0, 0.04, (3, 1, 1))).astype(np.float32)

    def any(self) -> int:
        """One of the materials."""
        return int(self.rng.integers(len(self.materials)))

    def rise(self) -> float:
        """How far a thing stands out of what it lies on, or is sunk into it."""
        return self.rng.choice([0, self.rng.normal(0, 3)]) * self.deep


def leaves(rng: Generator) -> Scene:
    """Things of all sizes over one another."""
    scene = Scene(rng, rng.integers(2, 6))
    count = int(np.exp(rng.uniform(np.log(4), np.log(120))))
    least = rng.uniform(2, 8)
    for radius in np.sort(least * (1 - rng.random(count)) ** (-1 / rng.uniform(1, 2)))[::-1]:
        x, y = rng.uniform(-10, SIDE + 10, 2)
        scene.lay(shape(rng, min(radius, 90)), x, y, scene.any(), scene.tint(), scene.rise(), rng.uniform(0.6, 3))
    return scene


def texture(rng: Generator) -> Scene:
    """One material from edge to edge."""
    return Scene(rng, 2)


def inflate(alpha: np.ndarray, edge: float) -> np.ndarray:
    """Height of a body with round edges, 0 to 1."""
    d = np.minimum(ndimage.distance_transform_edt(alpha > 0.5) / edge, 1)
    return np.sqrt(1 - (1 - d) ** 2).astype(np.float32)


def lay_body(scene: Scene, points: np.ndarray, radius: float, sharp: float):
    """Lay a body with the corners `points`: edges round over 2 to `sharp` pixels or over much of its radius."""
    rng = scene.rng
    canvas = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in points.tolist()], 255)
    body = ndimage.gaussian_filter(np.asarray(canvas, np.float32) / 255, 0.5)
    scene.lay(body, SIDE / 2, SIDE / 2, scene.any(), scene.tint(), 0.01)
    edge = rng.choice([rng.uniform(2, sharp), radius * rng.uniform(0.3, 1)])
    scene.height += rng.uniform(0.2, 1) * edge * inflate(body, edge)


def objects(rng: Generator) -> Scene:
    """One or a few bodies on a ground, with parts on them around a middle or along a line."""
    scene = Scene(rng, rng.integers(2, 5))
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        radius = rng.uniform(30, 115)
        x, y = SIDE / 2 + rng.normal(0, 0.35 * (128 - radius), 2)
        lay_body(scene, outline(rng, radius) + np.array([x, y]), radius, 10)
        for _ in range(rng.integers(0, 5)):  # parts
            part, which, rise = shape(rng, radius * rng.uniform(0.03, 0.4)), scene.any(), scene.rise()
            count, far, start = int(rng.choice([1, 1, 2, 4, 6, 8, 12])), radius * rng.uniform(0, 0.9), rng.uniform(0, 7)
            ring, tint, bevel = rng.random() < 0.6, scene.tint(), rng.uniform(0.6, 3)
            for k in range(count):
                z = far * np.exp(1j * (start + 2 * np.pi * k / count))
                z = z if ring else far * np.exp(1j * start) * (2 * k / max(1, count - 1) - 1)
                scene.lay(part, x + z.real, y + z.imag, which, tint, rise, bevel)
    return scene


def repeats(rng: Generator) -> Scene:
    """The same few things over and over on a grid."""
    scene = Scene(rng, rng.integers(2, 5))
    pitch = np.exp(rng.uniform(np.log(8), np.log(90)))
    uneven, turn = rng.choice([0, 0.02, 0.2]) * pitch, np.exp(1j * rng.choice([0, rng.uniform(0, 3)]))
    stamps = [(shape(rng, pitch * rng.uniform(0.1, 0.55)), scene.any(), scene.tint(), scene.rise()) for _ in range(3)]
    kinds = rng.integers(1, 4)
    reach = int(200 / pitch) + 1
    for i in range(-reach, reach):
        for j in range(-reach, reach):
            z = complex(i + 0.5 * (j % 2) * (kinds == 1), j) * pitch * turn + complex(*rng.normal(0, 1, 2)) * uneven
            alpha, which, tint, rise = stamps[rng.integers(kinds)]
            scene.lay(alpha, 128 + z.real, 128 + z.imag, which, tint, rise)
    return scene


def marks(scene: Scene):
    """Scratches, cracks, hairs, spots, prints: faint or strong."""
    rng = scene.rng
    for _ in range(rng.choice([0, 1, 2, 5])):
        strength = rng.uniform(0.1, 1)
        if rng.random() < 0.5:
            steps = rng.integers(10, 200)
            heading = rng.uniform(0, 7) + np.cumsum(rng.normal(0, rng.choice([0.01, 0.1, 0.4]), steps))
            z = np.cumsum(1.5 * np.exp(1j * heading)) + complex(*rng.uniform(0, SIDE, 2))
            canvas = Image.new("L", (2 * SIDE, 2 * SIDE))
            ImageDraw.Draw(canvas).line([(2 * p.real, 2 * p.imag) for p in z], 255, int(rng.choice([1, 2, 3, 6])))
            alpha = np.asarray(canvas.reduce(2), np.float32) / 255
            scene.lay(
                alpha,
                SIDE / 2,
                SIDE / 2,
                scene.any(),
                scene.tint() * rng.uniform(0.2, 1.6),
                rng.normal(0, 1.5),
                0.7,
                strength,
            )
        else:
            alpha = shape(rng, rng.uniform(2, 25))
            alpha = ndimage.gaussian_filter(alpha, rng.uniform(0.3, 4))
            x, y = rng.uniform(0, SIDE, 2)
            scene.lay(alpha, x, y, scene.any(), scene.tint(), rng.normal(0, 2), 1, strength)


def lit(scene: Scene) -> np.ndarray:
    """The scene in slanting light -> picture (3, S, S)."""
    rng = scene.rng
    soft = rng.uniform(0.3, 1)
    gy, gx = np.gradient(ndimage.gaussian_filter(scene.height, soft))
    up = 1 / np.sqrt(1 + gx**2 + gy**2)
    facing = -up * (gx * scene.sun.real + gy * scene.sun.imag)
    strength = rng.uniform(0.2, 0.9)
    light = 1 - strength * (1 - up) + strength * facing
    picture = scene.colour * light.clip(0.05)
    if rng.random() < 0.35:  # highlights
        picture += (
            rng.uniform(0.1, 0.7)
            * np.exp(-((facing - rng.uniform(0.2, 0.6)) ** 2) / rng.uniform(0.01, 0.06))
            * (up < 0.995)
        )
    return picture


def cloth(rng: Generator) -> Scene:
    """Fine and regular from edge to edge: threads, wires, lines, grain."""
    scene = Scene(rng, 2)
    pattern = unit(
        (threads, threads, lattice, grating)[rng.integers(4)](rng, np.exp(rng.uniform(np.log(3), np.log(9))))
    )
    pattern = pattern + rng.uniform(0.1, 0.6) * noise(rng)
    first, second = palette(rng, 2)
    share = (pattern * rng.uniform(0.15, 0.5) + 0.5).clip(0, 1)
    colour = first[:, None, None] + rng.uniform(0.1, 1) * (second - first)[:, None, None] * share
    scene.colour[:] = colour * (1 + rng.uniform(0.01, 0.08) * noise(rng))
    scene.height[:] = rng.uniform(0.2, 1.2) * pattern
    return scene


def words(rng: Generator, tall: float) -> np.ndarray:
    """A few small letters -> alpha (h, h)."""
    letters = [*"ABCDEFGHIKLMNOPRSTUVWXYZabcdefghiklmnoprstuvwxyz0123456789-.:+/"]
    text = "".join(rng.choice(letters, rng.integers(2, 9)))
    side = int(tall * (len(text) + 2))
    canvas = Image.new("L", (2 * side, 2 * side))
    ImageDraw.Draw(canvas).text((side, side), text, 255, font(rng, max(5, 2 * tall)), anchor="mm")
    return np.asarray(canvas.rotate(rng.choice([0, 0, 90, rng.uniform(0, 360)])).reduce(2), np.float32) / 255


def assembled(rng: Generator) -> Scene:
    """A body on a plain ground that carries many small parts in rows, lines and prints."""
    scene = Scene(rng, rng.integers(3, 6))
    flat = palette(rng, 1)[0][:, None, None] * (1 + rng.uniform(0.003, 0.03) * noise(rng))
    scene.colour[:], scene.height[:] = flat, 0
    radius = rng.uniform(60, 120)
    lay_body(scene, outline(rng, radius) + SIDE / 2 + rng.normal(0, 6, 2), radius, 8)
    for _ in range(rng.integers(3, 12)):
        size, which, tint, rise = rng.uniform(2, 12), scene.any(), scene.tint(), scene.rise()
        part = shape(rng, size) if rng.random() < 0.6 else words(rng, size)
        start = SIDE / 2 + radius * 0.6 * complex(*rng.uniform(-1, 1, 2)) + 1j * SIDE / 2
        step = rng.choice([1, 1j]) * max(4, size * rng.uniform(1.6, 4)) * (1 if rng.random() < 0.8 else np.exp(0.3j))
        for k in range(rng.choice([1, 1, 2, 4, 8, 12])):
            z = start + k * step
            scene.lay(part, z.real, z.imag, which, tint, rise, rng.uniform(0.5, 1.5))
    return scene


SCENES = (leaves, leaves, leaves, texture, texture, objects, objects, objects, repeats)
FINE = (cloth, assembled)


def draw(rng: Generator, fine: bool = False) -> np.ndarray:
    """One image (S, S, 3) of uint8; fine: more of small parts, prints, threads and the sample data's products."""
    kind = rng.random()
    if kind < (0.25 if fine else 0.12):
        category = sample_data.CATEGORIES[rng.integers(len(sample_data.CATEGORIES))]
        defect = rng.choice([None, *sample_data.DEFECTS[category]])
        return sample_data.paint(category, rng, defect, SIDE)[0]
    scenes = FINE if fine and kind < 0.6 else SCENES
    scene = scenes[rng.integers(len(scenes))](rng)
    marks(scene)
    picture = lit(scene)
    x = np.linspace(-1, 1, SIDE, dtype=np.float32)
    lean = rng.normal(0, 0.15, 2)
    picture *= 1 + lean[0] * x + lean[1] * x[:, None] - abs(rng.normal(0, 0.12)) * (x**2 + x[:, None] ** 2)
    if rng.random() < 0.2:
        picture = np.broadcast_to(picture.mean(0), picture.shape)
    blur = rng.choice([rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8), rng.uniform(0.8, 2.5)])
    picture = ndimage.gaussian_filter(picture, (0, blur, blur))
    grain = rng.choice([0.003, rng.uniform(0, 0.02), rng.uniform(0, 0.05)])
    picture = picture + grain * (
        rng.standard_normal(picture.shape[1:], np.float32) + 0.3 * rng.standard_normal(picture.shape, np.float32)
    )
    return np.moveaxis((255 * picture).clip(0, 255), 0, 2).astype(np.uint8)
