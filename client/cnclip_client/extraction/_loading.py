"""Images that items name are read ahead; what fails of one is told from what fails of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cnclip_client._blame import identity_of, is_still
from cnclip_client._exceptions import BadFile, StoreError
from cnclip_client._flow.items import Unsendable, image_bytes
from cnclip_client._flow.prefetch import Prefetch
from cnclip_client._remote import RemotePath, is_remote, is_unanswered
from cnclip_client._settings import Limits
from cnclip_client.sources import Item

__all__ = ["loading_ahead"]

_LONGEST_PATH = 1024


def loading_ahead(items: Iterable[Item], limits: Limits) -> Prefetch[Item, Item]:
    """Returns what gives each item with its image's bytes in place of its path, or with its failure.

    It raises what is no item's fault: OSError of a disk that is gone, StoreError of a store or a network.
    """
    last = _Read()

    def load(item: Item) -> Item:
        nonlocal last
        if not isinstance(item.value, str):
            return item
        try:
            data = image_bytes(item.value, limits.item_bytes)
        except Unsendable as error:
            _require_still_there(lambda: last, error.__cause__)
            # Of a column of paths the id tells nothing of which file it was.
            is_named = item.value.endswith(str(item.id)) or is_remote(item.value)
            reason = str(error) if is_named else f"{_shown(item.value)}: {error}"
            if isinstance(error.__cause__, FileNotFoundError) and not Path(item.value).is_absolute():
                reason += f"; relative paths are taken from {Path.cwd()}"
            return Item(item.id, None, reason)
        last = _Read.of(item.value)
        return Item(item.id, data)

    return Prefetch(iter(items), load, lambda item: len(item.value or b""), threads=limits.readers)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What was read last, by whichever thread.

    Attributes:
        path: It; empty before anything was.
        folder: The folder that it was in, if that is here.
        identity: What that folder was.
    """

    path: str = ""
    folder: str = ""
    identity: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, path: str) -> _Read:
        """Returns that of a file that has just been read. Raises OSError if its disk is gone again."""
        if is_remote(path):
            return cls(path)
        folder = os.path.dirname(path) or "."  # noqa: PTH120 - of each image
        return cls(path, folder, identity_of(folder))


def _require_still_there(read_last: Callable[[], _Read], problem: BaseException | None) -> None:
    """Raises what is wrong with a file if it is with the last that was read, too: that is the fault of no item.

    A disk is not mounted any more, a right to a bucket was lost, or the network. What is gone from a folder that is
    still there was removed, unless a link to it was left. What one host of the web answers says nothing of another,
    and that two do not answer nothing of the network while others do. An object that S3 forbids may as well be missing.
    """
    last = read_last()
    if isinstance(problem, FileNotFoundError) and last.folder:
        if os.path.exists(last.path):  # noqa: PTH110
            return
        if os.path.islink(last.path) or not is_still(last.folder, last.identity):  # noqa: PTH114
            words = f"{problem.strerror}, nor is {last.path}, which was read before; see that its disk is mounted"
            raise FileNotFoundError(problem.errno, f"{words}, and run it again", problem.filename) from problem
    elif isinstance(problem, StoreError) and is_remote(last.path):
        of_web = last.path.startswith(("http://", "https://"))
        if of_web and not is_unanswered(problem):
            return
        try:
            RemotePath(last.path).read(1)
        except StoreError as also:
            if not of_web or (is_unanswered(also) and read_last() is last):
                raise problem from None
        except BadFile:
            pass


def _shown(path: str) -> str:
    """Returns a path, or how it begins where it is none: a column of base64 would be written out once more."""
    return path if len(path) <= _LONGEST_PATH else f"{path[:80]}..."
