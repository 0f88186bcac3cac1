"""How `cnclip-serve` begins."""

from cnclip_console.start import run

__all__ = ["main"]


def main() -> None:
    """Runs `cnclip-serve`."""
    run("cnclip_server._cli", serves=True)
