"""Compares a repository's files with what its manifest says of them.

`manifest.json` holds, beside `models`, an object `files`: from each served file's path, relative to the repository and
with `/`, to its SHA-256 in hexadecimal digits. A manifest without `files` says nothing, and nothing is compared.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from cnclip_server._errors import RepositoryError, unreadable

MANIFEST = "manifest.json"

# Python writes these beside a model while it is served.
_NOT_SERVED = "__pycache__"
_BLOCK_BYTES = 2**20
_THREADS = 4


def changed_files(repository: Path) -> list[str]:
    """Finds the files that differ from the manifest, in alphabetical order, each with what is wrong with it.

    Raises:
        RepositoryError: The manifest, or a file that it names, cannot be read.
    """
    said = _said(repository)
    if said is None:
        return []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(said, pool.map(lambda path: _sha256(repository, path), said), strict=True))
    troubles = [f"{path} is missing" for path, digest in found.items() if digest is None]
    troubles += [f"{path} was changed" for path, digest in found.items() if digest not in (None, said[path])]
    # What nobody has vouched for may be code: a model.py in a model's folder is run.
    troubles += [f"{path} was added" for path in _served_files(repository) if path not in said]
    return sorted(troubles)


def _said(repository: Path) -> dict[str, str] | None:
    """The manifest's hashes; None if it has none, or there is no manifest."""
    path = repository / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(repository, error) from error
    except (ValueError, RecursionError) as error:
        raise RepositoryError(repository, f"{path} cannot be read ({error})") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if files is None:
        return None
    if not isinstance(files, dict) or not all(
        isinstance(digest, str) and _is_inside(name) for name, digest in files.items()
    ):
        raise RepositoryError(repository, f"{path} is damaged: its `files` are no paths with hashes")
    return files


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _served_files(repository: Path) -> list[str]:
    paths = (path for path in repository.glob("*/**/*") if path.is_file() and _NOT_SERVED not in path.parts)
    return [path.relative_to(repository).as_posix() for path in paths]


def _sha256(repository: Path, name: str) -> str | None:
    """A file's hash; None if it is not there."""
    digest = hashlib.sha256()
    try:
        with (repository / name).open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise unreadable(repository, error) from error
    return digest.hexdigest()
