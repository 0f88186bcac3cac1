"""The options of every command that asks a server: where it is, and what it wants to know of the client."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from cnclip_console import gives_options, option

from cnclip_client import BadFile, Client, Credentials, Limits, Retry, Timeout, Tls, served_models
from cnclip_client._client import Prepare
from cnclip_client._flow.preparation import PREPARERS_VARIABLE
from cnclip_client.command_line._ending import usage

__all__ = ["Server", "asks_about_server", "asks_server_for"]

# Options by the headings under which help shows them.
_connection, _limit = partial(option, panel="Connection"), partial(option, panel="Limits")


@dataclass(frozen=True, kw_only=True, repr=False)
class Server:
    """The connection options of one command line; `asks_server_for` gives them to a command.

    Of an option that not every command has, the metadata name the group: `encodes`, `images`, `texts` or `files`.
    """

    url: Annotated[
        list[str],
        _connection(
            "The server's gRPC address; several, with commas or given many times, share the work.",
            metavar="HOST:PORT",
            envvar="CNCLIP_URL",
        ),
    ] = field(default_factory=lambda: ["localhost:8001"])
    model: Annotated[
        str | None, _connection("The served model; not needed where the server has only one.", envvar="CNCLIP_MODEL")
    ] = None
    tls: Annotated[bool, _connection("Speak TLS.", "--tls", envvar="CNCLIP_TLS")] = False
    ca_cert: Annotated[
        Path | None,
        _connection(
            "The authority that signed the server's certificate, where it is no public one. Means --tls.",
            metavar="FILE.pem",
            envvar="CNCLIP_CA_CERT",
        ),
    ] = None
    client_cert: Annotated[
        Path | None,
        _connection(
            "A certificate of this client's own (mutual TLS).", metavar="FILE.pem", envvar="CNCLIP_CLIENT_CERT"
        ),
    ] = None
    client_key: Annotated[
        Path | None, _connection("The key of it.", metavar="FILE.pem", envvar="CNCLIP_CLIENT_KEY")
    ] = None
    tls_server_name: Annotated[
        str | None,
        _connection(
            "The name in the server's certificate, where the address has another.",
            metavar="NAME",
            envvar="CNCLIP_TLS_SERVER_NAME",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        _connection(
            "A file with a bearer token. CNCLIP_TOKEN holds one itself: an option would be seen in ps.",
            metavar="FILE",
            envvar="CNCLIP_TOKEN_FILE",
        ),
    ] = None
    header: Annotated[
        list[str] | None,
        _connection(
            "Sent with every request; may be given many times. NAME:@FILE takes the value from a file, and "
            "CNCLIP_HEADERS holds one a line: an option would be seen in ps.",
            metavar="NAME:VALUE",
        ),
    ] = None
    allow_plaintext: Annotated[
        bool,
        _connection(
            "Let tokens and headers go to another machine without TLS.",
            "--allow-plaintext",
            envvar="CNCLIP_ALLOW_PLAINTEXT",
        ),
    ] = False
    request_timeout: Annotated[
        float,
        _limit(
            "How long one request may take, the wait in the server's queue included.",
            metavar="SECONDS",
            envvar="CNCLIP_REQUEST_TIMEOUT",
            min=0.001,
        ),
    ] = field(default=Timeout().request_s, metadata={"group": "encodes"})
    in_flight: Annotated[
        int,
        _limit(
            "Most requests under way at once; as many of them are used as pay.",
            metavar="N",
            envvar="CNCLIP_IN_FLIGHT",
            min=1,
        ),
    ] = field(default=Limits().in_flight, metadata={"group": "encodes"})
    item_bytes: Annotated[
        int,
        _limit("A larger image or text fails before it is read.", metavar="BYTES", envvar="CNCLIP_ITEM_BYTES", min=1),
    ] = field(default=Limits().item_bytes, metadata={"group": "encodes"})
    readers: Annotated[
        int,
        _limit(
            "Most threads that read files of images ahead; each takes long over a network.",
            metavar="N",
            envvar="CNCLIP_READERS",
            min=1,
        ),
    ] = field(default=Limits().readers, metadata={"group": "files"})
    prepare: Annotated[
        Prepare,
        _limit(
            "Who decodes and resizes images, and makes token ids of texts: the server, this machine, or whoever "
            "is faster with the first images.",
            envvar="CNCLIP_PREPARE",
        ),
    ] = field(default="server", metadata={"group": "encodes"})
    preparers: Annotated[
        int | None,
        _limit(
            "Processes that prepare images here; one a core unless told.", metavar="N", envvar=PREPARERS_VARIABLE, min=1
        ),
    ] = field(default=None, metadata={"group": "images"})
    vocabulary: Annotated[
        Path | None,
        _limit(
            "The vocab.txt for token ids that are made here, where the model was not built with cn_clip's.",
            metavar="FILE",
            envvar="CNCLIP_VOCABULARY",
        ),
    ] = field(default=None, metadata={"group": "texts"})

    def credentials(self) -> Credentials:
        """Returns what the options and the environment say.

        Raises:
            ValueError: They contradict each other.
            BadFile: A header's file cannot be read.
        """
        mutual = self.client_cert is not None or self.client_key is not None
        tls = None
        if self.tls or mutual or self.ca_cert is not None or self.tls_server_name is not None:
            tls = Tls(
                ca_cert=self.ca_cert,
                client_cert=self.client_cert,
                client_key=self.client_key,
                server_name=self.tls_server_name,
            )
        given = [*os.environ.get("CNCLIP_HEADERS", "").splitlines(), *(self.header or ())]
        return Credentials(
            tls=tls,
            # What is given as an option wins over the environment.
            token=None if self.token_file else os.environ.get("CNCLIP_TOKEN") or None,
            token_file=self.token_file,
            headers=dict(_header(line) for line in given if line.strip()),
            allow_plaintext=self.allow_plaintext,
        )

    def connect(self, *, retry: Retry | None = None, prepare: Prepare | None = None) -> Client:
        """Returns a client of the model that was asked for, or of the only one that there is.

        Args:
            retry: When to try again; the defaults are those of `Retry`.
            prepare: Who prepares, where the command has no option for it.

        Raises:
            typer.BadParameter: An option is wrong, or it takes one to choose a model.
            CnclipError: The server could not be had, or a file is not what it should be.
        """
        with usage():
            credentials, model = self.credentials(), self.model
            if model is None:
                slugs = served_models(self.url, retry=retry, credentials=credentials)
                if len(slugs) != 1:
                    served = f"{len(slugs)} models: {', '.join(slugs)}" if slugs else "no Chinese-CLIP model"
                    raise typer.BadParameter(
                        f"{','.join(self.url)} serves {served}; choose one with --model or CNCLIP_MODEL"
                    )
                model = slugs[0]
            return Client(
                self.url,
                model=model,
                timeout=Timeout(request_s=self.request_timeout),
                retry=retry,
                limits=Limits(
                    in_flight=self.in_flight, item_bytes=self.item_bytes, readers=self.readers, preparers=self.preparers
                ),
                credentials=credentials,
                prepare=prepare or self.prepare,
                vocabulary=self.vocabulary,
            )


def asks_server_for(*what: Literal["images", "texts", "files"]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command that encodes the options of `Server`, and hands them over as its parameter `server`.

    Args:
        what: What it encodes, and whether that is read from files.
    """
    return _with_options({"", "encodes", *what})


def asks_about_server(command: Callable[..., None]) -> Callable[..., None]:
    """Does so for a command that encodes nothing."""
    return _with_options({""})(command)


def _with_options(groups: set[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command those options of `Server` that are of some groups; those that all have are of none, ""."""
    return gives_options(Server, "server", last=True, wanted=lambda option: option.metadata.get("group", "") in groups)


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError("a header has no colon; write NAME:VALUE or NAME:@FILE")
    value = value.strip()
    if value.startswith("@"):
        path = value[1:]
        try:
            value = Path(path).read_text(encoding="ascii").strip()
        except OSError as error:
            raise BadFile(f"cannot be read ({error.strerror}); it is to hold a header's value", path=path) from error
        except UnicodeDecodeError:
            raise BadFile("is not ASCII; it is to hold a header's value", path=path) from None
    return name.strip(), value
