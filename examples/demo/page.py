"""A page to look at: a hundred pictures that training never saw, each looked for by its caption.

    python examples/demo/page.py
    python examples/demo/page.py --screenshot docs/images/search.png

What `make demo` installs, and faiss (`pip install '.[search]'`), write `build/demo/page/found.html`, by the
commands that it prints. `--screenshot` takes the pictures of its top that the READMEs show, the Chinese one's as
`search.zh.png`; it wants Chromium and a font with Chinese characters (Debian: `chromium` and `fonts-noto-cjk`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cnclip_server import TritonServer
from demo import BUILD, build
from pictures import write_held_out
from PIL import Image

PAGE = BUILD / "page"
# Pixels: as wide as a README is on GitHub, and as high as the heading and the first queries.
WIDTH, HEIGHT = 1012, 868


def write_annotations(folder: Path, file: Path) -> None:
    """Writes the captions of `write_held_out` as MUGE has them: each with the picture that is right for it."""
    _, *lines = (folder / "captions.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    rows = [{"text_id": row, "text": text, "image_ids": [name]} for row, (name, text) in enumerate(pairs, start=1)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run(*words: str | Path) -> None:
    """Prints a command and runs it, `cnclip` being the one beside this Python."""
    print("$", shlex.join(map(str, words)), file=sys.stderr)
    subprocess.run([Path(sys.executable).with_name(str(words[0])), *words[1:]], check=True)


def write_page() -> Path:
    """Draws the pictures, serves the demo checkpoint, and has `cnclip` extract, search and write the page."""
    repository = BUILD / "repository"
    name = build(repository)
    write_held_out(PAGE)
    images, captions, page = PAGE / "images", PAGE / "captions.jsonl", PAGE / "found.html"
    write_annotations(PAGE, captions)
    image_features, text_features = PAGE / "images.jsonl", PAGE / "texts.jsonl"
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        asked = ("--url", server.grpc_url, "--model", name, "--overwrite")
        run("cnclip", "extract", "images", images, "-o", image_features, *asked)
        run("cnclip", "extract", "texts", captions, "-o", text_features, *asked)
    features = ("--image-feats", image_features, "--text-feats", text_features)
    shown = ("--html", page, "--images", images, "--annotations", captions)
    run("cnclip", "search", *features, "--top-k", "8", "-o", PAGE / "found.jsonl", *shown)
    return page


def take_screenshot(page: Path, language: str, target: Path) -> None:
    """Has a headless Chromium of a language draw the top of the page, and keeps it as a PNG of 256 colours, 50 kB."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium on the PATH; install it (Debian: apt install chromium fonts-noto-cjk)")
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "page.png")
        command = [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        command += [f"--accept-lang={language}", "--disable-background-networking"]
        command += [f"--screenshot={drawn}", f"--window-size={WIDTH},{HEIGHT}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(drawn) as image:
            few = image.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            few.save(target, optimize=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--screenshot",
        type=Path,
        metavar="FILE.png",
        help="also draw the top of the page into this, and in Chinese into FILE.zh.png",
    )
    arguments = parser.parse_args()
    page = write_page()
    if arguments.screenshot is not None:
        take_screenshot(page, "en", arguments.screenshot)
        take_screenshot(page, "zh-CN", arguments.screenshot.with_suffix(".zh.png"))
    print(page)


if __name__ == "__main__":
    main()
