"""The demo's synthetic world: simple pictures of coloured shapes, and what they are called in Chinese.

A `Scene` says what is in a picture (shape, colour, count, place, background). `draw` makes a picture of it, never
twice the same, and `Scene.caption` its one canonical caption. Some scenes are kept out of training whole
(`held_out_scenes`): a model that finds them has put together words and things that it never saw together.

Run as a script, it writes the bundled sample pictures and their captions, or a hundred held-out ones into a folder:

    python examples/demo/pictures.py [FOLDER]
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

Point = tuple[float, float]
RGB = tuple[int, int, int]

HELD_OUT_SCENES = 300
"""How many of the 1,800 scenes training never sees."""

_SPLIT_SEED = 20
_SUPERSAMPLING = 3
"""Pictures are drawn this many times larger and then averaged down: Pillow's own edges are not antialiased."""

SIZES = ((160, 120), (200, 200), (240, 180), (120, 160), (180, 240), (256, 160))
"""Widths and heights in pixels. They are not all square, because cn_clip squeezes any picture into a square."""


@dataclass(frozen=True)
class _Colour:
    zh: str
    rgb: RGB


@dataclass(frozen=True)
class _Shape:
    zh: str
    short: str
    outline: Callable[[], list[Point]]


def _regular(corners: int, radii: tuple[float, ...], turn: float = 0.0) -> list[Point]:
    """Corners of a polygon about the origin, `radii` taken in turn, the first corner pointing up (y grows down)."""
    points = []
    for i in range(corners):
        angle = 2 * math.pi * i / corners - math.pi / 2 + turn
        radius = radii[i % len(radii)]
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _cross() -> list[Point]:
    arm, reach = 0.34, 1.0
    quarter = [(arm, -reach), (arm, -arm), (reach, -arm)]
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


# Radii near 1 and chosen by eye, so that no shape is much larger than another.
SHAPES = {
    "circle": _Shape("圆形", "圆", lambda: _regular(48, (0.95,))),
    "square": _Shape("正方形", "方块", lambda: _regular(4, (1.2,), turn=math.pi / 4)),
    "triangle": _Shape("三角形", "三角", lambda: _regular(3, (1.15,))),
    "star": _Shape("五角星", "星星", lambda: _regular(10, (1.2, 0.5))),
    "cross": _Shape("十字形", "十字", _cross),
}
COLOURS = {
    "red": _Colour("红", (215, 40, 40)),
    "orange": _Colour("橙", (245, 140, 30)),
    "yellow": _Colour("黄", (245, 220, 40)),
    "green": _Colour("绿", (45, 160, 70)),
    "blue": _Colour("蓝", (45, 90, 215)),
    "purple": _Colour("紫", (145, 60, 175)),
}
BACKGROUNDS = {
    "white": _Colour("白", (243, 243, 243)),
    "grey": _Colour("灰", (150, 150, 150)),
    "black": _Colour("黑", (28, 28, 28)),
}
COUNTS = {1: ("one", "一"), 2: ("two", "两"), 3: ("three", "三"), 4: ("four", "四")}
PLACES = {
    "top-left": (("左上角", "左上方", "左上"), (0.3, 0.3)),
    "top-right": (("右上角", "右上方", "右上"), (0.7, 0.3)),
    "bottom-left": (("左下角", "左下方", "左下"), (0.3, 0.7)),
    "bottom-right": (("右下角", "右下方", "右下"), (0.7, 0.7)),
    "middle": (("中间", "中央", "正中间"), (0.5, 0.5)),
}

# The first one is how `Scene.caption` speaks. The last two leave the background out, as people often do.
_TEMPLATES = (
    "{ground}色背景的{place}有{count}个{colour}色的{shape}",
    "{count}个{colour}色的{shape}在{ground}色画面的{place}",
    "{ground}底上，{place}画着{count}个{colour}{short}",
    "图片的{place}是{count}个{colour}色的{shape}，背景是{ground}色",
    "{place}有{count}个{colour}{short}，{ground}色背景",
    "{ground}色的图，{place}有{colour}色的{shape}，一共{count}个",
    "{place}有{count}个{colour}色的{shape}",
    "{count}个{colour}{short}在画面的{place}",
)


@dataclass(frozen=True, order=True)
class Scene:
    """What a picture shows.

    Attributes:
        shape: A key of `SHAPES`.
        colour: A key of `COLOURS`: all shapes of a picture have the same.
        count: How many, 1 to 4.
        place: A key of `PLACES`: where the group lies.
        background: A key of `BACKGROUNDS`.
    """

    shape: str
    colour: str
    count: int
    place: str
    background: str

    @property
    def caption(self) -> str:
        """The canonical caption, different for every scene, such as 白色背景的左上角有三个红色的圆形."""
        return self._say(_TEMPLATES[0], COUNTS[self.count][1], PLACES[self.place][0][0])

    @property
    def slug(self) -> str:
        """A plain ASCII name, such as three-red-circles-top-left-on-white."""
        plural = "" if self.count == 1 else "es" if self.shape == "cross" else "s"
        return f"{COUNTS[self.count][0]}-{self.colour}-{self.shape}{plural}-{self.place}-on-{self.background}"

    def paraphrase(self, rng: random.Random) -> str:
        """One of the many ways to say it, the canonical one among them."""
        count = rng.choice((COUNTS[self.count][1], COUNTS[self.count][1], str(self.count)))
        return self._say(rng.choice(_TEMPLATES), count, rng.choice(PLACES[self.place][0]))

    def _say(self, template: str, count: str, place: str) -> str:
        return template.format(
            ground=BACKGROUNDS[self.background].zh,
            colour=COLOURS[self.colour].zh,
            shape=SHAPES[self.shape].zh,
            short=SHAPES[self.shape].short,
            count=count,
            place=place,
        )


SAMPLE_SCENES = (
    Scene("circle", "red", 3, "top-left", "white"),
    Scene("star", "yellow", 1, "middle", "black"),
    Scene("square", "blue", 2, "bottom-right", "white"),
    Scene("triangle", "green", 4, "top-right", "grey"),
    Scene("cross", "purple", 2, "bottom-left", "grey"),
    Scene("circle", "orange", 1, "bottom-right", "black"),
)
"""The scenes of the bundled pictures in `images/`: kept out of training like the rest of `held_out_scenes`."""


def all_scenes() -> list[Scene]:
    """Every scene there is, in a fixed order."""
    return [Scene(*values) for values in itertools.product(SHAPES, COLOURS, COUNTS, PLACES, BACKGROUNDS)]


def held_out_scenes() -> list[Scene]:
    """The scenes that training never sees: always the same ones, `SAMPLE_SCENES` first."""
    others = [scene for scene in all_scenes() if scene not in SAMPLE_SCENES]
    random.Random(_SPLIT_SEED).shuffle(others)
    return [*SAMPLE_SCENES, *others[: HELD_OUT_SCENES - len(SAMPLE_SCENES)]]


def training_scenes() -> list[Scene]:
    """Every scene that is not held out, in a fixed order."""
    kept_out = set(held_out_scenes())
    return [scene for scene in all_scenes() if scene not in kept_out]


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Draws a picture of a scene.

    Args:
        scene: What to draw.
        rng: Decides what the scene leaves open: picture size, exact tints, sizes, positions and small turns.

    Returns:
        An RGB picture, of one of `SIZES`.
    """
    size = rng.choice(SIZES)
    width, height = (_SUPERSAMPLING * side for side in size)
    image = Image.new("RGB", (width, height), _tint(BACKGROUNDS[scene.background].rgb, 12, rng))
    canvas = ImageDraw.Draw(image)
    colour = _tint(COLOURS[scene.colour].rgb, 14, rng)
    # Lengths are fractions of the shorter side, so that a long picture does not stretch the shapes.
    short = min(width, height)
    radius = rng.uniform(0.105, 0.125 if scene.count > 1 else 0.16) * short
    middle_x, middle_y = (at + rng.uniform(-0.02, 0.02) for at in PLACES[scene.place][1])
    for x, y in _layout(scene.count, rng):
        grown = radius * rng.uniform(0.93, 1.07)
        turn = rng.uniform(-0.12, 0.12)
        left = middle_x * width + (x + rng.uniform(-0.008, 0.008)) * short
        top = middle_y * height + (y + rng.uniform(-0.008, 0.008)) * short
        cos, sin = grown * math.cos(turn), grown * math.sin(turn)
        outline = SHAPES[scene.shape].outline()
        canvas.polygon([(left + px * cos - py * sin, top + px * sin + py * cos) for px, py in outline], colour)
    return image.reduce(_SUPERSAMPLING)


def _layout(count: int, rng: random.Random) -> list[Point]:
    """Where the shapes of a group lie about its middle, in fractions of the picture's shorter side."""
    step = 0.148
    corners = [(-step, -step), (step, -step), (step, step), (-step, step)]
    if count == 1:
        return [(0.0, 0.0)]
    if count == 2:
        return rng.choice(([(-step, 0.0), (step, 0.0)], [(0.0, -step), (0.0, step)], corners[::2], corners[1::2]))
    if count == 3:
        corners.pop(rng.randrange(4))
    return corners


def _tint(rgb: RGB, by: int, rng: random.Random) -> RGB:
    """The colour, lighter or darker and a little off, by up to `by` of 255 in either sense."""
    brightness = rng.randint(-by, by)
    red, green, blue = (min(255, max(0, c + brightness + rng.randint(-by // 3, by // 3))) for c in rgb)
    return red, green, blue


def held_out(n: int = 100, seed: int = 0) -> list[tuple[Scene, Image.Image, str]]:
    """Pictures for testing retrieval: of scenes that training never saw, and no two of the same scene.

    Args:
        n: How many, at most `HELD_OUT_SCENES`.
        seed: Which ones, and how they are drawn. The same seed gives the same pictures with the same Pillow.

    Returns:
        Scene, RGB picture and canonical caption of each; the captions are distinct.

    Raises:
        ValueError: More pictures are asked for than there are held-out scenes.
    """
    if not 0 < n <= HELD_OUT_SCENES:
        raise ValueError(f"n is {n}: only {HELD_OUT_SCENES} scenes are held out, so ask for 1 to {HELD_OUT_SCENES}")
    rng = random.Random(f"held out {seed}")
    return [(scene, draw(scene, rng), scene.caption) for scene in rng.sample(held_out_scenes(), n)]


def write_samples(folder: Path) -> None:
    """Writes the sample pictures into `folder/images` and their captions into `folder/captions.tsv`."""
    pictures = [draw(scene, random.Random(f"sample {i}")) for i, scene in enumerate(SAMPLE_SCENES)]
    # Both formats that users send most; JPEG also brings its own small errors along.
    names = [f"{scene.slug}.{('png', 'jpg')[i % 2]}" for i, scene in enumerate(SAMPLE_SCENES)]
    _write(folder, names, pictures, [scene.caption for scene in SAMPLE_SCENES])


def write_held_out(folder: Path) -> None:
    """Writes the pictures of `held_out` and their captions, as `write_samples` does."""
    scenes, pictures, captions = zip(*held_out(), strict=True)
    _write(folder, [f"{scene.slug}.png" for scene in scenes], pictures, captions)


def _write(folder: Path, names: Sequence[str], pictures: Sequence[Image.Image], captions: Sequence[str]) -> None:
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, pictures, strict=True):
        picture.save(images / name, quality=92)
    lines = ["file\tcaption", *(f"{name}\t{caption}" for name, caption in zip(names, captions, strict=True))]
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_held_out(Path(sys.argv[1]))
    else:
        write_samples(Path(__file__).parent)
