"""How `cnclip-bench` begins."""

from cnclip_console.start import run

__all__ = ["main"]


def main() -> None:
    """Runs `cnclip-bench`."""
    run("cnclip_bench._cli")
