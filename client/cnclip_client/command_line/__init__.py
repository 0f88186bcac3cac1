"""What a command that asks a server is made of, one of `cnclip`'s or the gateway's: its options, and how it ends."""

from cnclip_client._extras import require
from cnclip_client.command_line._ending import SOME_FAILED, Verbose, complain, reporting, usage
from cnclip_client.command_line._server import Server, asks_about_server, asks_server_for

__all__ = [
    "SOME_FAILED",
    "Server",
    "Verbose",
    "asks_about_server",
    "asks_server_for",
    "complain",
    "reporting",
    "require",
    "usage",
]
