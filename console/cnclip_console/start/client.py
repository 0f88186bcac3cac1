"""How `cnclip` begins."""

from cnclip_console.start import run

__all__ = ["main"]


def main() -> None:
    """Runs `cnclip`."""
    run("cnclip_client._cli")
