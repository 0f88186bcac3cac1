"""The compiled resize: to the byte what the installed Pillow gives, or handed back to it."""

from __future__ import annotations

import io
import random
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import cnclip_resize
import PIL
import pytest
from cnclip_resize import resize, resizer
from PIL import Image, features

native = pytest.importorskip("cnclip_resize._native", reason="cnclip_resize was installed without a C compiler")

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]

SIDES = (224, 336)
PATHS = {"scalar": native.SCALAR, "AVX2": native.AVX2, "VNNI": native.VNNI}

# Both sides of every line that some Pillow draws between shapes, with 224 for the square's side.
ON_THE_LINES = (
    *((100, 224 - 248 + more) for more in (224, 225, 226)),
    *((300, 224 + 152 + more) for more in (-1, 0, 1)),
    *((224, 224 + more) for more in (0, 1, 2)),
    *((3, 300 + more) for more in (-1, 0, 1)),
    *((2, 200 + more) for more in (0, 1, 23, 24, 25)),
)
EDGES = ((1, 1), (1, 2), (2, 1), (65535, 1), (1, 65535), (65535, 20), (20, 65535), (224, 224), (336, 336), (7, 224))


def noise(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    """Grey levels of all kinds, or the two outermost alone: these overshoot, and are clipped."""
    rng = random.Random(seed)
    data = rng.randbytes(size[0] * size[1] * len(mode))
    if seed % 2:
        data = data.translate(bytes(0 if level < 128 else 255 for level in range(256)))
    return Image.frombytes(mode, size, data)


def pillows(image: Image.Image, side: int) -> bytes:
    return image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB").tobytes()


def on_path(image: Image.Image, side: int, path: int) -> bytes | None:
    """What a path gives, whatever this processor would choose by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "BEST", path)
        return cnclip_resize._resize(image, side)


def check(mode: str, size: tuple[int, int], side: int, seed: int) -> None:
    image = noise(mode, size, seed)
    expected = pillows(image, side)
    for name, path in PATHS.items():
        if path > native.BEST:
            continue
        assert on_path(image, side, path) == expected, f"{name}: {mode} {size} to {side}, seed {seed}"


def random_case(rng: random.Random) -> tuple[str, tuple[int, int], int]:
    longest = rng.choice([(1, 40, 40), (1, 400, 400), (1, 1200, 900), (1, 4000, 12), (1, 12, 4000)])
    size = rng.randint(longest[0], longest[1]), rng.randint(longest[0], longest[2])
    return rng.choice(["RGB", "RGB", "L"]), size, rng.choice([224, 336, 224, 336, 288, 33, 1])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("side", SIDES)
def test_edges(mode: str, side: int) -> None:
    for seed, size in enumerate((*EDGES, *((side, side + more) for more in (1, 2)))):
        check(mode, size, side, seed)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_shapes_on_the_lines_between_the_orders_of_passes(mode: str) -> None:
    for seed, size in enumerate(ON_THE_LINES):
        check(mode, size, 224, seed)


def test_random_sizes() -> None:
    rng = random.Random(22)
    for seed in range(200):
        check(*random_case(rng), seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_random_sizes() -> None:
    rng = random.Random(2026)
    for seed in range(10_000):
        check(*random_case(rng), seed)


@pytest.mark.parametrize("side", SIDES)
def test_real_images(shared_images: list[Path], side: int) -> None:
    """Whatever is taken is equal, and what Pillow refuses is refused in its words. cn_clip's own is in test_pixels."""
    taken = refused = 0
    for path in shared_images:
        results = []
        for one in (resize, pillows):
            try:
                with Image.open(path) as image:
                    results.append(one(image, side))
            except Exception as error:
                results.append(f"{type(error).__name__}: {error}".partition("<")[0])
        assert results[0] is None or results[0] == results[1], path.name
        taken += isinstance(results[0], bytes)
        refused += isinstance(results[0], str)
    if native.BEST != native.SCALAR:
        assert taken > 20
        assert refused > 5


def encoded(image: Image.Image, name: str, **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    buffer.seek(0)
    return buffer


@pytest.mark.skipif(native.BEST == native.SCALAR, reason="this processor has no AVX2")
class TestWhoResizes:
    def test_it_says_who(self) -> None:
        path = {native.AVX2: "AVX2", native.VNNI: "AVX-512 VNNI"}[native.BEST]
        expected = f"the compiled module ({path}), as Pillow {PIL.__version__} does; JPEGs as its libjpeg decodes them"
        assert resizer() == expected

    @pytest.mark.parametrize("name", ["AVIF", "BMP", "JPEG", "JPEG2000", "PNG", "PPM", "WEBP"])
    def test_everyday_formats_are_taken(self, name: str) -> None:
        if name == "AVIF" and not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
        for mode in ("RGB", "L"):
            with Image.open(encoded(noise(mode, (300, 200), 4), name)) as image:
                assert resize(image, 224) == pillows(image, 224)

    @pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "RGBX"])
    def test_other_modes_are_pillows(self, mode: str) -> None:
        assert resize(Image.new(mode, (300, 200)), 224) is None

    def test_other_formats_are_pillows_and_not_read(self) -> None:
        with Image.open(encoded(noise("RGB", (300, 200), 4), "TIFF")) as image:
            assert resize(image, 224) is None
            assert image._im is None

    @pytest.mark.parametrize(
        ("mode", "size"),
        [("RGB", (4096, 1025)), ("RGB", (900, 6000)), ("RGB", (65535, 65)), ("RGB", (65, 65535)), ("L", (4097, 4099))],
    )
    def test_several_blocks_of_memory_are_taken_in_strips(self, mode: str, size: tuple[int, int]) -> None:
        image = noise(mode, size, 4)
        with pytest.raises(ValueError):  # noqa: PT011
            image.__arrow_c_array__()
        assert resize(image, 224) == pillows(image, 224)

    def test_strips_of_several_blocks_are_pillows(self) -> None:
        before = Image.core.get_block_size()
        Image.core.set_block_size(4096)
        try:
            assert resize(noise("RGB", (600, 400), 4), 224) is None
        finally:
            Image.core.set_block_size(before)

    def test_memory_of_others_is_pillows(self, tmp_path: Path) -> None:
        size = 300, 200
        lent = Image.frombuffer("L", size, random.Random(0).randbytes(60000), "raw", "L", 0, 1)
        assert resize(lent, 224) is None
        noise("L", size, 4).save(tmp_path / "mapped.ppm")
        with Image.open(tmp_path / "mapped.ppm") as mapped:
            assert resize(mapped, 224) in (None, pillows(mapped, 224))

    def test_rows_with_gaps_are_pillows(self) -> None:
        Image.core.set_alignment(64)
        try:
            assert resize(Image.new("RGB", (301, 200)), 224) is None
        finally:
            Image.core.set_alignment(1)

    def test_sizes_that_are_not_known_are_pillows(self) -> None:
        image = noise("RGB", (30, 20), 0)
        assert resize(image, 4097) is None
        assert resize(Image.new("L", (1 << 20, 1)), 1) is None
        assert resize(Image.new("L", ((1 << 20) + 1, 1)), 224) is None

    @pytest.mark.parametrize(
        ("version", "known"),
        [("13.0.1", True), ("13.1.0", False), ("14.0", False), ("9.5.0.post2", False), ("", False)],
    )
    def test_an_unknown_pillow_does_it_itself(self, version: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PIL, "__version__", version)
        monkeypatch.setattr(cnclip_resize, "_equal", lambda mode, size: True)
        assert (resize(noise("RGB", (30, 20), 0), 8) is not None) == known
        assert ("does not know this version" in resizer()) != known

    @pytest.mark.parametrize("order", ["_never", "_hundred_times_as_high", "_shrunk_more_in_height"])
    def test_a_pillow_that_differs_is_found(self, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each order of passes that is not this Pillow's shows in the shapes that are tried at the start."""
        name, mine = cnclip_resize._pillow(), getattr(cnclip_resize, order)
        same = cnclip_resize._KNOWN[name] is mine
        monkeypatch.setitem(cnclip_resize._KNOWN, name, mine)
        assert ("gives other bytes" in resizer()) != same

    def test_without_the_compiled_module(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cnclip_resize, "_native", None)
        assert resize(noise("RGB", (30, 20), 0), 8) is None
        assert resizer() == f"Pillow {PIL.__version__}: cnclip_resize was installed without its compiled module"

    def test_another_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "BEST", native.SCALAR)
        assert resize(noise("RGB", (30, 20), 0), 8) is None
        assert "no AVX2" in resizer()

    def test_it_can_be_turned_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CNCLIP_RESIZE", "pillow")
        assert resize(noise("RGB", (30, 20), 0), 8) is None
        assert resizer() == f"Pillow {PIL.__version__}: CNCLIP_RESIZE=pillow"

    def test_threads(self) -> None:
        """Many at once, of the same picture too."""
        images = [noise("RGB", (400 + number, 300), number) for number in range(3)]
        expected = [pillows(image, 224) for image in images]
        wrong: list[int] = []

        def work() -> None:
            wrong.extend(i for _ in range(20) for i, image in enumerate(images) if resize(image, 224) != expected[i])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_memory_is_given_back(self) -> None:
        def work() -> None:
            for _ in range(100):
                resize(Image.new("RGB", (1000, 1000)), 224)

        work()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB; a leak would be 400,000.


def test_the_module_checks_what_it_is_given() -> None:
    schema, array = Image.new("RGB", (30, 20)).__arrow_c_array__()
    assert native.resize(schema, array, 4, 30, 20, 8, False, native.SCALAR) == bytes(192)
    for channels, wide, high, side, path in (
        (4, 30, 21, 8, 0), (1, 30, 20, 8, 0), (3, 40, 20, 8, 0), (4, 0, 20, 8, 0), (4, 30, -20, 8, 0), (4, 30, 20, 0, 0),
        (4, 30, 20, 8, 3), (4, 30, 20, 8, -1),
    ):  # fmt: skip
        assert native.resize(schema, array, channels, wide, high, side, False, path) is None
    for wrong in ((None, None), (array, schema)):
        with pytest.raises(ValueError, match="PyCapsule"):
            native.resize(*wrong, 4, 30, 20, 8, False, native.SCALAR)


def test_strips_are_checked() -> None:
    schema, array = Image.new("RGB", (30, 20)).__arrow_c_array__()

    def strips(*given: object, wide: int = 30, high: int = 20) -> bytes | None:
        return native.strips(iter(given), 4, wide, high, 8, False, native.SCALAR)

    assert strips((schema, array, 20)) == bytes(192)
    assert strips((schema, array, 20), (schema, array, 20), high=40) == bytes(192)
    for wrong in (19, 21, 0, -1, 1 << 30):
        assert strips((schema, array, wrong)) is None
    assert strips() is None
    assert strips((schema, array, 20), high=21) is None
    assert strips((schema, array, 20), (schema, array, 20)) is None
    assert strips((schema, array, 20), wide=0) is None
    for nonsense, error in ((7, TypeError), ((schema, array), TypeError), ((array, schema, 20), ValueError)):
        with pytest.raises(error):
            strips(nonsense)
    with pytest.raises(TypeError, match="iterator"):
        native.strips([], 4, 30, 20, 8, False, native.SCALAR)

    def fails() -> Iterator[object]:
        yield schema, array, 20
        raise MemoryError

    with pytest.raises(MemoryError):
        native.strips(fails(), 4, 30, 30, 8, False, native.SCALAR)
