"""How `cnclip-build` begins."""

from cnclip_console.start import run

__all__ = ["main"]


def main() -> None:
    """Runs `cnclip-build`."""
    run("cnclip_builder.cli.app")
