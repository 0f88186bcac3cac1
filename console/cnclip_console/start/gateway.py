"""How `cnclip-gateway` begins."""

from cnclip_console.start import run

__all__ = ["main"]


def main() -> None:
    """Runs `cnclip-gateway`."""
    run("cnclip_gateway._cli")
