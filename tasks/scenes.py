"""The embedded data: an endless, seeded, procedural world of shapes, which needs no download.

One world serves four tasks: each scene has a class (that of its largest object), boxes of every visible object, a
semantic mask, and a line drawing of the same picture. Ten outlines are the classes; colour, texture, light, size,
rotation, shear, clutter and occlusion are drawn independently of them and so reveal nothing.

Everything is a pure function of (seed, index, size): random numbers are hashes of counters, not states of a generator.
The geometry is defined on the square [-1, 1]^2, so one scene looks alike at every size. Pictures are painted many at a
time, planar (B, 3, H, W), which is what makes them quick.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CLASSES = ("disc", "ring", "square", "triangle", "star", "heart", "crescent", "flower", "gear", "arrow")
MINORS = 3  # at most so many smaller objects beside the main one
ATLAS, EXTENT = 256, 1.5  # resolution of an outline's distance map, which covers [-EXTENT, EXTENT]^2
MIN_VISIBLE = 0.01  # an object that shows less than this share of the picture has no box

# Each layer draws its numbers uniformly from these ranges (units: half the picture's side, radians, cycles).
BACKGROUND = {
    "hue": (0, 1),
    "saturation": (0.05, 0.7),
    "value": (0.1, 0.6),
    "hue2": (0, 1),
    "saturation2": (0.05, 0.7),
    "value2": (0.1, 0.6),
    "angle": (0, 2 * np.pi),
    "gradient": (0, 0.5),
    "clouds": (0, 0.6),
    "grain": (0, 0.25),
    "stripes": (-0.5, 0.3),
    "frequency": (1.5, 5),
}
OBJECT = {
    "hue": (0, 1),
    "saturation": (0.1, 0.95),
    "value": (0.45, 1.0),
    "hue2": (0, 1),
    "saturation2": (0.1, 0.95),
    "value2": (0.45, 1.0),
    "angle": (-0.45, 0.45),
    "shear": (-0.3, 0.3),
    "stretch": (-0.15, 0.15),
    "texture_angle": (0, np.pi),
    "frequency": (0.6, 2.6),
    "phase": (0, 1),
    "texture": (-0.8, 0.8),
    "relief": (0.1, 0.4),
    "rim": (0, 0.6),
    "shadow": (0, 0.6),
}
MAIN = OBJECT | {"radius": (0.45, 0.75), "x": (-0.18, 0.18), "y": (-0.18, 0.18), "present": (1, 1)}
MINOR = OBJECT | {"radius": (0.14, 0.24), "x": (-0.95, 0.95), "y": (-0.95, 0.95), "present": (-1.0, 1.0)}
STROKE = {
    "hue": (0, 1),
    "saturation": (0.05, 0.8),
    "value": (0.1, 0.95),
    "angle": (0, 2 * np.pi),
    "offset": (-0.7, 0.7),
    "width": (0.015, 0.08),
    "present": (-1.5, 1.0),
}
LIGHT = {
    "angle": (0, 2 * np.pi),
    "slope": (0, 0.4),
    "exposure": (0.75, 1.4),
    "vignette": (0, 0.3),
    "haze": (0, 0.25),
    "warmth": (-0.1, 0.1),
    "noise": (0.01, 0.1),
}


@dataclass(frozen=True)
class Scene:
    """One picture with its truth for every task."""

    image: np.ndarray  # (H, W, 3) uint8
    label: int  # class of the largest object
    boxes: np.ndarray  # (K, 4) float32: x0, y0, x1, y1 in pixels of what is visible of each object
    box_labels: np.ndarray  # (K,) int64
    mask: np.ndarray  # (H, W) uint8: 0 or class + 1
    edges: np.ndarray  # (H, W) uint8: the outlines, black ink on white paper


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes."""

    images: np.ndarray  # (B, 3, H, W) uint8
    labels: np.ndarray  # (B,) int64
    ids: np.ndarray  # (B, H, W) uint8: number of the object that is seen, 0 for none
    classes: np.ndarray  # (B, 1 + objects) int64: class of each object by its number
    edges: np.ndarray  # (B, H, W) uint8


def scene(seed: int, index: int, size: int) -> Scene:
    """Scene number `index` of the world `seed`, `size` pixels square."""
    batch = scenes(seed, np.array([index]), size)
    ids, classes = batch.ids[0], batch.classes[0]
    boxes = {k: _box(ids == k) for k in range(1, len(classes)) if (ids == k).mean() >= MIN_VISIBLE}
    return Scene(
        image=np.ascontiguousarray(batch.images[0].transpose(1, 2, 0)),
        label=int(batch.labels[0]),
        boxes=np.array(list(boxes.values()), dtype=np.float32).reshape(-1, 4),
        box_labels=classes[list(boxes)].astype(np.int64),
        mask=np.where(ids > 0, classes[ids] + 1, 0).astype(np.uint8),
        edges=batch.edges[0],
    )


def scenes(seed: int, indices: np.ndarray, size: int) -> Scenes:
    """Paint the scenes `indices` (B,) of the world `seed` together; each equals what it would be alone."""
    indices = np.asarray(indices, dtype=np.int64)
    classes = _classes(seed, indices)
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    light = _values(seed, indices, 1, LIGHT)
    canvas = _Canvas(_background(_values(seed, indices, 2, BACKGROUND), seed, indices, x, y), 2 / size)
    for k in (2, 3, 1, 4):  # two small objects behind the main one (k = 1), one in front
        canvas.add_object(_values(seed, indices, 10 + k, MAIN if k == 1 else MINOR), classes[:, k], k, light, x, y)
    for k in (5, 6):
        canvas.add_stroke(_values(seed, indices, 10 + k, STROKE), x, y)
    images = _develop(canvas.image, light, seed, indices, x, y)
    edges = ((1 - canvas.ink) * 255).astype(np.uint8)
    return Scenes(images, classes[:, 1].copy(), canvas.ids, classes, edges)


def images(seed: int, indices: np.ndarray, size: int) -> np.ndarray:
    """Images (N, 3, size, size) uint8, painted in pieces that stay in the processor's cache."""
    pieces = np.array_split(indices, max(1, len(indices) * size * size // 2**15))
    return np.concatenate([scenes(seed, piece, size).images for piece in pieces])


def labels(seed: int, indices: np.ndarray) -> np.ndarray:
    """Classes (N,) int64 of the scenes `indices`; every ten consecutive scenes hold each class once."""
    block, place = np.divmod(np.asarray(indices, dtype=np.int64), len(CLASSES))
    return np.argsort(_hash(seed, block, 6, len(CLASSES)), axis=1)[np.arange(len(place)), place]


def _box(seen: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


class _Canvas:
    """The image while layers are painted over each other: colours, line drawing, and the object at each pixel."""

    def __init__(self, image: np.ndarray, pixel: float):
        self.image, self.pixel = image, pixel
        shape = (image.shape[0], *image.shape[2:])
        self.ink, self.ids = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)

    def _cover(self, distance: np.ndarray, present: np.ndarray, k: int) -> np.ndarray:
        """Hide what lies beneath, draw the outline in ink, and return the layer's opacity (B, H, W)."""
        edge = distance / self.pixel
        opacity = np.clip(0.5 - edge, 0, 1) * present
        line = np.clip(1.2 + 0.004 / self.pixel - np.abs(edge), 0, 1) * present
        self.ink = np.maximum(self.ink * (1 - opacity), line)
        self.ids[opacity > 0.5] = k
        return opacity

    def _blend(self, opacity: np.ndarray, colour: np.ndarray) -> None:
        self.image += opacity[:, None] * (colour - self.image)

    def add_object(self, p: dict, classes: np.ndarray, k: int, light: dict, x: np.ndarray, y: np.ndarray) -> None:
        """An object of `classes` (B,) with its shadow, which falls away from the light."""
        present = (p["present"] > 0).astype(np.float32)
        dx, dy = x - p["x"], y - p["y"]
        away = 0.22 * p["radius"]
        behind = _distance(classes, *_local(p, dx + away * np.cos(light["angle"]), dy + away * np.sin(light["angle"])))
        self.image *= (1 - np.clip(0.5 - behind * 4, 0, 1) * (p["shadow"] * present))[:, None]
        u, v = _local(p, dx, dy)
        distance = _distance(classes, u, v) * p["radius"]
        lit = 1 + p["relief"] * (np.cos(light["angle"]) * dx + np.sin(light["angle"]) * dy) / p["radius"]
        lit -= p["rim"] * np.clip(1 + distance * (6 / p["radius"]), 0, 1)
        self._blend(self._cover(distance, present, k), _texture(p, u, v) * lit[:, None])

    def add_stroke(self, p: dict, x: np.ndarray, y: np.ndarray) -> None:
        """A bar across the picture that occludes and belongs to no class."""
        distance = np.abs(np.cos(p["angle"]) * x + np.sin(p["angle"]) * y - p["offset"]) - p["width"]
        self._blend(self._cover(distance, (p["present"] > 0).astype(np.float32), 0), _colour(p))


def _local(p: dict, dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An object's own coordinates of points relative to its centre: rotated, scaled, sheared, stretched."""
    cos, sin = np.cos(p["angle"]), np.sin(p["angle"])
    a, b = (cos * dx + sin * dy) / p["radius"], (cos * dy - sin * dx) / p["radius"]
    return (a + p["shear"] * b) * (1 + p["stretch"]), b * (1 - p["stretch"])


def _texture(p: dict, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The colours of an object's surface, plain or striped: (B, 3, H, W)."""
    wave = _wave(p["frequency"] * (np.cos(p["texture_angle"]) * u + np.sin(p["texture_angle"]) * v) + p["phase"])
    stripes = np.clip(wave * 4 - 1.5, 0, 1) * np.maximum(p["texture"], 0)
    first, second = _colour(p), _colour(p, "2")
    return first + stripes[:, None] * (second - first)


def _background(p: dict, seed: int, indices: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two colours mixed by a gradient, clouds, finer grain and stripes: (B, 3, H, W) float32."""
    along = np.cos(p["angle"]) * x + np.sin(p["angle"]) * y
    mix = (
        p["gradient"] * along
        + p["clouds"] * _clouds(seed, indices, 3, 4, x)
        + p["grain"] * _clouds(seed, indices, 4, 12, x)
    )
    mix += np.maximum(p["stripes"], 0) * (_wave(p["frequency"] * (along + 0.3 * mix)) - 0.5)
    first, second = _colour(p), _colour(p, "2")
    return first + np.clip(mix + 0.5, 0, 1)[:, None] * (second - first)


def _develop(image: np.ndarray, p: dict, seed: int, indices: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light, haze, colour cast and sensor noise: (B, 3, H, W) uint8."""
    gain = (
        p["exposure"]
        * (1 + p["slope"] * (np.cos(p["angle"]) * x + np.sin(p["angle"]) * y))
        * (1 - p["vignette"] * (x * x + y * y))
    )
    cast = 1 + p["warmth"][:, None] * np.array([1, 0, -1], np.float32)[None, :, None, None]
    image *= (gain * (1 - p["haze"]))[:, None] * cast
    image += (0.7 * p["haze"])[:, None]
    size = image.shape[-1]
    bits = _hash(seed, indices, 5, size * size).view(np.uint16).reshape(len(indices), size, size, 4)
    noise = bits[..., :3].transpose(0, 3, 1, 2).astype(np.float32)
    noise *= p["noise"][:, None] / 2**16
    image += noise
    image -= p["noise"][:, None] / 2
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def _classes(seed: int, indices: np.ndarray) -> np.ndarray:
    """(B, 2 + MINORS) classes by object number: 0 is nothing, 1 the main object, the rest smaller ones of any class."""
    classes = (_hash(seed, indices, 0, 2 + MINORS) >> np.uint64(33)).astype(np.int64) % len(CLASSES)
    classes[:, 0], classes[:, 1] = 0, labels(seed, indices)
    return classes


def _hash(seed: int, indices: np.ndarray, stream: int, count: int) -> np.ndarray:
    """(B, count) uint64 by SplitMix64's finaliser, a counter-based generator over (seed, stream, index, position)."""
    key = _finalise(np.array([seed & 0xFFFFFFFF], np.uint64) << np.uint64(8) | np.uint64(stream))
    rows = _finalise(indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key)
    return _finalise(rows[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95))


def _finalise(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _uniform(seed: int, indices: np.ndarray, stream: int, count: int) -> np.ndarray:
    return (_hash(seed, indices, stream, count) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def _values(seed: int, indices: np.ndarray, stream: int, ranges: dict) -> dict:
    """One uniform number per scene and name, each (B, 1, 1) float32."""
    u = _uniform(seed, indices, stream, len(ranges))
    return {
        name: (low + (high - low) * u[:, i, None, None]).astype(np.float32)
        for i, (name, (low, high)) in enumerate(ranges.items())
    }


def _colour(p: dict, suffix: str = "") -> np.ndarray:
    """(B, 3, 1, 1) from hue, saturation and value on a cosine wheel."""
    hue, saturation, value = (p[name + suffix][:, None] for name in ("hue", "saturation", "value"))
    third = np.array([0, 1, 2], np.float32)[None, :, None, None] / 3
    return value * (1 - saturation * (0.5 - 0.5 * np.cos(2 * np.pi * (hue + third)).astype(np.float32)))


def _wave(t: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 in [0, 1]."""
    return np.abs(t - np.floor(t) - 0.5) * 2


def _clouds(seed: int, indices: np.ndarray, stream: int, cells: int, x: np.ndarray) -> np.ndarray:
    """Value noise in [-1, 1]: random numbers on a grid of cells, interpolated smoothly."""
    grid = _uniform(seed, indices, stream, (cells + 1) ** 2).reshape(-1, cells + 1, cells + 1) * 2 - 1
    position = (x.reshape(-1) + 1) / 2 * cells
    low = np.minimum(position.astype(np.int64), cells - 1)
    t = position - low
    t = t * t * (3 - 2 * t)
    weights = np.zeros((len(position), cells + 1), np.float32)
    weights[np.arange(len(position)), low] = 1 - t
    weights[np.arange(len(position)), low + 1] = t
    return weights @ grid @ weights.T


def _distance(classes: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance (B, H, W) to the outlines `classes` (B,) at local coordinates; negative inside."""
    scale, shift = ATLAS / (2 * EXTENT), ATLAS / 2
    column = np.clip(u * scale + shift, 0, ATLAS - 1).astype(np.int32)
    row = np.clip(v * scale + shift, 0, ATLAS - 1).astype(np.int32)
    row *= ATLAS
    row += column
    row += (classes * ATLAS * ATLAS).astype(np.int32)[:, None, None]
    return np.take(_atlas(), row)


@lru_cache(maxsize=1)
def _atlas() -> np.ndarray:
    """Distance maps of all outlines, flat float32."""
    axis = ((np.arange(ATLAS) + 0.5) / ATLAS * 2 - 1) * EXTENT
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    return np.concatenate([_distance_to(loops, x, y) for loops in _outlines().values()]).astype(np.float32)


def _distance_to(loops: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of points to polygons (complex vertices) filled by the even-odd rule."""
    squared, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
    for a, b in ((a, b) for loop in loops for a, b in zip(loop, np.roll(loop, -1))):
        dx, dy, edge = x - a.real, y - a.imag, b - a
        t = np.clip((dx * edge.real + dy * edge.imag) / abs(edge) ** 2, 0, 1)
        squared = np.minimum(squared, (dx - t * edge.real) ** 2 + (dy - t * edge.imag) ** 2)
        if edge.imag:
            inside ^= ((y < a.imag) != (y < b.imag)) & (dx < dy * edge.real / edge.imag)
    return np.where(inside, -1, 1) * np.sqrt(squared)


def _outlines() -> dict[str, list[np.ndarray]]:
    """The classes as closed polygons of complex vertices, about one unit in radius."""
    turn = np.exp(2j * np.pi * np.arange(60) / 60)
    t, ten, teeth = np.angle(turn), np.arange(10), np.arange(32)
    star = np.where(ten % 2, 0.45, 1.05) * np.exp(1j * np.pi * ten / 5)
    gear = np.where(teeth // 2 % 2, 0.74, 1.0) * np.exp(
        1j * np.pi / 8 * (teeth // 2 + np.where(teeth % 2, 0.42, -0.42))
    )
    heart = 16 * np.sin(t) ** 3 - 1j * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t) + 2.5)
    return {
        "disc": [0.9 * turn],
        "ring": [turn, 0.52 * turn],
        "square": [0.82 * np.array([1 + 1j, -1 + 1j, -1 - 1j, 1 - 1j])],
        "triangle": [-1.12j * np.exp(2j * np.pi * np.arange(3) / 3)],
        "star": [-1j * star],
        "heart": [heart / 16.5],
        "crescent": [_crescent()],
        "flower": [turn * (0.76 + 0.26 * np.cos(5 * t))],
        "gear": [gear],
        "arrow": [np.array([1.05, 0.25 - 0.75j, 0.25 - 0.3j, -1 - 0.3j, -1 + 0.3j, 0.25 + 0.3j, 0.25 + 0.75j])],
    }


def _crescent(offset: float = 0.5, radius: float = 0.78) -> np.ndarray:
    """The unit disc less a disc of `radius` whose centre lies `offset` to the right."""
    x = (1 + offset**2 - radius**2) / (2 * offset)  # where the two circles meet
    outer, inner = np.arccos(x), np.arctan2(np.sqrt(1 - x * x), x - offset)
    back = np.exp(1j * np.linspace(outer, 2 * np.pi - outer, 40))
    front = offset + radius * np.exp(1j * np.linspace(2 * np.pi - inner, inner, 40)[1:-1])
    return np.concatenate([back, front]) + 0.2
