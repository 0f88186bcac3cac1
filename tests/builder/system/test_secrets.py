"""No password and no key of an address reaches a message, a log or a traceback."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cnclip_builder.cli.app import app
from cnclip_builder.errors import BuildError
from cnclip_builder.repository.pruning import plan_pruning
from cnclip_builder.repository.store import RepositoryStore
from cnclip_builder.system.secrets import SecretlessFormatter, without_secrets
from typer.testing import CliRunner

SECRET = "s3cr/e@t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:s3cret@host:80/x", "http://***@host:80/x"),
        ("at https://s3cret@host/x, again", "at https://***@host/x, again"),
        ("s3://KEY:s3/cr/et@bucket/p", "s3://***@bucket/p"),
        ("proxy 'http://user:s3@cret@host'", "proxy 'http://***@host'"),
        ("abfs://c@a/p?sv=1&sig=s3cret&x=2", "abfs://***@a/p?sv=1&sig=***&x=2"),
        (
            "https://h/p?X-Amz-Signature=s3cret&X-Amz-Credential=s3cret",
            "https://h/p?X-Amz-Signature=***&X-Amz-Credential=***",
        ),
        ("http://a/x http://user:s3cret@b/y", "http://a/x http://***@b/y"),
        ("s3://bucket/models: mail me@here.org", "s3://bucket/models: mail me@here.org"),
        ("s3://bucket/run@3/models", "s3://bucket/run@3/models"),
        ("/data/models", "/data/models"),
    ],
)
def test_what_is_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "url",
    [f"nope://user:{SECRET}@host/x", f"sftp://user:{SECRET}@host/x", f"ftp://user:{SECRET}@127.0.0.1:1/x",
     f"s3://KEY:{SECRET}@bucket/x", f"webhdfs://user:{SECRET}@127.0.0.1:1/x", f"memory://user:{SECRET}@host/x"],
)  # fmt: skip
@pytest.mark.parametrize("command", [["prune"], ["prune", "--dry-run"]])
def test_addresses_of_repositories(url: str, command: list[str]) -> None:
    with pytest.raises((BuildError, OSError)) as caught:
        plan_pruning(url)
    assert SECRET not in str(caught.value)
    assert SECRET.split("/")[0] not in str(caught.value)
    result = CliRunner().invoke(app, [*command, url])
    assert SECRET not in result.output + str(result.exception)


def test_a_published_addresss_secret_is_not_shown(tmp_path: Path) -> None:
    store = RepositoryStore(f"memory://user:{SECRET}@host/{tmp_path.name}")
    assert SECRET not in store.url
    store.write("a/config.pbtxt", b"x: 1")
    with pytest.raises(BuildError) as caught:
        store.config("a")
    assert SECRET not in str(caught.value)


def test_logs_and_tracebacks() -> None:
    try:
        raise OSError(f"no way through http://user:{SECRET}@proxy:3128")
    except OSError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "at %s", (f"http://u:{SECRET}@h",), sys.exc_info())
    shown = SecretlessFormatter("%(message)s").format(record)
    assert "Traceback" in shown
    assert SECRET not in shown


def test_what_a_hubs_library_logs_by_its_own_handler(tmp_path: Path) -> None:
    """A mirror with a password in its address; the library logs addresses that don't answer."""
    environment = {**os.environ, "HF_ENDPOINT": "http://user:s3cret@127.0.0.1:9", "HF_HUB_ETAG_TIMEOUT": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    code = (
        "import logging; from cnclip_builder.system.isolation import configure_logging; configure_logging(logging.DEBUG)\n"
        "from huggingface_hub.utils import logging as hub; log = hub.get_logger('huggingface_hub.utils._http')\n"
        "import os; log.warning('thrown while requesting HEAD %s', os.environ['HF_ENDPOINT'])\n"
        "logging.getLogger('other').info(os.environ['HF_ENDPOINT'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
        check=True,
    )
    assert "HEAD http://***@127.0.0.1:9" in result.stderr
    assert "s3cret" not in result.stderr
