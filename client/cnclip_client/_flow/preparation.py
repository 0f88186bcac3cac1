"""Images decoded and resized here, beside the flow, in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cnclip_client._exceptions import CnclipError, MissingExtra
from cnclip_client._flow.items import Unsendable
from cnclip_client._info import ModelInfo
from cnclip_client._settings import MOST_PREPARERS

__all__ = ["PREPARERS_VARIABLE", "Preparation"]

PREPARERS_VARIABLE = "CNCLIP_PREPARERS"
"""Says how many processes prepare where `Limits.preparers` does not: who starts several clients divides the cores."""

_CLOSE_S = 2.0


class Preparation:
    """Processes that make an image encoder's pixels of image files, as the server's preprocessing does.

    They end with this object, or with the process that made it. Threads may share one: each `prepare` takes a process
    of its own, or waits for one.

    Attributes:
        processes: How many prepare at once.
        pillow: The version of Pillow that decodes.
    """

    def __init__(self, info: ModelInfo, processes: int | None = None) -> None:
        """Starts the processes, and waits until they are ready.

        Args:
            info: What the encoder's server says of it.
            processes: How many to start; by default as `CNCLIP_PREPARERS` says, or one a core.

        Raises:
            MissingExtra: Pillow is not installed.
            CnclipError: This Pillow cannot prepare as the server does.
            ValueError: `CNCLIP_PREPARERS` is no number of processes.
        """
        if importlib.util.find_spec("PIL") is None:
            raise MissingExtra(module="PIL", extra="prepare")
        wanted = processes or _preparers_of_environment()
        self._settings = {
            "resolution": info.resolution,
            "decoding": info.decoding,
            "max_image_pixels": info.max_image_pixels,
            "image_formats": info.image_formats,
        }
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._workers: set[_Worker] = set()
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _end, self._workers)
        try:
            first = self._start()
            self.pillow = first.about["pillow"]
            self.processes = wanted or int(first.about["cores"])
            self._idle.put(first)
            with ThreadPoolExecutor(self.processes) as pool:
                for worker in pool.map(lambda _: self._start(), range(self.processes - 1)):
                    self._idle.put(worker)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the processes; what is under way in other threads fails."""
        self._end()

    def prepare(self, encoded: bytes) -> bytes:
        """Returns an image's pixels, uint8 [R, R, 3], row by row.

        A process that dies is replaced, and the image tried once more in the new one, where it is alone too: so what
        kills twice is known to be to blame, and no other item is lost.

        Args:
            encoded: The image file's bytes.

        Raises:
            Unsendable: It is no image that is decoded here; the reason is the server's, word for word.
            CnclipError: There is no memory for it, or the like, which is not its fault.
            RuntimeError: It was closed.
        """
        worker = self._idle.get()
        try:
            for _ in range(2):
                worker = worker or self._start()
                answer = worker.ask(encoded)
                if answer is not None and answer[:1] != b"!":
                    break
                died = self._drop(worker)
                worker = None
            else:
                if answer is not None:
                    raise CnclipError(
                        f"images cannot be prepared here: {answer[1:].decode()}; let fewer processes do it "
                        "(Limits.preparers, CNCLIP_PREPARERS), or leave it to the server"
                    )
                raise Unsendable(f"two processes died while they decoded it ({died})")
        finally:
            self._idle.put(worker)
        if answer[:1] == b"-":
            raise Unsendable(answer[1:].decode())
        return answer[1:]

    def _start(self) -> _Worker:
        worker = _Worker(self._settings)
        with self._lock:
            if not self._end.alive:
                worker.end()
                raise RuntimeError("the client is closed; make a new Client")
            self._workers.add(worker)
        return worker

    def _drop(self, worker: _Worker) -> str:
        """Forgets one that is dead, and returns how it died."""
        with self._lock:
            self._workers.discard(worker)
            if not self._end.alive:
                raise RuntimeError("the client is closed; make a new Client")
        return worker.end()


class _Worker:
    """One process, `cnclip_pixels/worker.py`.

    Attributes:
        about: What it says of itself.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        package = importlib.util.find_spec("cnclip_pixels")
        if package is None or package.origin is None:
            raise AssertionError("cnclip_pixels belongs to the same distribution")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(package.origin).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # It finds what this process would.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
        )
        told = self.ask(json.dumps(settings).encode())
        self.about: dict[str, Any] = json.loads(told or b"{}")
        if "pillow" not in self.about:
            ended = self.end()
            how = self.about.get("error") or ended
            raise CnclipError(
                f"images cannot be prepared here: {how}; mend this, or leave it to the server "
                '(prepare="server", --prepare server)'
            )

    def ask(self, message: bytes) -> bytes | None:
        """Sends a message and returns the answer; None where the process is dead."""
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:
            raise AssertionError("both are pipes")
        try:
            to.write(struct.pack("<I", len(message)))
            to.write(message)
            to.flush()
            head = back.read(4)
            if len(head) < 4:
                return None
            (size,) = struct.unpack("<I", head)
            answer = back.read(size)
            return answer if len(answer) == size else None
        except (OSError, ValueError):  # ValueError: another thread has closed it
            return None

    def kill(self) -> None:
        """Ends it at once, whatever it is at."""
        self._process.kill()

    def end(self) -> str:
        """Has it end, once it is done with what it is at, and returns how it ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was not sent yet
                pass
        try:
            status = self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        killed = ", as when memory runs out" if status == -signal.SIGKILL else ""
        return f"signal {-status}{killed}" if status < 0 else f"exit status {status}"


def _preparers_of_environment() -> int | None:
    """Returns what `CNCLIP_PREPARERS` says, None where it says nothing. Raises ValueError."""
    told = os.environ.get(PREPARERS_VARIABLE, "").strip()
    if not told:
        return None
    if not (told.isascii() and told.isdecimal() and 1 <= int(told[:9]) <= MOST_PREPARERS):
        raise ValueError(
            f"{PREPARERS_VARIABLE} is {told!r}; give a number of processes from 1 to {MOST_PREPARERS}, or unset it"
        )
    return int(told)


def _end(workers: set[_Worker]) -> None:
    while workers:
        worker = workers.pop()
        worker.kill()  # also at its work: nobody waits for that any more
        worker.end()
