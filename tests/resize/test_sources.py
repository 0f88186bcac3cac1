"""The C of the resize under AddressSanitizer and UndefinedBehaviorSanitizer, and how it is built."""

from __future__ import annotations

import os
import platform
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT

SOURCES = ROOT / "resize" / "src"


SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def fuzzer(folder: Path, *flags: str, of: str = "fuzz.c") -> Path:
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler cc")
    target = folder / "fuzz"
    files = [str(ROOT / "tests/resize" / of), str(SOURCES / "resize.c"), str(SOURCES / "jpeg.c")]
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{SOURCES}"]
    command = ["cc", *strict, *flags, *files, "-lm", "-ldl", "-o", str(target)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    return target


def fuzz(program: Path, seed: int, rounds: int) -> None:
    result = subprocess.run([program, str(seed), str(rounds)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{rounds} equal on path" in result.stdout


def test_the_vector_path_is_the_plain_one(tmp_path: Path) -> None:
    fuzz(fuzzer(tmp_path, "-O2"), seed=1, rounds=80)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_read_past_a_row_and_no_overflow(tmp_path: Path) -> None:
    fuzz(fuzzer(tmp_path, *SANITIZED), seed=7, rounds=800)


def jpegs(folder: Path) -> list[Path]:
    """A few of all kinds, small: most of what is done to them is done to their headers."""
    rng = random.Random(5)
    spots = Image.frombytes("RGB", (4, 3), rng.randbytes(36)).resize((75, 61))
    files = []
    for number, (mode, options) in enumerate((
        ("RGB", {}), ("RGB", {"subsampling": 0, "restart_marker_rows": 1}), ("L", {"progressive": True}),
        ("RGB", {"progressive": True}), ("CMYK", {}), ("RGB", {"exif": b"Exif\0\0" + rng.randbytes(40)}),
    )):  # fmt: skip
        files.append(folder / f"{number}.jpg")
        spots.convert(mode).save(files[-1], "JPEG", **options)
    return files


def fuzz_jpegs(program: Path, folder: Path, seed: int, rounds: int) -> None:
    """Damages JPEGs by the thousand; Pillow's own libjpeg decodes them."""
    if not (library := jpeg_library()):
        pytest.skip("this Pillow brings no libjpeg of its own")
    command = [program, library, str(seed), str(rounds), *jpegs(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    taken, left = map(int, re.findall(r"\d+", result.stdout))
    assert taken + left == rounds
    assert min(taken, left) > rounds // 20


def jpeg_library() -> Path | None:
    import PIL

    return next(Path(PIL.__file__).parent.parent.glob("pillow.libs/libjpeg-*.so*"), None)


def test_damaged_jpegs_are_decoded_alike_on_both_paths(tmp_path: Path) -> None:
    fuzz_jpegs(fuzzer(tmp_path, "-O2", of="fuzz_jpeg.c"), tmp_path, seed=1, rounds=2000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_damaged_jpegs_lead_to_no_wrong_read(tmp_path: Path) -> None:
    fuzz_jpegs(fuzzer(tmp_path, *SANITIZED, of="fuzz_jpeg.c"), tmp_path, seed=9, rounds=50_000)


def test_the_layout_is_that_of_libjpegs_header(tmp_path: Path) -> None:
    """jpeg.c says where fields lie; where libjpeg-turbo's header is installed, it is asked."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler cc")
    pairs = [
        ("errors", "err"), ("source", "src"), ("image_width", "image_width"), ("image_height", "image_height"),
        ("components", "num_components"), ("colours", "out_color_space"), ("scale_numerator", "scale_num"),
        ("scale_denominator", "scale_denom"), ("output_width", "output_width"), ("output_height", "output_height"),
        ("output_components", "output_components"), ("output_row", "output_scanline"),
    ]  # fmt: skip
    ours = [f"offsetof(struct jpeg_decompress, {name})" for name, _ in pairs]
    theirs = [f"offsetof(struct jpeg_decompress_struct, {name})" for _, name in pairs]
    managers = [
        *((f"jpeg_errors, {name}", f"jpeg_error_mgr, {name}") for name in ("error_exit", "emit_message", "output_message")),
        ("jpeg_source, next_byte", "jpeg_source_mgr, next_input_byte"), ("jpeg_source, bytes", "jpeg_source_mgr, bytes_in_buffer"),
        *((f"jpeg_source, {one}", f"jpeg_source_mgr, {two}") for one, two in (
            ("init", "init_source"), ("fill", "fill_input_buffer"), ("skip", "skip_input_data"),
            ("resync", "resync_to_restart"), ("term", "term_source"),
        )),
    ]  # fmt: skip
    ours += [f"offsetof(struct {one})" for one, _ in managers] + [
        "ABI",
        "SIZE_OF_DECOMPRESS",
        "COLOURS_GREY",
        "COLOURS_RGBX",
    ]
    theirs += [f"offsetof(struct {other})" for _, other in managers]
    theirs += ["JPEG_LIB_VERSION", "sizeof(struct jpeg_decompress_struct)", "JCS_GRAYSCALE", "JCS_EXT_RGBX"]
    checks = [f'_Static_assert((int){one} == (int){other}, "{one}");' for one, other in zip(ours, theirs, strict=True)]
    checks.append('_Static_assert(sizeof(struct jpeg_errors) >= sizeof(struct jpeg_error_mgr), "errors");')
    program = tmp_path / "layout.c"
    program.write_text("\n".join(["#include <stdio.h>", "#include <jpeglib.h>", '#include "jpeg.c"', *checks, ""]))
    command = ["cc", "-std=c11", f"-I{SOURCES}", "-c", str(program), "-o", str(tmp_path / "layout.o")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "jpeglib.h: No such file" in built.stderr:
        pytest.skip("there is no jpeglib.h: install libjpeg62-turbo-dev")
    assert built.returncode == 0, built.stderr


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    environment = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


def wheel_in(folder: Path) -> str:
    (wheel,) = folder.glob("*.whl")
    return wheel.name.split("-", 2)[2]


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("cc"), reason="no C compiler for x86-64")
def test_one_wheel_is_for_every_python(tmp_path: Path) -> None:
    assert build(tmp_path, CNCLIP_NATIVE="require", CC=" ").returncode == 0
    assert wheel_in(tmp_path) == "cp310-abi3-linux_x86_64.whl"
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".whl")] == []


@pytest.mark.parametrize("named", ["/nowhere/cc", "cc -DA='"])
def test_without_a_compiler_the_wheel_is_pure_and_that_is_said(tmp_path: Path, named: str) -> None:
    result = build(tmp_path, CC=named)
    assert result.returncode == 0
    assert "without its compiled module: " in result.stdout + result.stderr
    assert wheel_in(tmp_path) == "py3-none-any.whl"


def test_a_release_does_not_go_without_it_unseen(tmp_path: Path) -> None:
    result = build(tmp_path, CC="/nowhere/cc", CNCLIP_NATIVE="require")
    assert result.returncode != 0
    assert not list(tmp_path.glob("*.whl"))
