"""Runs a stage in a process of its own, so that what its libraries take of memory is given back when it ends."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.system.secrets import SecretlessFormatter, hide_secrets_in_logs

P = ParamSpec("P")
T = TypeVar("T")

# Stages are forked from a process that has imported these and done nothing else, so that their seconds are spent once.
# A fork of this process would inherit its memory and threads.
START_METHOD = "forkserver"
_IMPORTED = ["cnclip_builder.system.quiet_interrupt", "cnclip_builder.cn_clip", "onnx", "onnxruntime"]

# But for those that use a GPU: cn_clip asks torch for one when it is imported. That initialises CUDA's driver, which
# answers nothing but CUDA_ERROR_NOT_INITIALIZED in a fork of such a process.
_GPU_START_METHOD = "spawn"

_MEMORY = (
    "an architecture needs about 2 times the size of its FP32 weights, 8 GB for ViT-H-14; free some, or build on a "
    "larger machine"
)
_NO_MEMORY = re.compile("can't allocate memory|Cannot allocate memory|bad_alloc|Failed to allocate|start new thread")


class StageProcess:
    """A process that calls functions one after another; see `stage_process`."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a module-level function in the process; arguments, result and errors are pickled.

        Raises:
            MissingRequirementError: the process was killed, or found no memory, or can't be started.
            Exception: whatever the function raises.
        """
        try:
            try:
                done = self._executor.submit(function, *args, **kwargs)
            except (EOFError, ConnectionError) as error:  # of what stages are forked from: the first one waits for it
                raise BrokenProcessPool from error
            except OSError as error:
                if "AF_UNIX path too long" not in str(error):
                    raise
                raise MissingRequirementError(
                    f"the temporary folder {tempfile.gettempdir()} has too long a name for sockets, which stages are "
                    "asked by: name another with TMPDIR=/a/folder"
                ) from error
            return done.result()
        except BrokenProcessPool as error:
            raise MissingRequirementError(
                f"the process of stage {function.__name__} was killed, most likely for want of memory: {_MEMORY} (or a "
                "script that builds lacks its `if __name__ == '__main__':`)"
            ) from error
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
                raise
            raise MissingRequirementError(f"stage {function.__name__} found no memory: {_MEMORY}") from error


@contextlib.contextmanager
def stage_process(*, on_gpu: bool = False) -> Iterator[StageProcess]:
    """Starts a process, and ends it on exit. Its log records are shown as this process's are.

    Args:
        on_gpu: whether it is to use CUDA; it then starts some seconds later.
    """
    # ONNX Runtime's wheel reports its use to its maker otherwise; what is forked from has the environment of the first.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    context = multiprocessing.get_context(_GPU_START_METHOD if on_gpu else START_METHOD)
    if not on_gpu:
        context.set_forkserver_preload(_IMPORTED)
    with ProcessPoolExecutor(
        max_workers=1,
        mp_context=context,
        initializer=_prepare,
        initargs=(logging.getLogger().level,),
    ) as executor:
        try:
            yield StageProcess(executor)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare(level: int) -> None:
    gc.freeze()  # what was imported before the fork: the first collection would go through all of it, for 0.3 s
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a stage tidies up
    configure_logging(level)
    threading.Thread(target=_end_with_the_build, daemon=True).start()


def _end_with_the_build() -> None:
    """Ends this process with the one that it works for: one that was killed can't, and this would wait for ever."""
    build = multiprocessing.parent_process()
    if build is not None:
        build.join()
        os._exit(1)


def configure_logging(level: int) -> None:
    """Sends log records of this level and above to stderr, the builder's own from INFO on; none shows a secret."""
    hide_secrets_in_logs()
    handler = logging.StreamHandler()
    handler.setFormatter(SecretlessFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("cnclip_builder").setLevel(min(level, logging.INFO))
