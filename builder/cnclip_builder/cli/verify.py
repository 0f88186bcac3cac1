"""The command that compares a running server with PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cnclip_console import gives_options, option, print_table

from cnclip_builder.cli.options import ModelOptions, VerboseOption
from cnclip_builder.errors import BuildError, CheckpointError, SettingError
from cnclip_builder.tensors import TOWERS

if TYPE_CHECKING:
    from cnclip_builder.verify import Verification


@gives_options(ModelOptions, "model")
def verify(
    *,
    model: ModelOptions,
    url: Annotated[
        str, option("The server's gRPC address; of several, with commas between, each is compared.")
    ] = "localhost:8001",
    image: Annotated[
        list[Path] | None, option("An image to compare instead of the built-in ones; may be repeated.")
    ] = None,
    captions: Annotated[Path | None, option("Texts to compare, a line each, instead of the built-in ones.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Compare the features of a running server with PyTorch's, row by row; of several, those of each.

    Example:
      cnclip-build verify --arch ViT-B-16 --url localhost:8001
    """
    from cnclip_builder.checkpoint.sources import fetch_checkpoint
    from cnclip_builder.reference import Reference
    from cnclip_builder.verify import addresses_of, require_served, verify_server

    chosen = model.choose_arch()
    name = model.served_name(chosen)
    addresses = addresses_of(url, name)
    images = {str(path): path.read_bytes() for path in image} if image else None
    texts = _read_captions(captions) if captions else None
    failed: dict[str, BuildError] = {}
    for address in addresses:
        with _kept(failed, address):
            require_served(address, name, chosen)
    if len(failed) < len(addresses):
        checkpoint = fetch_checkpoint(model.checkpoint, chosen, model.download_root, model.hub).path
        reference = Reference(checkpoint, chosen, images, texts)
        for address in (one for one in addresses if one not in failed):
            if len(addresses) > 1:
                typer.echo(f"{address}:")
            with _kept(failed, address):
                _show(verify_server(address, name, reference))
    if len(addresses) == 1:
        for error in failed.values():
            raise error
    if failed:
        told = "; ".join(f"{address}: {error}" for address, error in failed.items())
        raise BuildError(f"{len(failed)} of {len(addresses)} servers can't be trusted: {told}")


@contextlib.contextmanager
def _kept(failed: dict[str, BuildError], address: str) -> Iterator[None]:
    """Keeps what is wrong with one server, so that the others are looked at all the same."""
    try:
        yield
    except (SettingError, CheckpointError):  # no server's fault
        raise
    except BuildError as error:
        failed[address] = error


def _show(verification: Verification) -> None:
    """Prints what was found of a server.

    Raises:
        ParityError: its features are not PyTorch's.
    """
    rows = [
        (
            tower,
            str(parity.rows),
            f"{parity.cosine_distance:.1e}",
            f"{verification.tolerances[tower].cosine_distance:.0e}",
            f"{parity.centred_distance:.1e}",
            f"{verification.tolerances[tower].centred_distance:.0e}",
            f"{parity.absolute_difference:.1e}",
        )
        for tower, parity in verification.parity.items()
    ]
    if (reduced := verification.reduced_decoding) is not None:
        typer.echo(
            "Large JPEGs are decoded at reduced scale, here and in the PyTorch that they are compared with. From exact "
            f"decoding that takes features by 1 - cosine = {reduced.cosine_distance:.1e}, "
            f"{reduced.centred_distance:.1e} after centring."
        )
    if (card := verification.card_decoding) is not None:
        typer.echo(
            "A GPU decodes JPEGs. From exact pixels that takes the features of this encoder by 1 - cosine = "
            f"{card.cosine_distance:.1e}, {card.centred_distance:.1e} after centring; those of exact pixels are "
            "compared with PyTorch:"
        )
    print_table(("features", "rows", "1 - cosine", "at most", "centred", "at most", "largest difference"), rows)
    verification.require()
    if (prepared := verification.preparation) is not None:
        pixels = f"the pixels of {prepared.images} images and " if prepared.images else ""
        whose = ", as a client makes them here" if prepared.by_client else ""
        typer.echo(f"Equal to cn_clip's: {pixels}the token ids of {prepared.texts} texts{whose}.")


def show_live_parity(live: Mapping[str, Any]) -> None:
    """Prints how far the features that a server gave are from PyTorch's, as a manifest holds it under `live_parity`."""
    print_table(
        ("served features", "rows", "1 - cosine", "centred", "largest difference"),
        [
            (
                f"of {tower}s",
                str(live[tower]["rows"]),
                *(
                    f"{live[tower][name]:.1e}"
                    for name in ("cosine_distance", "centred_distance", "absolute_difference")
                ),
            )
            for tower in TOWERS
        ],
        "Served and compared with PyTorch, the worst row of each:",
    )


def _read_captions(path: Path) -> list[str]:
    """Reads texts, a line each; a file that ends in a newline has no empty text after it.

    Raises:
        SettingError: there are none, or the file is not in UTF-8.
    """
    try:
        texts = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise SettingError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it in UTF-8, a text a line"
        ) from error
    if texts == [""]:
        raise SettingError(f"{path} holds no texts: write one a line, or leave --captions out for the built-in ones")
    return texts
