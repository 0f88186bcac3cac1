"""What the five commands share: help and tables that fit a terminal of 80 columns, options that many commands have."""

from cnclip_console.help import plain_app
from cnclip_console.options import gives_options, option
from cnclip_console.table import print_table

__all__ = ["gives_options", "option", "plain_app", "print_table"]
