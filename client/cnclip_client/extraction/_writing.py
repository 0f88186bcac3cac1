"""The files of one output while they grow: what comes out is appended, counted, and made safe now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Protocol

import numpy as np

from cnclip_client._exceptions import JobRefused
from cnclip_client._vocabulary import Kind
from cnclip_client.extraction._checkpoints import Checkpoints
from cnclip_client.extraction._encoding import Encoded
from cnclip_client.extraction._options import ExtractOptions
from cnclip_client.extraction._output import Output, room
from cnclip_client.extraction._repeats import Repeats
from cnclip_client.extraction._work_folder import GrowingFiles, Progress
from cnclip_client.features._ids import id_line
from cnclip_client.sources import Item, Place

__all__ = ["Digest", "Writing", "told_apart"]


class Digest(Protocol):
    """What tells items that were done from others: one of `hashlib`'s, or a `Chain`."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def told_apart(kind: Kind, item: Item) -> bytes:
    """Returns what tells an item from another: its id; lines have none of their own, so texts count by their words."""
    value = item.value if kind == "text" else None
    return b"[%b, %b]" % (id_line(item.id), b"null" if value is None else id_line(value))


class Writing:
    """Adds to the files of an output; whatever interrupts, what is made safe last is of whole blocks.

    Args:
        output: Whose work folder is locked and begun.
        progress: How far it is.
        digest: Of the items up to there.
        kind: Whether they are images or texts.
        options: How the job is done.
        require_unchanged: Asks whether the model is still the same.
        since: When the work on it began, by the monotonic clock; by default now.

    Attributes:
        progress: How far it is now.

    Raises:
        BadFile: What was done before is damaged.
        OSError: A file cannot be written.
    """

    def __init__(
        self,
        output: Output,
        progress: Progress,
        digest: Digest,
        kind: Kind,
        options: ExtractOptions,
        require_unchanged: Callable[[], None],
        since: float | None = None,
    ) -> None:
        self.progress = progress
        self._output = output
        self._digest = digest
        self._kind = kind
        self._options = options
        self._started = (time.monotonic() if since is None else since) - progress.seconds
        self._files: GrowingFiles = output.open_files(progress)
        with ExitStack() as stack:
            path = output.work / "progress.json"
            self._checkpoints = stack.enter_context(Checkpoints(self._files, path, require_unchanged))
            with room(output.work):
                self._repeats = stack.enter_context(Repeats(output.work / "seen", output.sink.id_bytes))
                self._repeats.add_file(output.work / "keys")
            self._stack = stack.pop_all()

    def __enter__(self) -> Writing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None and not self.progress.complete:
                self._checkpoints.save_if_possible(self.progress)

    def add(self, encoded: Encoded, after: Place = (), state: str = "") -> None:
        """Appends what came out.

        Args:
            encoded: The outcome of the items that follow those before.
            after: Where the source goes on after them, where that is known.
            state: What the source was then, as `state_of_source` has it.

        Raises:
            JobRefused: An id comes again, and that is not wanted.
            ModelChanged: The server has another model now.
            OSError: A file cannot be written, or could not be before.
        """
        with room(self._output.work):
            repeated = self._append(encoded)
            for item in encoded.items:
                self._digest.update(told_apart(self._kind, item))
            # In one step: whatever interrupts, `progress` is of whole blocks.
            self.progress = Progress(
                items=self.progress.items + len(encoded.items),
                failures=self.progress.failures + len(encoded.failures),
                digest=self._digest.hexdigest(),
                seconds=time.monotonic() - self._started,
                sizes=dict(self._files.sizes),
                repeated=self.progress.repeated + repeated,
                after=list(after),
                state=state,
            )
            self._checkpoints.now_and_then(self.progress, self._options.checkpoint_s)

    def complete(self, *, last: bool = False, after: Place = (), state: str = "") -> Progress:
        """Makes safe that there is no more to come; whoever calls knows that the model is unchanged.

        Args:
            last: Whether the source ends there.
            after: Where it goes on, where that is known.
            state: What it was then.

        Raises:
            OSError: It cannot be written.
        """
        complete = replace(
            self.progress,
            digest=self._digest.hexdigest(),
            sizes=dict(self._files.sizes),
            complete=True,
            last=last,
            after=list(after),
            state=state,
        )
        with room(self._output.work):
            self._checkpoints.save(complete)
        self.progress = complete
        return complete

    def _append(self, encoded: Encoded) -> int:
        """Writes what came out, and returns how many of its ids had come before."""
        ids, features = encoded.ids, encoded.features
        keys = self._repeats.keys(ids)
        again = self._repeats.add(keys)
        if again and self._options.repeated_ids == "refuse":
            raise JobRefused(
                f"the id {ids[again[0]]!r} comes again in the source; mend it, or --repeated-ids first or keep",
                output=str(self._output.path),
            )
        if again and self._options.repeated_ids == "first":
            kept = np.setdiff1d(np.arange(len(ids)), again)
            ids, features, keys = tuple(ids[row] for row in kept), features[kept], [keys[row] for row in kept]
        if ids:
            for name, data in self._output.sink.encode(ids, features).items():
                self._files.append(name, data)
            self._files.append("keys", b"".join(keys))
        for failure in encoded.failures:
            line = b'{"id": %b, "reason": %b}\n' % (id_line(failure.id), id_line(failure.reason))
            self._files.append("errors", line)
        return len(again)
