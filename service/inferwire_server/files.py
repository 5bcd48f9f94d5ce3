"""Model files: which a caller may name, and how an engine process opens them.

A caller names a path relative to the operator's model roots. It is opened component by component without following links, and
the engine process gets the open file, so that nobody can swap it in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import stat
import sys
from collections.abc import Iterator, Sequence

from inferwire_server import errors

_MAX_PATH_CHARS = 1024


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A model's file. `name` is what callers see; `root` is None for a file that the operator named by its full path."""

    name: str
    path: pathlib.Path
    root: pathlib.Path | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields the path as the engine process opens it, and the descriptors that it must inherit for that.

        Raises errors.ModelFileNotFound, or errors.ModelPathNotAllowed for a path that leaves its root.
        """
        if self.root is None:
            if not self.path.is_file():
                raise errors.ModelFileNotFound("the model's file does not exist", detail=self.name)
            yield str(self.path), ()
            return
        fd = _open_beneath(self.root, pathlib.PurePosixPath(self.name).parts)
        try:
            if sys.platform == "linux":
                yield f"/proc/self/fd/{fd}", (fd,)
            else:
                # Elsewhere /dev/fd shares one file offset among all who open it, which loaders do not expect.
                yield str(self.path), ()
        finally:
            os.close(fd)


def resolve(name: str, roots: Sequence[pathlib.Path], *, field: str = "source.local.path") -> ModelFile:
    """Returns the file that a caller names in a field of the request, from the first root that has it.

    Raises errors.ModelPathNotAllowed, the same whether such a path exists or not, and errors.ModelFileNotFound.
    """
    parts = pathlib.PurePosixPath(name).parts
    wrong = not parts or name.startswith("/") or ".." in parts or "\0" in name or len(name) > _MAX_PATH_CHARS
    if wrong or not roots:
        raise errors.ModelPathNotAllowed(
            "name a file beneath the operator's model roots, by a relative path without '..'",
            violations=[(field, "must stay beneath a model root")],
        )
    for root in roots:
        try:
            os.close(_open_beneath(root, parts))
        except errors.ModelFileNotFound:
            continue
        return ModelFile(name=name, path=root.joinpath(*parts), root=root)
    raise _not_found()


def _open_beneath(root: pathlib.Path, parts: Sequence[str]) -> int:
    """Returns a descriptor of a regular file below `root`, no link followed on the way."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
            for part in parts:
                stack.callback(os.close, fd)
                status = os.stat(part, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    raise errors.ModelPathNotAllowed(
                        "the path leads through a symbolic link",
                        violations=[("source.local.path", "must not lead through a symbolic link")],
                    )
                fd = os.open(part, flags, dir_fd=fd)
        except (OSError, UnicodeError) as error:
            # No file system holds a name that is not text.
            # Not its own words, which quote the caller's path.
            reason = error.strerror if isinstance(error, OSError) else None
            raise _not_found(reason or type(error).__name__) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _not_found("not a regular file")
    return fd


def _not_found(detail: str = "") -> errors.ModelFileNotFound:
    return errors.ModelFileNotFound("no such file beneath the operator's model roots", detail=detail)
