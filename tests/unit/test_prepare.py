"""A folder or zip of real files to shards: equality, independence of workers, and every way in which it can fail."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ganops.config import PrepareParams
from ganops.errors import DataError
from ganops.images import prepare as module
from ganops.images.listing import list_source
from ganops.images.prepare import prepare
from ganops.images.raw import Conversion
from ganops.images.shards import ShardIndex, open_shards

VALUES: dict[str, Any] = {
    "source": "unused",
    "resolution": 8,
    "channels": 3,
    "bits": 8,
    "labels": "none",
    "crop": "none",
    "resize_filter": "bilinear",
    "background": [0, 0, 0],
    "on_bad_image": "fail",
    "shard_images": 100,
}


def run(source: Path, target: Path, workers: int = 1, **changes: Any) -> ShardIndex:
    return prepare(source, target, PrepareParams.model_validate(VALUES | changes), workers)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> NDArray[np.uint8]:
    """Writes noise as [3, H, W] in the format of the path's extension."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image.transpose(2, 0, 1)


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*"), reverse=True):  # another order than the sorted one
            archive.write(path, path.relative_to(folder).as_posix())
    return target


def pixels_of(target: Path) -> NDArray[np.uint8]:
    shards = open_shards(target, verify=True)
    return shards.gather(np.arange(len(shards)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Classes 2, 10 and x with 3, 2 and 1 images."""
    folder = tmp_path / "source"
    for i, name in enumerate(("2/c.png", "2/a.png", "2/deep/b.bmp", "10/a.PNG", "10/B.png", "x/a.png")):
        picture(folder / name, seed=i)
    return folder


def nothing_written(target: Path) -> bool:
    return not target.exists() or not any(target.iterdir())


def test_images_stand_in_the_order_of_their_names(source: Path, tmp_path: Path) -> None:
    index = run(source, tmp_path / "out", labels="folders")
    order = ["10/B.png", "10/a.PNG", "2/a.png", "2/c.png", "2/deep/b.bmp", "x/a.png"]
    expected = [np.asarray(Image.open(source / name)).transpose(2, 0, 1) for name in order]
    assert np.array_equal(pixels_of(tmp_path / "out"), expected)
    assert index.class_names == ("10", "2", "x")
    assert index.class_counts == (2, 3, 1)
    assert open_shards(tmp_path / "out", verify=False).labels.tolist() == [0, 0, 1, 1, 1, 2]
    lines = "".join(f"{hashlib.sha256((source / name).read_bytes()).hexdigest()}  {name}\n" for name in order)
    assert index.source["digest"] == hashlib.sha256(lines.encode()).hexdigest()


def test_twice_the_same_bytes_and_no_path_in_them(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "a", labels="folders")
    shutil.copytree(source, tmp_path / "moved")
    time.sleep(1.1)  # into another second: a time stamp in the bytes would show
    run(tmp_path / "moved", tmp_path / "b", labels="folders")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["00000.h5", "index.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("labels", ["none", "folders", "json", "csv"])
def test_a_zip_gives_what_the_folder_gives(source: Path, tmp_path: Path, labels: str) -> None:
    names = list_source(source).names
    (source / "dataset.json").write_text(json.dumps({"labels": [[name, i % 3] for i, name in enumerate(names)]}))
    (source / "labels.csv").write_text("name,label\n" + "".join(f"{name},c{i % 2}\n" for i, name in enumerate(names)))
    folder = run(source, tmp_path / "a", labels=labels)
    archive = run(zipped(source, tmp_path / "images.zip"), tmp_path / "b", labels=labels)
    assert folder == archive
    assert folder.num_classes == {"none": 0, "folders": 3, "json": 3, "csv": 2}[labels]
    assert folder.source["ignored"]["count"] == {"none": 2, "folders": 2, "json": 1, "csv": 1}[labels]


def test_the_number_of_workers_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_IMAGES", 7)  # many more chunks than may wait
    for i in range(150):
        picture(tmp_path / "source" / f"{i:03d}.png", seed=i, size=(5 + i % 9, 9))
    indices = [
        run(tmp_path / "source", tmp_path / str(workers), workers, crop="pad", shard_images=40)
        for workers in (0, 1, 2, 3)
    ]
    assert all(index == indices[0] for index in indices)
    assert [shard.count for shard in indices[0].shards] == [40, 40, 40, 30]
    archive = zipped(tmp_path / "source", tmp_path / "images.zip")
    assert run(archive, tmp_path / "zip", 2, crop="pad", shard_images=40) == indices[0]


def test_few_chunks_wait_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[Sequence[str]] = []

    class AtOnce(ThreadPoolExecutor):
        """Counts chunks and converts none."""

        def __init__(self, workers: int, *_: object, **__: object) -> None:
            super().__init__(workers)

        def submit(self, _: object, chunk: Sequence[str]) -> Future[Sequence[str]]:  # type: ignore[override]
            submitted.append(chunk)
            done: Future[Sequence[str]] = Future()
            done.set_result(chunk)
            return done

    monkeypatch.setattr(module, "ProcessPoolExecutor", AtOnce)
    names = [f"{i}.png" for i in range(64 * 40)]
    conversion = Conversion(8, 8, 3, 8, "none", "box", (0, 0, 0))
    taken = 0
    for i, chunk in enumerate(module._convert_all(Path("unused"), names, conversion, workers=2)):
        assert list(chunk) == names[64 * i : 64 * i + 64]
        taken += 1
        assert len(submitted) - taken < module.CHUNKS_AHEAD * 2
    assert taken == 40
    large = Conversion(1024, 1024, 4, 8, "none", "box", (0, 0, 0))
    submitted.clear()
    next(module._convert_all(Path("unused"), names, large, workers=2))
    assert {len(chunk) for chunk in submitted} == {1}


def test_all_settings_reach_the_images(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 10), (255, 255, 255, 0))
    (tmp_path / "source").mkdir()
    image.save(tmp_path / "source" / "a.png")
    run(tmp_path / "source", tmp_path / "out", crop="pad", background=[10, 20, 30], resolution=16)
    made = pixels_of(tmp_path / "out")
    assert made.shape == (1, 3, 16, 16)
    assert (made == np.array([10, 20, 30])[:, None, None]).all()
    index = run(tmp_path / "source", tmp_path / "out", crop="center", channels=4, resize_filter="lanczos")
    assert (pixels_of(tmp_path / "out")[:, 3] == 0).all()
    assert (index.source["crop"], index.source["resize_filter"]) == ("center", "lanczos")
    assert run(tmp_path / "source", tmp_path / "out", crop="center", channels=1).channels == 1


def test_what_was_noticed_is_told_and_stored(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(source / "x" / "moving.gif", save_all=True, append_images=frames[1:])
    picture(source / "x" / "small.png", size=(7, 7))
    exif = b"Exif\0\0broken"
    Image.new("RGB", (8, 8)).save(source / "x" / "broken_exif.png", exif=exif)
    for name in ("notes.txt", "2/more.txt", "2/noextension", "x/image.data"):
        (source / name).write_text("x")
    index = run(source, tmp_path / "out", labels="folders")
    assert index.source["enlarged"] == 1
    assert index.source["several_frames"] == 1
    assert list(index.source["warnings"].values()) == [1]
    assert index.source["ignored"] == {
        "count": 4,
        "extensions": {".txt": 2, "": 1, ".data": 1},
        "first": ["2/more.txt", "2/noextension", "notes.txt", "x/image.data"],
    }
    said = capsys.readouterr().out
    assert "3 classes, 2 to 4 images each" in said
    assert "  x: 4\n" in said
    assert "1 of 9 images are smaller than 8 px and were enlarged" in said
    assert "1 of 9 images have several frames" in said
    assert "4 files are no images by their extension" in said


def test_empty_classes_are_told(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = list_source(source).names
    (source / "dataset.json").write_text(json.dumps({"labels": [[name, 2 * (i % 2)] for i, name in enumerate(names)]}))
    assert run(source, tmp_path / "out", labels="json").class_counts == (3, 0, 3)
    assert "1 classes have no image: 1\n" in capsys.readouterr().out


def test_hidden_files_and_leftovers_are_passed_over(source: Path, tmp_path: Path) -> None:
    before = run(source, tmp_path / "a", labels="folders")
    for name in (".hidden.png", ".git/a.png", "__MACOSX/2/._c.png", "2/Thumbs.db", "2/._a.png", "desktop.ini"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert run(source, tmp_path / "b", labels="folders") == before
    assert run(zipped(source, tmp_path / "images.zip"), tmp_path / "c", labels="folders") == before


def test_links_are_followed_outwards_only(source: Path, tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "e.png")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    (source / "y").symlink_to(tmp_path / "elsewhere")
    (source / "2" / "up").symlink_to(source)
    (source / "2" / "above").symlink_to(tmp_path)
    (source / "2" / "again").symlink_to(source / "10")
    (source / "2" / "self").symlink_to(source / "2" / "self")
    (source / "2" / "z.png").symlink_to(source / "x" / "a.png")
    listing = list_source(source)
    assert listing.names == (
        *("10/B.png", "10/a.PNG", "2/a.png", "2/c.png", "2/deep/b.bmp", "2/z.png", "x/a.png", "y/e.png"),
    )
    assert listing.links == ("2/above", "2/again", "2/up", "y/loop")
    (tmp_path / "linked").symlink_to(source)
    assert list_source(tmp_path / "linked").names == listing.names


def test_a_pipe_does_not_block(source: Path) -> None:
    os.mkfifo(source / "pipe.png")
    assert len(list_source(source).names) == 6


def test_names_of_any_bytes(tmp_path: Path) -> None:
    picture(tmp_path / "source" / "a" / "Käfer ö.png")
    content = (tmp_path / "source" / "a" / "Käfer ö.png").read_bytes()
    odd = os.fsencode(tmp_path / "source" / "a") + b"/\xff\xfe.png"
    Path(os.fsdecode(odd)).write_bytes(content)
    (tmp_path / "source" / "a" / "bad.png").symlink_to("nowhere")
    index = run(tmp_path / "source", tmp_path / "out", on_bad_image="skip")
    assert index.num_images == 2
    assert index.source["skipped"] == [["a/bad.png", "cannot open (No such file or directory)"]]
    assert list_source(tmp_path / "source").names == ("a/Käfer ö.png", "a/\\xff\\xfe.png", "a/bad.png")


def spoil(source: Path, count: int) -> list[str]:
    """Adds files that cannot be used, one kind after the other, and gives their names."""
    names = [f"2/spoiled{i:02d}.png" for i in range(count)]
    whole = (source / "2" / "a.png").read_bytes()
    for i, name in enumerate(names):
        (source / name).write_bytes((b"", whole[:100], b"no image at all")[i % 3])
    return names


def test_one_bad_image_is_told_in_one_line(source: Path, tmp_path: Path) -> None:
    spoil(source, 1)
    with pytest.raises(DataError) as caught:
        run(source, tmp_path / "out", labels="folders")
    assert str(caught.value) == (
        f"{source}/2/spoiled00.png: the file is empty. Replace or remove it, or set prepare.on_bad_image: skip to leave "
        "such files out; index.json will list them."
    )
    assert nothing_written(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_images_are_found_before_failing(source: Path, tmp_path: Path, workers: int) -> None:
    for i in range(200):
        picture(source / "x" / f"{i:03d}.png", seed=i)
    spoil(source, 12)
    (source / "x" / "last.png").write_bytes(b"GIF89a")
    run(source.parent / "source" / "10", tmp_path / "out")  # an earlier result
    with pytest.raises(DataError) as caught:
        run(source, tmp_path / "out", workers, shard_images=20)
    lines = str(caught.value).split("\n")
    assert lines[0] == "13 of 219 images cannot be used:"
    assert lines[1] == f"  {source}/2/spoiled00.png: the file is empty"
    assert lines[2] == f"  {source}/2/spoiled01.png: cannot decode (file ends early)"
    assert lines[11] == "  ... and 3 more"
    assert "on_bad_image: skip" in lines[12]
    assert nothing_written(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_images_can_be_skipped(source: Path, tmp_path: Path, workers: int) -> None:
    good = run(source, tmp_path / "good", labels="folders")
    names = spoil(source, 70)
    index = run(source, tmp_path / "out", workers, labels="folders", on_bad_image="skip")
    assert (index.digest, index.class_counts) == (good.digest, good.class_counts)
    assert index.source["digest"] == good.source["digest"]
    assert [name for name, _ in index.source["skipped"]] == names
    assert index.source["skipped"][2][1] == "cannot decode (no image format that Pillow reads)"


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"None of 1 images can be used:\n  .*a\.png: the file is empty"):
        run(tmp_path / "source", tmp_path / "out", on_bad_image="skip")
    assert nothing_written(tmp_path / "out")


def test_skipping_a_whole_class_is_an_error_if_one_remains(tmp_path: Path) -> None:
    picture(tmp_path / "source" / "a" / "0.png")
    (tmp_path / "source" / "b").mkdir()
    (tmp_path / "source" / "b" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="only class a is left"):
        run(tmp_path / "source", tmp_path / "out", labels="folders", on_bad_image="skip")
    assert nothing_written(tmp_path / "out")


def test_images_that_are_not_square_are_listed(source: Path, tmp_path: Path) -> None:
    picture(source / "2" / "wide.png", size=(8, 9))
    picture(source / "2" / "tall.png", size=(10, 9))
    with pytest.raises(DataError) as caught:
        run(source, tmp_path / "out")
    assert "2 of 8 images cannot be used" in str(caught.value)
    assert "2/wide.png: is 9x8, not square" in str(caught.value)
    assert "2/tall.png: is 9x10, not square" in str(caught.value)


def test_unreadable_files_are_told(source: Path, tmp_path: Path) -> None:
    (source / "2" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: cannot open \(No such file or directory\)"):
        run(source, tmp_path / "out")


def test_labels_are_checked(source: Path, tmp_path: Path) -> None:
    picture(source / "loose.png")
    with pytest.raises(DataError, match=r"in no class folder: loose\.png"):
        run(source, tmp_path / "out", labels="folders")
    with pytest.raises(DataError, match=r"no dataset\.json at the source's top"):
        run(source, tmp_path / "out", labels="json")
    (source / "labels.csv").write_text("name,label\nloose.png,a\n")
    with pytest.raises(DataError, match="6 of 7 images have no label"):
        run(source, tmp_path / "out", labels="csv")
    for i in range(3):
        picture(tmp_path / "single" / "a" / f"{i}.png")
    with pytest.raises(DataError, match=r"all 3 images are of one class, a\."):
        run(tmp_path / "single", tmp_path / "out", labels="folders")
    assert nothing_written(tmp_path / "out")


def make_zip(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    picture(tmp_path / "one.png")
    return (tmp_path / "one.png").read_bytes()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_with_odd_names(tmp_path: Path, content: bytes) -> None:
    path = make_zip(tmp_path / "a.zip", [("a\\0.png", content), ("./b/0.png", content), ("../c/0.png", content)])
    assert list_source(path).names == ("../c/0.png", "a/0.png", "b/0.png")
    assert run(path, tmp_path / "out").num_images == 3
    path = make_zip(tmp_path / "b.zip", [("a/0.png", content), ("b.png", content), ("a/0.png", content)])
    with pytest.raises(DataError, match=r"b\.zip: names that stand more than once: a/0\.png\."):
        list_source(path)
    path = make_zip(tmp_path / "c.zip", [("K\u00f6ln.png", content), ("Ko\u0308ln.png", content)])
    with pytest.raises(DataError, match="more than once"):
        list_source(path)


def test_damaged_zips_are_told(tmp_path: Path, content: bytes) -> None:
    whole = make_zip(tmp_path / "a.zip", [(f"{i}.png", content) for i in range(3)]).read_bytes()
    broken = tmp_path / "broken.zip"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"broken\.zip is a file, but not a whole zip \(File is not a zip file\)"):
        run(broken, tmp_path / "out")
    broken.write_bytes(whole.replace(content[60:80], b"x" * 20, 1))
    with pytest.raises(DataError, match=r"broken\.zip/0\.png: cannot read from the zip \(Bad CRC-32"):
        run(broken, tmp_path / "out")
    assert run(broken, tmp_path / "out", on_bad_image="skip").num_images == 2
    encrypted = bytearray(whole)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # general purpose flag, bit 0
        start = -1
        while (start := encrypted.find(mark, start + 1)) >= 0:
            encrypted[start + offset] |= 1
    broken.write_bytes(encrypted)
    with pytest.raises(DataError, match=r"broken\.zip is encrypted \(0\.png\)"):
        run(broken, tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"s not found \(looked in"),
        (lambda path: path.mkdir(), r"has no images\. "),
        (lambda path: (path.mkdir(), (path / "a.txt").write_text("x")), r"has no images; it has other files: a\.txt\."),
        (lambda path: path.write_bytes(b""), "is a file, but not a whole zip"),
        (lambda path: make_zip(path, []), r"has no images\. "),
        (lambda path: make_zip(path, [("a.txt", b"x")]), r"has no images; it has other files: a\.txt\."),
    ],
)
def test_sources_without_images(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "s")
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path / "s", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert nothing_written(tmp_path / "out")


def test_the_output_may_not_lie_in_the_source(source: Path) -> None:
    for target in (source, source / "shards"):
        with pytest.raises(DataError, match=r"lies in prepare\.source"):
            run(source, target)


def test_a_full_disk_is_told_beforehand(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"needs about 0\.00 GB for 6 images, but only 0\.00 GB are free"):
        run(source, tmp_path / "out")
    assert nothing_written(tmp_path / "out")


def die(locations: list[str]) -> None:
    """Runs in a worker, in place of converting."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(130):
        picture(source / f"{i}.png")
    monkeypatch.setattr(module, "_work", die)
    with pytest.raises(DataError, match="process of prepare was killed"):
        run(source, tmp_path / "out", workers=2)
    assert nothing_written(tmp_path / "out")


SCRIPT = """
import sys, time
from pathlib import Path
from ganops.config import PrepareParams
from ganops.images import prepare as module
if __name__ == "__main__":
    params = PrepareParams.model_validate(eval(sys.argv[3]))
    append = module.ShardWriter.append
    def slow(*args):
        append(*args)
        print("one", flush=True)
        time.sleep(0.5)
    module.ShardWriter.append = slow
    module.prepare(Path(sys.argv[1]), Path(sys.argv[2]), params, 2)
"""


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="workers follow their parent on Linux only")
def test_a_killed_run_leaves_no_index_and_no_process(tmp_path: Path) -> None:
    for i in range(1000):
        picture(tmp_path / "source" / f"{i:03d}.png", seed=i % 3)
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [str(tmp_path / "source"), str(tmp_path / "out"), repr(VALUES | {"shard_images": 30})]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
    )
    assert process.stdout is not None
    process.stdout.readline()
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "00000.h5" in names
    assert "index.json" not in names
    deadline = time.monotonic() + 10
    while alive(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(workers)
    index = run(tmp_path / "source", tmp_path / "out")  # cleans up and starts over
    assert index.num_images == 1000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"{i:05d}.h5" for i in range(10)),
        "index.json",
    ]


def alive(pids: list[int]) -> list[int]:
    """Those that are not zombies: in a container nobody may collect them."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def test_the_stage_does_not_import_torch() -> None:
    """Every worker imports the stage's module again; torch would cost each of them seconds."""
    script = "import sys, stages.prepare; sys.exit('torch' in sys.modules)"
    root = Path(module.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == 0
