"""The shard format: bytes, index, memory maps, and what happens to damaged folders."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from ganops.errors import DataError
from ganops.images import shards as module
from ganops.images.shards import FORMAT_VERSION, ShardIndex, ShardWriter, open_shards, read_index

NAMES = ("ape", "bee", "Käfer")


def make_images(count: int, channels: int = 3, size: int = 8) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8), rng.integers(0, 3, count)


def write(
    folder: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    shard_images: int = 10,
    step: int = 7,
    names: tuple[str, ...] = NAMES,
) -> ShardIndex:
    with ShardWriter(folder, shard_images, images.shape[2], images.shape[1], names, {"crop": "none"}) as writer:
        for start in range(0, len(images), step):
            writer.append(images[start : start + step], labels[start : start + step])
        return writer.close({"digest": "x", "skipped": []})


@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 33])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_was_written_is_read(tmp_path: Path, count: int, channels: int) -> None:
    images, labels = make_images(count, channels)
    index = write(tmp_path, images, labels)
    assert index == read_index(tmp_path)
    assert [shard.count for shard in index.shards] == [10] * (count // 10) + [count % 10] * (count % 10 > 0)
    assert index.class_counts == tuple(int((labels == i).sum()) for i in range(3))
    shards = open_shards(tmp_path, verify=True)
    assert len(shards) == count
    order = np.random.default_rng(0).integers(0, count, 50)  # with repeats
    assert np.array_equal(shards.gather(order), images[order])
    assert np.array_equal(shards.gather(np.arange(count)), images)
    assert np.array_equal(shards.labels, labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["index.json", *(shard.name for shard in index.shards)]
    )


def test_bytes_do_not_depend_on_the_appends(tmp_path: Path) -> None:
    images, labels = make_images(33)
    digests = {write(tmp_path / str(step), images, labels, step=step).digest for step in (1, 7, 10, 33)}
    assert len(digests) == 1


def test_bytes_do_not_depend_on_process_or_time(tmp_path: Path) -> None:
    script = (
        "import sys, time, numpy as np; from pathlib import Path; from ganops.images.shards import ShardWriter\n"
        "time.sleep(1.1)\n"  # into another second: a time stamp in the bytes would show
        "w = ShardWriter(Path(sys.argv[1]), 4, 8, 1, ('a', 'b'), {'crop': 'none'})\n"
        "w.append(np.arange(6 * 64, dtype=np.uint8).reshape(6, 1, 8, 8), np.arange(6) % 2)\n"
        "print(w.close({}).digest)\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)], check=True, capture_output=True, text=True
        ).stdout
        for name in "xy"
    }
    assert len(printed) == 1
    assert (tmp_path / "x" / "index.json").read_bytes() == (tmp_path / "y" / "index.json").read_bytes()


def test_the_file_is_what_the_design_says(tmp_path: Path) -> None:
    images, labels = make_images(10)
    index = write(tmp_path, images, labels)
    with h5py.File(tmp_path / "00000.h5", "r") as file:
        data = file["images"]
        assert (data.dtype, data.shape, data.chunks) == (np.uint8, (10, 3, 8, 8), None)
        offset = data.id.get_offset()
        assert offset % 4096 == 0
        assert file["labels"].dtype == np.int64
        assert np.array_equal(file["labels"][:], labels)
        assert file.attrs["format_version"] == FORMAT_VERSION
        assert [file.attrs[key] for key in ("height", "width", "bits", "multi_label")] == [8, 8, 8, 0]
        assert file.attrs["crop"] == b"none"
        assert tuple(json.loads(file.attrs["class_names"])) == NAMES
    content = (tmp_path / "00000.h5").read_bytes()
    assert content[offset : offset + images.nbytes] == images.tobytes()
    assert index.shards[0].sha256 == hashlib.sha256(content).hexdigest()


def test_digest_follows_pixels_labels_and_attributes(tmp_path: Path) -> None:
    images, labels = make_images(12)
    base = write(tmp_path / "a", images, labels).digest
    changed = images.copy()
    changed[11, 2, 7, 7] ^= 1
    assert write(tmp_path / "b", changed, labels).digest != base
    assert write(tmp_path / "c", images, (labels + 1) % 3).digest != base
    assert write(tmp_path / "d", images, labels, names=("ape", "bee", "cow")).digest != base


def test_unlabelled_images_have_zeros(tmp_path: Path) -> None:
    images, labels = make_images(5)
    index = write(tmp_path, images, labels, names=())
    assert (index.num_classes, index.class_counts) == (0, ())
    assert not open_shards(tmp_path, verify=False).labels.any()


def test_names_of_many_classes_fit(tmp_path: Path) -> None:
    images, labels = make_images(5)
    names = tuple(f"class {i:06d}" for i in range(20000))
    write(tmp_path, images, labels, names=names)
    assert read_index(tmp_path).class_names == names
    assert len(open_shards(tmp_path, verify=True)) == 5


def test_an_earlier_result_is_replaced_as_a_whole(tmp_path: Path) -> None:
    images, labels = make_images(33)
    write(tmp_path, images, labels)
    (tmp_path / ".00003.h5.123.tmp").write_bytes(b"left by a killed writer")
    index = write(tmp_path, images[:5], labels[:5])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.h5", "index.json"]
    assert index.num_images == 5


def test_nothing_stays_when_writing_fails(tmp_path: Path) -> None:
    images, labels = make_images(33)
    write(tmp_path, images, labels)
    with ShardWriter(tmp_path, 10, 8, 3, NAMES, {}) as writer:
        writer.append(images, labels)
        assert not (tmp_path / "index.json").exists()
        assert (tmp_path / "00002.h5").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("No space left on device")])
def test_a_failing_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "write_shard", fail)
    with pytest.raises(DataError, match=r"cannot write \(.*No space left on device.*\)"):
        write(tmp_path, *make_images(12))
    assert list(tmp_path.iterdir()) == []


def test_empty_is_an_error(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 10, 8, 3, NAMES, {}) as writer, pytest.raises(DataError, match="no image to write"):
        writer.close({})


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    images, labels = make_images(3)
    with ShardWriter(tmp_path, 10, 8, 3, NAMES, {}) as writer:
        with pytest.raises(ValueError, match="float32"):
            writer.append(images.astype(np.float32), labels)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
            writer.append(images[:, :1], labels)
        with pytest.raises(ValueError, match="int64 labels"):
            writer.append(images, labels[:2])
        with pytest.raises(ValueError, match=r"outside 0\.\.2"):
            writer.append(images, labels + 3)


def test_gather_refuses_what_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, *make_images(12))
    shards = open_shards(tmp_path, verify=False)
    assert shards.gather(np.empty(0, np.int64)).shape == (0, 3, 8, 8)
    for index in (-1, 12):
        with pytest.raises(IndexError, match=r"0\.\.11"):
            shards.gather(np.array([index]))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    write(tmp_path, *make_images(12))
    path = tmp_path / "00001.h5"
    content = bytearray(path.read_bytes())
    with h5py.File(path, "r") as file:
        content[file["images"].id.get_offset() + 100] ^= 1
    path.write_bytes(content)
    open_shards(tmp_path, verify=False)
    with pytest.raises(DataError, match=r"00001\.h5: sha256 differs"):
        open_shards(tmp_path, verify=True)


def test_damaged_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index\.json not found"):
        read_index(tmp_path)
    images, labels = make_images(12)
    write(tmp_path, images, labels)
    path = tmp_path / "00001.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"00001\.h5: "):
        open_shards(tmp_path, verify=False)
    write(tmp_path / "other", images[:5], labels[:5])
    path.write_bytes((tmp_path / "other" / "00000.h5").read_bytes())
    with pytest.raises(DataError, match=r"holds uint8 \(5, 3, 8, 8\)"):
        open_shards(tmp_path, verify=False)
    path.unlink()
    with pytest.raises(DataError, match=r"00001\.h5 not found, but index\.json lists it"):
        open_shards(tmp_path, verify=False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 99, "format_version=99, but ganops reads 2"),
        ("num_images", 13, "num_images=13, but its shards have 12"),
        ("class_counts", [12], "class_counts do not add up"),
        ("digest", "0" * 64, "digest does not belong"),
        ("format_version", 1, "format_version=1, but ganops reads 2. Write"),
        ("height", None, "missing or mistyped"),
        ("bits", 12, "missing or mistyped"),
        ("multi_label", 1, "missing or mistyped"),
        ("shards", [], "its shards have 0"),
    ],
)
def test_a_contradictory_index_is_told(tmp_path: Path, key: str, value: object, message: str) -> None:
    write(tmp_path, *make_images(12))
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, key: value}))
    with pytest.raises(DataError, match=message):
        read_index(tmp_path)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("multi_label", [False, True])
def test_any_shape_any_depth_any_labels(tmp_path: Path, bits: int, multi_label: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2**bits, (23, 5, 16, 12)).astype(f"u{bits // 8}")
    labels = rng.normal(size=(23, 3)).astype(np.float32) if multi_label else rng.integers(0, 3, 23)
    how = {"bits": bits, "multi_label": multi_label}
    with ShardWriter(tmp_path, 10, (16, 12), 5, NAMES, {}, **how) as writer:
        for start in range(0, 23, 4):
            writer.append(images[start : start + 4], labels[start : start + 4])
        index = writer.close({})
    assert index == read_index(tmp_path)
    assert (index.size, index.bits, index.multi_label) == ((16, 12), bits, multi_label)
    assert index.image_bytes == 5 * 16 * 12 * bits // 8
    present = [(labels[:, i] > 0.5).sum() if multi_label else (labels == i).sum() for i in range(3)]
    assert index.class_counts == tuple(present)
    shards = open_shards(tmp_path, verify=True)
    order = rng.integers(0, 23, 40)
    assert np.array_equal(shards.gather(order), images[order])
    assert shards.gather(order).dtype == images.dtype
    assert np.array_equal(shards.labels, labels)
    assert shards.labels.dtype == labels.dtype
    said = json.loads((tmp_path / "index.json").read_text())
    if not multi_label:
        (tmp_path / "index.json").write_text(json.dumps({**said, "multi_label": True}))
        with pytest.raises(DataError, match=r"labels int64 \(10,\), but index.json says .* float32 \(10, 3\)"):
            open_shards(tmp_path, verify=False)
    (tmp_path / "index.json").write_text(json.dumps({**said, "bits": 24 - bits}))
    with pytest.raises(DataError, match=f"holds uint{bits} .* index.json says uint{24 - bits}"):
        open_shards(tmp_path, verify=False)
    with h5py.File(tmp_path / "00000.h5", "r") as file:
        offset = file["images"].id.get_offset()
        assert offset % 4096 == 0
    content = (tmp_path / "00000.h5").read_bytes()
    assert content[offset : offset + images[:10].nbytes] == images[:10].astype(f"<u{bits // 8}").tobytes()


def test_wrong_vectors_and_depths_are_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((3, 3, 8, 8), np.uint16), np.zeros((3, 3), np.float32)
    with ShardWriter(tmp_path, 10, 8, 3, NAMES, {}, bits=16, multi_label=True) as writer:
        with pytest.raises(ValueError, match="expected uint16"):
            writer.append(images.astype(np.uint8), labels)
        with pytest.raises(ValueError, match=r"expected float32 labels \[3, 3\]"):
            writer.append(images, labels[:, :2])
        with pytest.raises(ValueError, match=r"expected float32 labels"):
            writer.append(images, np.zeros(3, np.int64))
        with pytest.raises(ValueError, match="not finite"):
            writer.append(images, np.full((3, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="class_names"):
        ShardWriter(tmp_path, 10, 8, 3, (), {}, multi_label=True)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"a"', "\xff"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"index\.json"):
        read_index(tmp_path)
