"""A model repository where Triton reads it from: a folder, or a prefix of an object store."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from cnclip_builder.errors import MissingRequirementError, RepositoryError
from cnclip_builder.repository.manifest import MANIFEST_NAME, Manifest, manifest_text, parse_manifest
from cnclip_builder.repository.render import parse_config
from cnclip_builder.system.atomic import let_read
from cnclip_builder.system.secrets import without_secrets

CONFIG_NAME = "config.pbtxt"

# Where an upload appears whole or not at all. Elsewhere it is written under another name and renamed.
_OBJECT_STORES = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oss", "s3", "s3a"})
_PARTIAL = ".partial"

_BLOCK_BYTES = 1 << 22

_FIXES = {
    errno.EACCES: "see to it that you may read and write there",
    errno.EDQUOT: "free some space there",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space there",
    errno.ENOTDIR: "name a folder",
    errno.EPERM: "see to it that you may read and write there",
    errno.EROFS: "have it mounted so that it can be written to here",
}


class RepositoryStore:
    """Reads and changes a model repository by the paths in it, such as `demo-text-encoder/1/model.onnx`.

    A file that is written appears whole or not at all, on every file system.

    Args:
        url: a folder, or any address that fsspec knows, such as `s3://bucket/models`.

    Attributes:
        url: the address as it may be shown, without a password or key that stands in it.

    Raises:
        MissingRequirementError: the package for this kind of address is not installed.
        RepositoryError: the address is none.
    """

    def __init__(self, url: str) -> None:
        scheme, colon, rest = url.partition(":")
        is_cut_off = colon and scheme.lower() in _OBJECT_STORES and not rest.startswith("//")
        # Which fsspec takes for a folder's name, or for the folder that one is in.
        if not url.strip(" /") or is_cut_off or ("://" in url and not rest.strip("/")):
            raise RepositoryError(f"{without_secrets(url)!r} is no address: use a folder or s3://BUCKET/PREFIX")
        self.url = without_secrets(url).rstrip("/")
        self._hides = self.url != url.rstrip("/")
        try:
            from fsspec.core import url_to_fs

            # Another process's changes must be seen: listings are asked for each time.
            self._fs, self._root = url_to_fs(url.rstrip("/"), use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise MissingRequirementError(
                f"{self.url} needs a package that is not installed ({error}): pip install "
                "'cn-clip-triton[publish]', or fsspec's package for this kind of address"
            ) from error
        except ValueError as error:
            if self._hides:  # the reason may be a part of the password
                raise RepositoryError(
                    f"{self.url} can't be opened: write what is no letter or digit in its user and password as %XX, or "
                    "leave them out and use the store's own settings"
                ) from None
            raise RepositoryError(
                f"{self.url} can't be opened ({error}): use a folder or s3://BUCKET/PREFIX"
            ) from error
        except OSError as error:
            raise RepositoryError(
                f"{self.url} can't be reached ({without_secrets(str(error))}): check the address and the network"
            ) from error
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._renames = not protocols & _OBJECT_STORES
        self._is_local = "file" in protocols

    def models(self) -> list[str]:
        """The folders that hold a model's config, in alphabetical order."""
        folders = [Path(entry["name"]).name for entry in self._list("") if entry["type"] == "directory"]
        return sorted(name for name in folders if self.exists(f"{name}/{CONFIG_NAME}"))

    def versions(self, model: str) -> list[int]:
        """The version folders that there are of a model, served or not, in ascending order."""
        names = [Path(entry["name"]).name for entry in self._list(model) if entry["type"] == "directory"]
        return sorted(int(name) for name in names if name.isdecimal())

    def config(self, model: str) -> Any:
        """A model's config as a `ModelConfig` message; None if it has none.

        Raises:
            RepositoryError: it does not parse.
        """
        text = self.read(f"{model}/{CONFIG_NAME}")
        return None if text is None else parse_config(text, f"{self.url}/{model}/{CONFIG_NAME}")

    def served_versions(self, model: str) -> set[int]:
        """The versions that a model's config names; empty for a model without a config."""
        config = self.config(model)
        return set() if config is None else set(config.version_policy.specific.versions)

    def write_config(self, model: str, config: Any) -> None:
        """Replaces a model's config by a `ModelConfig` message."""
        text = text_format.MessageToString(config, as_utf8=True)
        self.write(f"{model}/{CONFIG_NAME}", text.encode())

    def manifest(self) -> Manifest:
        """What the manifest holds; an empty one if there is none.

        Raises:
            RepositoryError: it is damaged.
        """
        text = self.read(MANIFEST_NAME)
        return Manifest({}) if text is None else parse_manifest(text, f"{self.url}/{MANIFEST_NAME}")

    def write_manifest(self, models: Mapping[str, Any], files: Mapping[str, str] | None = None) -> None:
        """Replaces the manifest; without files it vouches for none."""
        self.write(MANIFEST_NAME, manifest_text(models, files).encode())

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        with self._explaining(path):
            return bool(self._fs.isfile(self._path(path)))

    def read(self, path: str) -> bytes | None:
        """A file's bytes; None if it is not there."""
        with self._explaining(path):
            try:
                return bytes(self._fs.cat_file(self._path(path)))
            except FileNotFoundError:
                return None

    def sha256(self, path: str) -> str:
        """The hex digest of a file's bytes, which may be more than memory holds."""
        digest = hashlib.sha256()
        with self._explaining(path), self._fs.open(self._path(path), "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def files(self, folder: str) -> list[str]:
        """The paths of all files below a folder."""
        start = len(self._path("")) + 1
        with self._explaining(folder):
            return sorted(path[start:] for path in self._fs.find(self._path(folder)))

    def write(self, path: str, content: bytes) -> None:
        """Writes a file."""
        with self._explaining(path), self._replacing(path) as target:
            self._fs.pipe_file(target, content)

    def upload(self, source: Path, path: str) -> None:
        """Copies a local file here."""
        with self._explaining(path), self._replacing(path) as target:
            self._fs.put_file(str(source), target)

    def delete(self, path: str) -> None:
        """Deletes a file, if it is there."""
        with self._explaining(path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(path))

    def delete_folder(self, folder: str) -> None:
        """Deletes a folder and what is left in it, if it is there."""
        with self._explaining(folder), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(folder), recursive=True)

    def _list(self, folder: str) -> list[dict[str, Any]]:
        with self._explaining(folder):
            try:
                return list(self._fs.ls(self._path(folder), detail=True))
            except FileNotFoundError:
                return []

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    @contextlib.contextmanager
    def _replacing(self, path: str) -> Iterator[str]:
        target = self._path(path)
        if not self._renames:
            yield target
            return
        folder, _, name = target.rpartition("/")
        partial = f"{folder}/.{name}{_PARTIAL}"
        made = [one for one in Path(partial).parents if self._is_local and not one.exists()]
        self._fs.makedirs(folder, exist_ok=True)
        yield partial
        if self._is_local:
            for new in (*made, Path(partial)):
                let_read(new, Path(self._root))
        self._fs.mv(partial, target)

    @contextlib.contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        """Gives the errors of all the libraries below one shape."""
        try:
            yield
        except Exception as error:
            # What a library says may quote a part of the password alone, which nothing here could tell.
            words = getattr(error, "strerror", None) or str(error)
            reason = ("" if self._hides else without_secrets(words)) or type(error).__name__
            raise RepositoryError(f"{self.url}/{path}: {reason}; {self._fix(error)}, and run it again") from error

    def _fix(self, error: Exception) -> str:
        """What mends a file system's error, or else a store's."""
        if self._renames and isinstance(error, OSError) and error.errno in _FIXES:
            return _FIXES[error.errno]
        return "check the address, the credentials and the network"
