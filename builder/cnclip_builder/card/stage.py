"""The stages on a GPU that decodes, each to be run in a process of its own: naming them costs no torch and no CUDA."""

from __future__ import annotations

from pathlib import Path

from cnclip_builder.arch import Arch
from cnclip_builder.card.distance import CardDistance, measure_card
from cnclip_builder.errors import SettingError

# More of a user's folder tells no more, and PyTorch encodes them one by one.
MOST_IMAGES = 256


def why_no_card() -> str:
    """Why this machine's GPU can't decode as is promised, in a line; empty if it can."""
    from cnclip_card import CardUnfit, open_card
    from cnclip_pixels import image_formats

    try:
        open_card(32, image_formats())
    except CardUnfit as error:
        return str(error)
    return ""


def measure_card_distance(checkpoint: Path, arch: Arch, folder: Path | None) -> CardDistance:
    """Measures this machine's GPU on the built-in pictures and those of a folder; imports torch.

    Args:
        checkpoint: its file.
        arch: its architecture.
        folder: of a user's images; None for the built-in ones alone.

    Raises:
        CardUnfit: there is no such GPU.
        SettingError: the folder holds no files.
    """
    from cnclip_card import open_card
    from cnclip_machine import usable_cores
    from cnclip_pixels import image_formats

    from cnclip_builder.checkpoint.load import load_checkpoint
    from cnclip_builder.checkpoint.towers import encode, load_tower
    from cnclip_builder.parity.samples import sample_images

    own = {str(path.relative_to(folder)): path.read_bytes() for path in images_in(folder)} if folder else {}
    images = {**sample_images(), **own}
    card = open_card(arch.resolution, image_formats(), threads=usable_cores())
    tower = load_tower(load_checkpoint(checkpoint, arch), "image")
    return measure_card(card, images, arch.resolution, lambda image: encode(tower, image))


def images_in(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, in alphabetical order; so many of them at most.

    Raises:
        SettingError: there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise SettingError(f"{folder} holds no files: name a folder of images")
    return paths[:MOST_IMAGES]
