"""What the five commands share: help and tables that fit a terminal of 80 columns, errors, options that many have."""

from cnclip_console.errors import told
from cnclip_console.help import plain_app
from cnclip_console.options import Version, gives_options, option
from cnclip_console.table import print_table

__all__ = ["Version", "gives_options", "option", "plain_app", "print_table", "told"]
