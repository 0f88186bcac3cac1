"""What the four commands share: help that fits a terminal of 80 columns, and options that many commands have."""

from cnclip_console.help import plain_app
from cnclip_console.options import gives_options, option

__all__ = ["gives_options", "option", "plain_app"]
