"""The kernels that resize on a card: their own source, compiled for the processor, gives Pillow's bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cnclip_card._cuda import compile_kernels
from cnclip_card._resize import Picture, make_squares, room_for
from cnclip_resize import order_of_passes
from PIL import Image

from tests.resize.card_twin import Twin, can_compile, compile_twin

pytestmark = [
    pytest.mark.skipif(not can_compile(), reason="there is no C++ compiler"),
    pytest.mark.skipif(order_of_passes() is None, reason="this Pillow's order of passes is not known"),
]

# Both sides of every line that some Pillow draws between shapes, with 224 for the square's side; and the edges.
ON_THE_LINES = (
    *((100, 224 - 248 + more) for more in (224, 225, 226)),
    *((300, 224 + 152 + more) for more in (-1, 0, 1)),
    *((224, 224 + more) for more in (0, 1, 2)),
    *((3, 300 + more) for more in (-1, 0, 1)),
    *((2, 200 + more) for more in (0, 1, 23, 24, 25)),
)
EDGES = ((1, 1), (1, 2), (2, 1), (65535, 1), (1, 65535), (224, 224), (336, 336), (7, 224), (223, 225))


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return Twin(compile_twin(tmp_path_factory.mktemp("twin")))


def noise(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    """Grey levels of all kinds, or the two outermost alone: these overshoot, and are clipped."""
    data = random.Random(seed).randbytes(size[0] * size[1] * len(mode))
    if seed % 2:
        data = data.translate(bytes(0 if level < 128 else 255 for level in range(256)))
    return Image.frombytes(mode, size, data)


def on_card(card: Twin, images: list[Image.Image], side: int, gap: int = 0) -> list[bytes]:
    """What a batch becomes; each row of a picture has a gap of so many bytes behind it."""
    order = order_of_passes()
    assert order is not None
    pictures = []
    for image in images:
        rows = np.asarray(image.convert("RGB")).reshape(image.height, -1)
        padded = np.pad(rows, ((0, 0), (0, gap)), constant_values=77)
        memory = card.allocate(padded.size)
        card.write(memory.address, padded.tobytes())
        pictures.append(Picture(memory.address, padded.shape[1], *image.size, memory))
    squares = [card.allocate(3 * side * side) for _ in images]
    make_squares(card, pictures, [square.address for square in squares], side, order)
    return [card.read(square.address, 3 * side * side) for square in squares]


def pillows(image: Image.Image, side: int) -> bytes:
    return image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB").tobytes()


def check(card: Twin, images: list[Image.Image], side: int, gap: int = 0) -> None:
    for image, ours in zip(images, on_card(card, images, side, gap), strict=True):
        assert ours == pillows(image, side), f"{image.mode} {image.size} to {side}"


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("side", [224, 336])
def test_edges_and_lines(card: Twin, mode: str, side: int) -> None:
    check(card, [noise(size, seed, mode) for seed, size in enumerate(EDGES)], side)
    check(card, [noise(size, seed, mode) for seed, size in enumerate(ON_THE_LINES)], side)


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_in_one_batch(card: Twin, seed: int) -> None:
    rng = random.Random(seed)
    sizes = [(rng.randint(1, longest), rng.randint(1, longest)) for longest in (9, 40, 40, 400, 400, 900, 1500)]
    images = [noise(size, index + seed, rng.choice(["RGB", "L"])) for index, size in enumerate(sizes)]
    check(card, images, rng.choice([224, 336, 288, 33, 1]), gap=rng.choice([0, 1, 253]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_many_random_shapes(card: Twin, seed: int) -> None:
    test_random_shapes_in_one_batch(card, seed)


def test_both_orders_of_passes_of_all_pillows(card: Twin) -> None:
    """Whatever order is asked for, the kernels do it: the two differ, and one of them is this Pillow's."""
    image = noise((500, 900), 3)
    results = []
    for vertical_first in (True, False):
        memory = card.allocate(3 * 500 * 900)
        card.write(memory.address, image.tobytes())
        square = card.allocate(3 * 224 * 224)
        picture = Picture(memory.address, 1500, 500, 900, memory)
        make_squares(card, [picture], [square.address], 224, lambda *_, first=vertical_first: first)
        results.append(card.read(square.address, 3 * 224 * 224))
    expected = []
    for first in ("height", "width"):
        between = (500, 224) if first == "height" else (224, 900)
        half_done = image.resize(between, Image.Resampling.BICUBIC)
        expected.append(half_done.resize((224, 224), Image.Resampling.BICUBIC).tobytes())
    assert results == expected
    assert results[0] != results[1]
    assert pillows(image, 224) in results


def test_what_a_picture_takes_is_told_beforehand(card: Twin) -> None:
    order = order_of_passes()
    assert order is not None
    for size in ((4000, 3000), (300, 65535), (65535, 3)):
        card.largest = 0
        memory = card.allocate(3)
        picture = Picture(memory.address, 0, *size, memory)  # a row that is read again and again
        card.write(memory.address, b"abc")
        told = room_for(*size, 224, order(*size, 224)) - 3 * size[0] * size[1]
        if size[0] == 4000:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(card, "launch", lambda *_: None)
                make_squares(card, [picture], [memory.address], 224, order)
            assert told - 1024 <= card.largest <= told + 1024
        assert told < 300 << 20


@pytest.mark.parametrize("capability", ["75", "80", "90", "100"])
def test_nvrtc_compiles_the_same_source(capability: str) -> None:
    """To a GPU's code, for which no GPU is needed; Turing, Ampere, Hopper and Blackwell."""
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: the extra [gpu-decode] has it")
    try:
        code = compile_kernels(capability)
    except RuntimeError as error:
        pytest.skip(f"NVRTC can't be loaded: {error}")
    assert b"weigh" in code.code
    assert b"shrink" in code.code


def test_nvrtc_is_found_in_an_environment_below() -> None:
    """As where a `.pth` file names its packages: cuda-core looks into those of `site` alone."""
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: the extra [gpu-decode] has it")
    if not any(Path(entry, "nvidia/cu13/lib/libnvrtc.so.13").is_file() for entry in sys.path):
        pytest.skip("NVRTC's wheel is not installed: the extra [gpu-decode] has it")
    script = (
        f"import sys; sys.path[:] = {sys.path!r}; from cnclip_card._cuda import compile_kernels; compile_kernels('90')"
    )
    result = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_kernels_hold_up_under_sanitizers(tmp_path: Path) -> None:
    """No read or write outside of what they are given, and no sum that overflows: in a process of its own."""
    found = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    asan = Path(found.stdout.strip())
    if not asan.is_absolute():
        pytest.skip("this compiler has no sanitizers")
    library = compile_twin(tmp_path, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    script = (
        "from pathlib import Path\n"
        "from tests.resize.card_twin import Twin\n"
        "from tests.resize.test_card_kernels import check, noise, EDGES, ON_THE_LINES\n"
        f"card = Twin(Path({str(library)!r}))\n"
        "check(card, [noise(size, seed) for seed, size in enumerate((*EDGES, *ON_THE_LINES))], 224, gap=5)\n"
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": str(asan),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[2])]),
        "PYTHONMALLOC": "malloc",
    }
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
