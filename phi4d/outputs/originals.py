"""What becomes of a source file when its sidecars are durable: it is moved, or deleted.

Pure file work; whether and when is for others to say. Only the version that was worked on is
touched, nothing is ever overwritten, and whoever is killed at whatever point calls again with the
same arguments and finds the work done or finishes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator

from phi4d.errors import EnvironmentFault, FileChanged
from phi4d.job import Fingerprint, printable
from phi4d.outputs import names
from phi4d.outputs.atomic import make_folders, sync_folder, write_out

_CHUNK_BYTES = 1 << 20
_COARSE_NS = 2_000_000_000
"""FAT keeps times in steps of 2 s, no file system that takes files of today in longer ones"""
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
"""both of <linux/fcntl.h> and <linux/fs.h>"""
_NOT_KNOWN = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""what a file system answers that cannot do this kind of renaming or linking"""
_NO_LINKS = {errno.EPERM, errno.EMLINK}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_libc = ctypes.CDLL(None, use_errno=True)


def move(
    source: bytes,
    fingerprint: Fingerprint,
    root: bytes,
    relative: bytes,
    *,
    on_wait: Callable[[], object] = lambda: None,
) -> bytes:
    """Move a source file to a place below a folder, durably.

    If the name is taken there, it becomes ``stem-1.ext``, ``stem-2.ext`` and so on. Below another
    file system it is copied, with times and mode, and deleted here when the copy is durable.

    Args:
        source: the file.
        fingerprint: the version that was worked on.
        root: the folder, which must exist: it may be a mount.
        relative: path below it; subfolders are made.
        on_wait: called now and then while a file is copied; what it raises ends the copying.

    Returns:
        Where the file is now.

    Raises:
        FileChanged: another version stands there by now, and stays; or the file is nowhere.
        EnvironmentFault: it cannot be done now; the file stays.
    """
    place = os.path.join(root, relative)
    temp = os.path.join(os.path.dirname(place), b".phi4d-%s.tmp" % _key(place, fingerprint))
    try:
        with contextlib.suppress(OSError):
            os.unlink(temp)  # of a call that was killed
        if not _stands(source, fingerprint):
            return _moved_before(source, fingerprint, root, place)
        make_folders(os.path.dirname(place), root)
        if os.path.samefile(os.path.dirname(source), os.path.dirname(place)):
            raise EnvironmentFault(
                f"{printable(root)}: originals cannot be moved here: it leads back to where they "
                "are; expected a folder apart from the inbox"
            )
        try:
            return _rename(source, fingerprint, place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        return _copy(source, fingerprint, place, temp, on_wait)
    except OSError as error:
        raise _fault(error, source, root, os.path.dirname(place)) from error


def delete(source: bytes, fingerprint: Fingerprint) -> None:
    """Delete a source file durably, if it is the version that was worked on.

    Raises:
        FileChanged: another version stands there by now, and stays.
        EnvironmentFault: it cannot be done now; the file stays, or is finished by the next call.
    """
    # A file that replaces this one between a look and an unlink would be deleted in its stead, and
    # nobody could bring it back. So the file is renamed first, to a name that nobody else knows,
    # looked at there, and only then deleted, or put back. `move` needs no such name, because what
    # a rename took by mistake is still whole; nor should it have one: a file that a killed process
    # left under a hidden name would be lost to who does not know of it.
    folder, name = os.path.split(source)
    hidden = os.path.join(folder, b".phi4d-%s.original" % _key(name, fingerprint))
    try:
        _delete_hidden(hidden, fingerprint, source)  # of a call that was killed
        if _stands(source, fingerprint):
            with contextlib.suppress(FileNotFoundError):
                os.rename(source, hidden)
            _delete_hidden(hidden, fingerprint, source)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            sync_folder(folder)
    except OSError as error:
        raise _fault(error, source, folder, folder) from error


def _delete_hidden(hidden: bytes, fingerprint: Fingerprint, source: bytes) -> None:
    try:
        found = Fingerprint.of(os.lstat(hidden))
    except (FileNotFoundError, NotADirectoryError):
        return
    if found != fingerprint:
        _put_back(hidden, source)
    os.unlink(hidden)


def _put_back(held: bytes, source: bytes) -> None:
    """Give a newer version its name again, or a numbered one if a still newer one has that."""
    _, stands = _give_name(held, source)
    if stands:
        os.unlink(held)
    for path in (source, held):
        sync_folder(os.path.dirname(path))
    raise FileChanged("was replaced just now; the newer version stays")


def _rename(source: bytes, fingerprint: Fingerprint, place: bytes) -> bytes:
    """Move within a file system.

    Raises:
        OSError: EXDEV if it is another one.
    """
    target, stands = _give_name(source, place)
    if Fingerprint.of(os.lstat(target)) != fingerprint:
        _put_back(target, source)
    sync_folder(os.path.dirname(target))
    if stands:
        delete(source, fingerprint)
    else:
        sync_folder(os.path.dirname(source))
    return target


def _copy(
    source: bytes,
    fingerprint: Fingerprint,
    place: bytes,
    temp: bytes,
    on_wait: Callable[[], object],
) -> bytes:
    folder = os.path.dirname(source)
    if not _is_writable(folder):  # said before a long copy is made that would be for nothing
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    original = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        target = _copied_before(original, fingerprint, place, on_wait)
        if target is None:
            try:
                _write_copy(original, temp, on_wait)
                read = Fingerprint.of(os.fstat(original))
                if read != fingerprint or not _stands(source, fingerprint):
                    raise FileChanged("changed while it was copied")
                target, _ = _give_name(temp, place)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temp)
    finally:
        os.close(original)
    sync_folder(os.path.dirname(target))
    with contextlib.suppress(FileChanged):  # this version is safe, and a newer one stays
        delete(source, fingerprint)
    return target


def _write_copy(original: int, temp: bytes, on_wait: Callable[[], object]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    copy = os.open(temp, flags, 0o600)
    try:
        for chunk in _chunks(original):
            on_wait()
            write_out(copy, chunk)
        found = os.fstat(original)
        # what this file system does not keep, and what only root may, is left out
        with contextlib.suppress(OSError):
            os.fchown(copy, found.st_uid, found.st_gid)
        with contextlib.suppress(OSError):
            os.fchmod(copy, found.st_mode & 0o777)  # no setuid: the owner may be another now
        with contextlib.suppress(OSError):
            for name in os.listxattr(original):
                if name.startswith("user."):
                    os.setxattr(copy, name, os.getxattr(original, name))
        with contextlib.suppress(OSError):
            os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
        os.fsync(copy)
    finally:
        os.close(copy)


def _copied_before(
    original: int, fingerprint: Fingerprint, place: bytes, on_wait: Callable[[], object]
) -> bytes | None:
    """The copy that a killed call left.

    Size and time do not tell: files that a camera or an archive made may have both in common. A
    file that has the same inode may be the original by another mount.
    """
    for target, found in _candidates(place):
        if not _is_like(found, fingerprint) or found.st_ino == fingerprint.inode:
            continue
        try:
            copy = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # ours could be read
        try:
            for one, other in itertools.zip_longest(_chunks(original), _chunks(copy)):
                on_wait()
                if one != other:
                    break
            else:
                return target
        finally:
            os.close(copy)
    return None


def _moved_before(source: bytes, fingerprint: Fingerprint, root: bytes, place: bytes) -> bytes:
    """Where a killed call moved a file that is no longer at its source."""
    os.stat(root)  # an unmounted folder tells nothing
    delete(source, fingerprint)
    alike = [
        (target, found) for target, found in _candidates(place) if _is_like(found, fingerprint)
    ]
    if not alike:
        raise FileChanged("is gone")
    target, _ = min(alike, key=lambda each: each[1].st_ino != fingerprint.inode)
    make_folders(os.path.dirname(target), root)
    sync_folder(os.path.dirname(target))
    return target


def _candidates(place: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """What stands at a place and its numbered variants, up to the first that is free."""
    folder, name = os.path.split(place)
    for number in itertools.count():
        target = os.path.join(folder, names.numbered(name, number))
        try:
            yield target, os.lstat(target)
        except (FileNotFoundError, NotADirectoryError):
            return


def _give_name(held: bytes, place: bytes) -> tuple[bytes, bool]:
    """Give a file a name, or the first numbered variant that is free.

    Returns:
        The name, and whether the old one still stands beside it.
    """
    folder, name = os.path.split(place)
    number = 0
    while True:
        target = os.path.join(folder, names.numbered(name, number))
        try:
            return target, _take(held, target)
        except FileExistsError:
            if os.path.samestat(os.lstat(held), os.lstat(target)):  # a killed call linked it
                return target, True
        number += 1


def _take(held: bytes, target: bytes) -> bool:
    """Give a file a name that is free, by the best way that the file system knows.

    Returns:
        Whether the old name still stands beside it.

    Raises:
        OSError: FileExistsError if the name is taken, EXDEV if it is on another file system.
    """
    try:
        _rename_new(held, target)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise
    else:
        return False
    try:
        os.link(held, target, follow_symlinks=False)  # NFS
    except OSError as error:
        if error.errno not in _NOT_KNOWN | _NO_LINKS:
            raise
    else:
        return True
    # some FUSE file systems: an empty file keeps the name free of others until ours replaces it
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        os.rename(held, target)
    except OSError:
        os.unlink(target)
        raise
    return False


def _rename_new(old: bytes, new: bytes) -> None:
    """Rename, and raise FileExistsError where `os.rename` would overwrite."""
    call = getattr(_libc, "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old, None, new)


def _stands(source: bytes, fingerprint: Fingerprint) -> bool:
    """Whether the file is there.

    Raises:
        FileChanged: it is, in another version.
    """
    try:
        found = os.lstat(source)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if Fingerprint.of(found) != fingerprint:
        raise FileChanged("another version stands in its place")
    return True


def _is_like(found: os.stat_result, fingerprint: Fingerprint) -> bool:
    """Whether it may be a copy: of the size, and of the time as far as file systems keep it."""
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_size == fingerprint.size
        and abs(found.st_mtime_ns - fingerprint.mtime_ns) < _COARSE_NS
    )


def _key(path: bytes, fingerprint: Fingerprint) -> bytes:
    """What a killed call's temporary name is found again by."""
    return hashlib.sha256(path + repr(fingerprint).encode()).hexdigest()[:16].encode()


def _chunks(file: int) -> Iterator[bytes]:
    offset = 0
    while chunk := os.pread(file, _CHUNK_BYTES, offset):
        yield chunk
        offset += len(chunk)


def _is_writable(folder: bytes) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _fault(error: OSError, source: bytes, root: bytes, folder: bytes) -> EnvironmentFault:
    """A failed step in words, with the folder that is in the way: the next file's are the same.

    Args:
        error: of the step.
        source: the file.
        root: the folder below which it should go; for a deletion its own.
        folder: where just it should go; for a deletion its own.
    """
    here = os.path.dirname(source)
    if error.errno in _REFUSED and not _is_writable(here):
        where, what = here, "originals cannot be taken from here"
    elif folder == here:
        where, what = here, "originals cannot be deleted here"
    elif error.filename == source and error.filename2 is None:
        where, what = source, "the original cannot be read"
    else:
        where = folder if os.path.isdir(folder) else root
        if error.errno == errno.ENOTDIR and os.path.isdir(root):
            where = error.filename or folder
        what = "originals cannot be moved here"
    writable = (
        "the daemon's user must be able to write there: change its owner or mode or mount it "
        "writable; as a service, phi4d unit --write opens it"
    )
    advice = {
        errno.ENOSPC: "free some space or inodes",
        errno.EDQUOT: "raise the quota",
        errno.EACCES: writable,
        errno.EPERM: writable,
        errno.EROFS: writable,
        errno.ENOENT: "mount or make the folder",
        errno.ENOTDIR: "a file is where a folder should be: move it away",
        errno.ENAMETOOLONG: "shorten the names of the file and of its folders",
    }.get(error.errno or 0, "look at the disk or mount")
    why = error.strerror or os.strerror(error.errno or errno.EIO)
    return EnvironmentFault(f"{printable(where)}: {what}: {why}; {advice}")
