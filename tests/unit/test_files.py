"""Files are written whole or not at all, and an error says which."""

import errno
from pathlib import Path

import pytest

from ganops.files import atomic_path


class FixedName(PermissionError):
    """As PyAV's errors: an OSError whose file name cannot be set."""

    filename = property(lambda self: None)


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), FixedName(errno.EACCES, "denied")])
def test_an_error_names_the_file_and_leaves_the_old_one(tmp_path: Path, error: OSError) -> None:
    path = tmp_path / "film.mp4"
    path.write_text("before")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(PermissionError) as raised:
        write()
    assert (raised.value.errno, raised.value.filename) == (errno.EACCES, str(path))
    assert str(raised.value).endswith(f"denied: '{path}'")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"
