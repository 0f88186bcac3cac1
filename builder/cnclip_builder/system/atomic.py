"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cnclip_builder.errors import BuildError, MissingRequirementError

logger = logging.getLogger(__name__)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h

# What network disks without a lock daemon answer, Lustre mounted without `flock` among them, and some of FUSE's.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)

_PARTIAL = r"[a-z0-9_]{8}\.partial"
"""How names from `tempfile.mkdtemp`, and those of `replacing_folder`, end with our suffix."""


@contextlib.contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Gives a path to write to; on a clean exit that file takes the target's place in one step.

    A link stays one: the file that it leads to is replaced. No file takes the place of a device or a pipe: that is what
    is given then.

    Raises:
        MissingRequirementError: the disk is full.
        BuildError: the folder can't be written to.
    """
    if _is_device(target):
        with explaining_disk_errors(target):
            yield target
        return
    target = _behind_links(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with explaining_disk_errors(target):
            yield partial
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Gives a new folder beside the target; on a clean exit it takes the target's place in one step.

    Whoever reads the target sees the old folder or the new one, never a mixture: on Linux the two are exchanged by
    one system call. A link stays one: the folder that it leads to is replaced, on the disk that is meant.

    Raises:
        MissingRequirementError: the disk is full.
        BuildError: the folder can't be written to.
    """
    target = _behind_links(target)
    with explaining_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        partial.mkdir()
        try:
            yield partial
            _exchange(partial, target)
        finally:
            # After an exchange this is the old folder.
            _delete(partial)


def require_writable(target: Path) -> None:
    """Checks, before hours of work, that a file or folder could be put at a path; makes the folders above it.

    Raises:
        MissingRequirementError: the disk is full.
        BuildError: the folder that it would be in can't be written to.
    """
    if _is_device(target):
        return
    target = _behind_links(target)
    with explaining_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _try_to_write(target.parent)


def require_room(target: Path) -> None:
    """Checks as `require_writable`, and leaves nothing behind: no folder is made either.

    Raises:
        MissingRequirementError: the disk is full.
        BuildError: the folder that it would be in can't be made or written to.
    """
    target = _behind_links(target)
    folder, missing = target.parent, None
    while not folder.exists():
        folder, missing = folder.parent, folder
    with explaining_disk_errors(target):
        if not folder.is_dir():
            code = errno.EEXIST if missing is None else errno.ENOTDIR
            raise OSError(code, os.strerror(code), str(target.parent))
        try:
            # On Linux, a file that never has a name.
            _try_to_write(folder)
        except OSError as error:
            if missing is None:
                raise
            raise OSError(error.errno, error.strerror, str(missing)) from error


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuses a disk that is too small, before hours of work.

    Args:
        folder: where files will be; it need not be there yet.
        needed: bytes.
        what: what they are, for the message.

    Raises:
        MissingRequirementError: fewer are free.
    """
    resolved = folder.resolve()
    existing = next(parent for parent in (resolved, *resolved.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise MissingRequirementError(
            f"{folder} needs {needed / 1e6:,.0f} MB of disk for {what} and {free / 1e6:,.0f} MB are free: free some "
            "space, or choose a folder on another disk"
        )


def same_disk(a: Path, b: Path) -> bool:
    """Whether two folders, which need not be there yet, share what is free."""
    places = [next(one for one in (path, *path.parents) if one.exists()) for path in (a.resolve(), b.resolve())]
    return places[0].stat().st_dev == places[1].stat().st_dev


def sha256_of_file(path: Path) -> str:
    """Hashes a file's bytes; returns the hex digest."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Makes the file appear at the target too, without a copy of its bytes where the file system allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        _copy_mode_and_times(source, target)


def link_tree(source: Path, target: Path) -> None:
    """Makes a folder with the same files appear at the target, without copies where the file system allows it.

    Its folders can be written to, whether the source's can or not.
    """
    # Not shutil.copytree, which goes on past a full disk, and ends with a list of all that it could not do.
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        (link_tree if path.is_dir() else link_or_copy)(path, target / path.name)
    _copy_mode_and_times(source, target)
    _add_mode(target, 0o700)


def _copy_mode_and_times(source: Path, target: Path) -> None:
    """Gives a copy what a polling server goes by, where the disk allows it: network disks and FUSE's may not."""
    with contextlib.suppress(OSError):
        shutil.copystat(source, target)


def let_read(path: Path, folder: Path) -> None:
    """Lets whoever may read a folder read a new file or folder in it, whatever the umask says: a server, say."""
    _add_mode(path, folder.stat().st_mode & (0o555 if path.is_dir() else 0o444))


def _add_mode(path: Path, mode: int) -> None:
    """Gives a file or folder what it lacks of a mode; another user's stays as it is, and what a link leads to."""
    now = stat.S_IMODE(path.lstat().st_mode)  # of a link, all
    if mode & ~now:
        with contextlib.suppress(OSError):
            path.chmod(now | mode)


def _delete(folder: Path) -> None:
    """Deletes a folder, and read-only ones in it; what is another user's may stay."""
    for path, _, _ in os.walk(folder):
        _add_mode(Path(path), 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _try_to_write(folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:  # which names a file that nobody has asked for
        raise OSError(error.errno, error.strerror, str(folder)) from error


@contextlib.contextmanager
def explaining_disk_errors(target: Path) -> Iterator[None]:
    """Turns the errors of a full or read-only disk into ones that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MissingRequirementError(
                f"no space left on the disk while writing {target}; nothing half-written was kept: free some space, "
                "or choose a folder on another disk"
            ) from error
        # ENOENT is what /proc says to a new file, EBADF what NFS says where a lock may only be read.
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EBADF):
            raise BuildError(
                f"{error.filename or target} can't be written to ({error.strerror}): choose another folder, or "
                "change its permissions"
            ) from error
        if error.errno == errno.EBUSY:
            raise BuildError(
                f"{target} can't be replaced because it is a mount point: choose a folder inside it"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise BuildError(
                f"{error.filename or target} is in the way ({error.strerror}): choose another path"
            ) from error
        raise


def _is_device(target: Path) -> bool:
    return target.exists() and not target.is_file() and not target.is_dir()


def _behind_links(target: Path) -> Path:
    # "." has no name for a lock or a new folder to be called by.
    return target.resolve() if target.is_symlink() or target.name in ("", "..") else target


def _exchange(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    if not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(target))
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):  # some network file systems can't exchange
            raise OSError(code, os.strerror(code), str(target))
    old = new.with_name(new.name + ".old")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    old.rename(new)


@contextlib.contextmanager
def locked(target: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps a second process from building the same target meanwhile, and deletes what a killed one left beside it.

    Args:
        target: a file or a folder.
        wait: wait for another process, and say so.

    Raises:
        BuildError: another process holds the lock.
    """
    target = _behind_links(target)
    with explaining_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # The lock outlives its file's use, not its process: nothing has to be cleaned up after a crash.
        with _opened_lock(target) as lock:
            try:
                _lock(lock, fcntl.LOCK_EX, target)
            except BlockingIOError:
                if not wait:
                    raise BuildError(f"another process is building {target}: wait until it has ended") from None
                logger.warning("Waiting: another process is building %s", target)
                fcntl.flock(lock, fcntl.LOCK_EX)
            _clear_after_a_kill(target)
            yield


@contextlib.contextmanager
def held_still(target: Path, *, alone: bool = False) -> Iterator[None]:
    """Keeps builds from replacing a folder that is read here, or changed without a new one beside it.

    Where nothing can be written beside it, on a read-only mount or in another user's folder, nothing is: the file that
    a build has locked there is held, and without one nothing is.

    Args:
        target: the folder.
        alone: whether others who hold it are kept away as well.

    Raises:
        BuildError: a build is under way.
    """
    target = _behind_links(target)
    with contextlib.ExitStack() as opened:
        try:
            lock = opened.enter_context(_opened_lock(target))
        except OSError:
            pass
        else:
            try:
                with explaining_disk_errors(target):
                    _lock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, target)
            except BlockingIOError:
                raise BuildError(f"another process is building {target}: wait until it has ended") from None
        yield


def _lock(lock: IO[str], way: int, target: Path) -> None:
    """Takes a lock. Raises BlockingIOError where another process has it."""
    try:
        fcntl.flock(lock, way | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s can't be locked (%s): see that only one build of it runs", target, error.strerror)


def _opened_lock(target: Path) -> IO[str]:
    """Opens the file to lock beside a folder. One that another user has made need only be read for that."""
    path = target.parent / f".{target.name}.lock"
    try:
        lock = path.open("a+")
    except OSError:
        with contextlib.suppress(OSError):
            return path.open("r")
        raise
    _add_mode(path, 0o444)  # whatever the umask says: nobody else could lock it
    return lock


def delete_partials(folder: Path, prefix: str = ".") -> None:
    """Deletes what builds that were killed left half made, gigabytes of it. What keeps others out must be held.

    Args:
        folder: where they were at work.
        prefix: what the names of their temporary folders begin with.
    """
    for path in folder.iterdir():
        if re.fullmatch(re.escape(prefix) + _PARTIAL, path.name):
            logger.info("Deleting %s, which a killed build has left", path)
            _delete(path)


def _clear_after_a_kill(target: Path) -> None:
    prefix = f".{target.name}."
    for path in list(target.parent.iterdir()):
        # Where a file system can't exchange, the old folder is aside for a moment.
        if re.fullmatch(re.escape(prefix) + _PARTIAL + r"\.old", path.name):
            path.rename(path.with_suffix("") if target.exists() else target)
    delete_partials(target.parent, prefix)
