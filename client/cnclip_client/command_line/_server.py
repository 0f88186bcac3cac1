"""The options of every command that asks a server: where it is, and what it wants to know of the client."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer
from cnclip_console import gives_options

from cnclip_client import BadFile, Client, Credentials, Limits, Retry, Timeout, Tls, served_models
from cnclip_client._client import Prepare
from cnclip_client._flow.preparation import PREPARERS_VARIABLE
from cnclip_client.command_line._ending import usage

__all__ = ["Server", "asks_about_server", "asks_server_for"]

_Group: TypeAlias = Literal["encodes", "images", "texts", "files"]
"""Groups of options that not every command has."""


def _option(
    *names: str,
    environment: str,
    help: str,
    metavar: str | None = None,
    panel: str = "Connection",
    least: float | None = None,
) -> Any:
    return typer.Option(*names, envvar=environment, help=help, metavar=metavar, rich_help_panel=panel, min=least)


def _only(group: _Group, default: float) -> Any:
    return field(default=default, metadata={"group": group})


@dataclass(frozen=True, kw_only=True, repr=False)
class Server:
    """The connection options of one command line; `asks_server_for` gives them to a command."""

    url: Annotated[
        list[str],
        _option(
            "--url",
            environment="CNCLIP_URL",
            help="The server's gRPC address; several, with commas or given many times, share the work.",
            metavar="HOST:PORT",
        ),
    ] = field(default_factory=lambda: ["localhost:8001"])
    model: Annotated[
        str | None,
        _option(
            "--model", environment="CNCLIP_MODEL", help="The served model; not needed where the server has only one."
        ),
    ] = None
    tls: Annotated[bool, _option("--tls", environment="CNCLIP_TLS", help="Speak TLS.")] = False
    ca_cert: Annotated[
        Path | None,
        _option(
            "--ca-cert",
            environment="CNCLIP_CA_CERT",
            help="The authority that signed the server's certificate, where it is no public one. Means --tls.",
            metavar="FILE.pem",
        ),
    ] = None
    client_cert: Annotated[
        Path | None,
        _option(
            "--client-cert",
            environment="CNCLIP_CLIENT_CERT",
            help="A certificate of this client's own (mutual TLS).",
            metavar="FILE.pem",
        ),
    ] = None
    client_key: Annotated[
        Path | None,
        _option("--client-key", environment="CNCLIP_CLIENT_KEY", help="The key of it.", metavar="FILE.pem"),
    ] = None
    tls_server_name: Annotated[
        str | None,
        _option(
            "--tls-server-name",
            environment="CNCLIP_TLS_SERVER_NAME",
            help="The name in the server's certificate, where the address has another.",
            metavar="NAME",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        _option(
            "--token-file",
            environment="CNCLIP_TOKEN_FILE",
            help="A file with a bearer token. CNCLIP_TOKEN holds one itself: an option would be seen in ps.",
            metavar="FILE",
        ),
    ] = None
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            help="Sent with every request; may be given many times. NAME:@FILE takes the value from a file, and "
            "CNCLIP_HEADERS holds one a line: an option would be seen in ps.",
            metavar="NAME:VALUE",
            rich_help_panel="Connection",
        ),
    ] = None
    allow_plaintext: Annotated[
        bool,
        _option(
            "--allow-plaintext",
            environment="CNCLIP_ALLOW_PLAINTEXT",
            help="Let tokens and headers go to another machine without TLS.",
        ),
    ] = False
    request_timeout: Annotated[
        float,
        _option(
            "--request-timeout",
            environment="CNCLIP_REQUEST_TIMEOUT",
            help="How long one request may take, the wait in the server's queue included.",
            metavar="SECONDS",
            panel="Limits",
            least=0.001,
        ),
    ] = _only("encodes", Timeout().request_s)
    in_flight: Annotated[
        int,
        _option(
            "--in-flight",
            environment="CNCLIP_IN_FLIGHT",
            help="Most requests under way at once; as many of them are used as pay.",
            metavar="N",
            panel="Limits",
            least=1,
        ),
    ] = _only("encodes", Limits().in_flight)
    item_bytes: Annotated[
        int,
        _option(
            "--item-bytes",
            environment="CNCLIP_ITEM_BYTES",
            help="A larger image or text fails before it is read.",
            metavar="BYTES",
            panel="Limits",
            least=1,
        ),
    ] = _only("encodes", Limits().item_bytes)
    readers: Annotated[
        int,
        _option(
            "--readers",
            environment="CNCLIP_READERS",
            help="Most threads that read files of images ahead; each takes long over a network.",
            metavar="N",
            panel="Limits",
            least=1,
        ),
    ] = _only("files", Limits().readers)
    prepare: Annotated[
        Prepare,
        _option(
            "--prepare",
            environment="CNCLIP_PREPARE",
            help="Who decodes and resizes images, and makes token ids of texts: the server, this machine, or whoever "
            "is faster with the first images.",
            panel="Limits",
        ),
    ] = field(default="server", metadata={"group": "encodes"})
    preparers: Annotated[
        int | None,
        _option(
            "--preparers",
            environment=PREPARERS_VARIABLE,
            help="Processes that prepare images here; one a core unless told.",
            metavar="N",
            panel="Limits",
            least=1,
        ),
    ] = field(default=None, metadata={"group": "images"})
    vocabulary: Annotated[
        Path | None,
        _option(
            "--vocabulary",
            environment="CNCLIP_VOCABULARY",
            help="The vocab.txt for token ids that are made here, where the model was not built with cn_clip's.",
            metavar="FILE",
            panel="Limits",
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
                    in_flight=self.in_flight,
                    item_bytes=self.item_bytes,
                    readers=self.readers,
                    preparers=self.preparers,
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
