"""Model files: what a caller may name, and that nothing else is ever opened."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferwire_server import errors, files
from tests.hostile import paths


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root with a little of everything, and beside it what must stay out of reach."""
    return paths.plant(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    """Whatever happens, no more descriptors are open afterwards than before. Other tests' may be closed late."""
    fds = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    gc.collect()
    before = len(list(fds.iterdir()))
    yield
    assert len(list(fds.iterdir())) <= before


def read(file: files.ModelFile) -> bytes:
    with file.opened() as (path, fds):
        if fds:
            assert os.fstat(fds[0]).st_ino == file.path.stat().st_ino
        return Path(path).read_bytes()


def refusal(name: str, *roots: Path) -> errors.ServingError:
    with pytest.raises((errors.ModelPathNotAllowed, errors.ModelFileNotFound)) as caught:
        files.resolve(name, roots)
    return caught.value


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.gguf", b"GGUF"),
        ("sub/deep/model.gguf", b"deep"),
        ("./sub//deep/./model.gguf", b"deep"),
        ("modèle 🦙.gguf", b"odd"),
        ("empty.gguf", b""),
    ],
)
def test_a_file_beneath_a_root(root: Path, name: str, data: bytes) -> None:
    """A relative path leads to the file, and the engine process gets that very file."""
    file = files.resolve(name, [root])
    assert (name, root) == (file.name, file.root)
    assert data == read(file)


@pytest.mark.parametrize("name", paths.NOT_ALLOWED)
def test_a_path_that_leaves_the_root(root: Path, name: str) -> None:
    """Refused by its words alone: the answer is the same with another root, and without the file."""
    here, elsewhere = refusal(name, root), refusal(name, Path("/"))
    assert errors.ModelPathNotAllowed is type(here)
    assert vars(here) == vars(elsewhere) == vars(refusal(name, root / "sub"))
    assert "" == here.detail


@pytest.mark.parametrize("name", paths.LINKS)
def test_no_link_is_followed(root: Path, name: str) -> None:
    """A link at any place is refused, the same whether what it leads to exists or not."""
    error = refusal(name, root)
    assert errors.ModelPathNotAllowed is type(error)
    assert vars(refusal("dangling.gguf", root)) == vars(error)


@pytest.mark.parametrize("name", paths.NO_FILES)
def test_what_is_no_regular_file(root: Path, name: str) -> None:
    """Nothing there, a folder, a pipe, names too long or odd: no such file, and no reason told to the caller."""
    error = refusal(name, root)
    assert errors.ModelFileNotFound is type(error)
    assert "no such file beneath the operator's model roots" == error.message


def test_without_roots_nothing_is_allowed() -> None:
    """An operator who names no root lets nobody load a file."""
    assert errors.ModelPathNotAllowed is type(refusal("model.gguf"))


def test_the_first_root_that_has_it(root: Path) -> None:
    """Roots are searched in order; one that is gone is passed over."""
    roots = [root / "gone", root / "sub", root]
    assert root / "sub" == files.resolve("deep/model.gguf", roots).root
    assert root == files.resolve("model.gguf", roots).root


@given(
    st.lists(
        st.sampled_from(["..", ".", "", "sub", "linked", "outside", "model.gguf", "secret.gguf"]), max_size=6
    )
)
def test_nothing_outside_is_ever_read(root: Path, parts: list[str]) -> None:
    """However a path is put together, what it opens lies beneath the root."""
    try:
        file = files.resolve("/".join(parts), [root])
    except (errors.ModelPathNotAllowed, errors.ModelFileNotFound):
        return
    assert read(file) in (b"GGUF", b"deep")


def test_a_file_swapped_for_a_link(root: Path, tmp_path: Path) -> None:
    """Between naming and opening somebody may put a link in its place: it is refused at the second look, too."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    file = files.resolve("model.gguf", [tmp_path])
    (tmp_path / "model.gguf").unlink()
    (tmp_path / "model.gguf").symlink_to(root.parent / "secret.gguf")
    with pytest.raises(errors.ModelPathNotAllowed):
        read(file)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the path is opened anew")
def test_a_file_swapped_after_it_was_opened(tmp_path: Path) -> None:
    """The engine process reads the file that was opened, whatever lies there now."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with files.resolve("model.gguf", [tmp_path]).opened() as (path, fds):
        (tmp_path / "model.gguf").unlink()
        (tmp_path / "model.gguf").write_bytes(b"other")
        assert (b"GGUF", f"/proc/self/fd/{fds[0]}") == (Path(path).read_bytes(), path)


def test_the_operators_own_file(root: Path) -> None:
    """A file that the operator named by its full path needs no root, and may be a link."""
    file = files.ModelFile(name="model.gguf", path=root / "link.gguf")
    with file.opened() as (path, fds):
        assert (str(root / "link.gguf"), ()) == (path, fds)
    missing = files.ModelFile(name="x", path=root / "nothing.gguf")
    with pytest.raises(errors.ModelFileNotFound) as caught, missing.opened():
        pass
    assert str(root) not in caught.value.message
