"""The options of every command that asks a server: where it is, and what it wants to know of the client."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer
from cnclip_console import gives_options, option

from cnclip_client import BadFile, Client, Credentials, Limits, Retry, Timeout, Tls, served_models
from cnclip_client._client import Prepare
from cnclip_client._flow.preparation import PREPARERS_VARIABLE
from cnclip_client.command_line._ending import usage

__all__ = ["Server", "asks_about_server", "asks_server_for"]

_Group: TypeAlias = Literal["encodes", "images", "texts", "files"]
"""Groups of options that not every command has."""

# The headings under which help shows options.
_CONNECTION, _LIMITS = "Connection", "Limits"


def _only(group: _Group, default: float) -> Any:
    return field(default=default, metadata={"group": group})


@dataclass(frozen=True, kw_only=True, repr=False)
class Server:
    """The connection options of one command line; `asks_server_for` gives them to a command."""

    url: Annotated[
        list[str],
        option(
            "The server's gRPC address; several, with commas or given many times, share the work.",
            panel=_CONNECTION,
            metavar="HOST:PORT",
            envvar="CNCLIP_URL",
        ),
    ] = field(default_factory=lambda: ["localhost:8001"])
    model: Annotated[
        str | None,
        option("The served model; not needed where the server has only one.", panel=_CONNECTION, envvar="CNCLIP_MODEL"),
    ] = None
    tls: Annotated[bool, option("Speak TLS.", "--tls", panel=_CONNECTION, envvar="CNCLIP_TLS")] = False
    ca_cert: Annotated[
        Path | None,
        option(
            "The authority that signed the server's certificate, where it is no public one. Means --tls.",
            panel=_CONNECTION,
            metavar="FILE.pem",
            envvar="CNCLIP_CA_CERT",
        ),
    ] = None
    client_cert: Annotated[
        Path | None,
        option(
            "A certificate of this client's own (mutual TLS).",
            panel=_CONNECTION,
            metavar="FILE.pem",
            envvar="CNCLIP_CLIENT_CERT",
        ),
    ] = None
    client_key: Annotated[
        Path | None, option("The key of it.", panel=_CONNECTION, metavar="FILE.pem", envvar="CNCLIP_CLIENT_KEY")
    ] = None
    tls_server_name: Annotated[
        str | None,
        option(
            "The name in the server's certificate, where the address has another.",
            panel=_CONNECTION,
            metavar="NAME",
            envvar="CNCLIP_TLS_SERVER_NAME",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        option(
            "A file with a bearer token. CNCLIP_TOKEN holds one itself: an option would be seen in ps.",
            panel=_CONNECTION,
            metavar="FILE",
            envvar="CNCLIP_TOKEN_FILE",
        ),
    ] = None
    header: Annotated[
        list[str] | None,
        option(
            "Sent with every request; may be given many times. NAME:@FILE takes the value from a file, and "
            "CNCLIP_HEADERS holds one a line: an option would be seen in ps.",
            panel=_CONNECTION,
            metavar="NAME:VALUE",
        ),
    ] = None
    allow_plaintext: Annotated[
        bool,
        option(
            "Let tokens and headers go to another machine without TLS.",
            "--allow-plaintext",
            panel=_CONNECTION,
            envvar="CNCLIP_ALLOW_PLAINTEXT",
        ),
    ] = False
    request_timeout: Annotated[
        float,
        option(
            "How long one request may take, the wait in the server's queue included.",
            panel=_LIMITS,
            metavar="SECONDS",
            envvar="CNCLIP_REQUEST_TIMEOUT",
            min=0.001,
        ),
    ] = _only("encodes", Timeout().request_s)
    in_flight: Annotated[
        int,
        option(
            "Most requests under way at once; as many of them are used as pay.",
            panel=_LIMITS,
            metavar="N",
            envvar="CNCLIP_IN_FLIGHT",
            min=1,
        ),
    ] = _only("encodes", Limits().in_flight)
    item_bytes: Annotated[
        int,
        option(
            "A larger image or text fails before it is read.",
            panel=_LIMITS,
            metavar="BYTES",
            envvar="CNCLIP_ITEM_BYTES",
            min=1,
        ),
    ] = _only("encodes", Limits().item_bytes)
    readers: Annotated[
        int,
        option(
            "Most threads that read files of images ahead; each takes long over a network.",
            panel=_LIMITS,
            metavar="N",
            envvar="CNCLIP_READERS",
            min=1,
        ),
    ] = _only("files", Limits().readers)
    prepare: Annotated[
        Prepare,
        option(
            "Who decodes and resizes images, and makes token ids of texts: the server, this machine, or whoever "
            "is faster with the first images.",
            panel=_LIMITS,
            envvar="CNCLIP_PREPARE",
        ),
    ] = field(default="server", metadata={"group": "encodes"})
    preparers: Annotated[
        int | None,
        option(
            "Processes that prepare images here; one a core unless told.",
            panel=_LIMITS,
            metavar="N",
            envvar=PREPARERS_VARIABLE,
            min=1,
        ),
    ] = field(default=None, metadata={"group": "images"})
    vocabulary: Annotated[
        Path | None,
        option(
            "The vocab.txt for token ids that are made here, where the model was not built with cn_clip's.",
            panel=_LIMITS,
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
