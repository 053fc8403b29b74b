"""Labels from folders and tables, and every way in which they can be wrong."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from ganops.errors import DataError
from ganops.images.labels import csv_labels, first_ten, folder_labels, json_labels, read_labels

NAMES = ["a/0.png", "a/1.png", "b/0.png"]


def table(content: bytes | None) -> Callable[[str], bytes | None]:
    return lambda name: content


def as_json(labels: object) -> bytes:
    return json.dumps({"labels": labels}).encode()


def test_folders() -> None:
    labels = folder_labels(["b/x/0.png", "a/0.png", "b/1.png", "C/0.png"])
    assert labels.class_names == ("C", "a", "b")
    assert labels.values.tolist() == [2, 1, 2, 0]


def test_folders_of_numbers_sort_by_value() -> None:
    assert folder_labels(["10/a", "9/a", "100/a", "09/a"]).class_names == ("09", "9", "10", "100")
    assert folder_labels(["10/a", "9/a", "x/a"]).class_names == ("10", "9", "x")


def test_loose_images_among_class_folders() -> None:
    with pytest.raises(DataError, match=r"these images are in no class folder: y\.png, z\.png\. "):
        folder_labels(["a/0.png", "b/0.png", "y.png", "z.png"])
    with pytest.raises(DataError, match="there are no class folders"):
        folder_labels(["y.png", "z.png"])


def test_json() -> None:
    labels = json_labels(as_json([["b/0.png", 3], ["a/0.png", 0], ["a/1.png", 1]]), NAMES)
    assert labels.class_names == ("0", "1", "2", "3")
    assert labels.values.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xfd", "not valid JSON"),
        (b"[]", '"labels" is missing or null'),
        (as_json(None), '"labels" is missing or null'),
        (as_json({"a/0.png": 1}), '"labels" is a dict'),
        (as_json([["a/0.png", 0], ["a/1.png"]]), 'entry 2 of "labels" is'),
        (as_json([["a/0.png", -1]]), "entry 1"),
        (as_json([["a/0.png", True]]), "entry 1"),
        (as_json([["a/0.png", 1.0]]), "entry 1"),
        (as_json([["a/0.png", []]]), "entry 1"),
        (as_json([["a/0.png", [0.5, 0.5]]]), "2 of 3 images have no label"),
        (
            as_json([["a/0.png", [0.5, 0.5]], ["a/1.png", 1]]),
            r"entry 2 .* expected \[name, list of 2 numbers .* has 2\]?",
        ),
        (as_json([["a/0.png", 1], ["a/1.png", [1, 0]]]), r"entry 2 .* expected \[name, integer from 0 up\]"),
        (as_json([["a/0.png", [0, 1]], ["a/1.png", [0, 1, 1]]]), "entry 2"),
        (as_json([["a/0.png", [0, 1]], ["a/1.png", [0, True]]]), "entry 2"),
        (as_json([["a/0.png", [0, 1]], ["a/1.png", [0, None]]]), "entry 2"),
        (as_json([["a/0.png", [0, 1]], ["a/1.png", [0, "1"]]]), "entry 2"),
        (as_json([["a/0.png", [0, float("nan")]]]), "entry 1"),
        (as_json([["a/0.png", [0, float("inf")]]]), "entry 1"),
        (as_json([["a/0.png", [0, 1e7]]]), r"entry 1 .* within \+-1e\+06"),
        (as_json([[name, [0, 1]] for name in [*NAMES, "c/0.png"]]), r"1 of 4 labels have no image: c/0\.png\. "),
        (as_json([[name, [0] * 65536] for name in NAMES]), "65536 numbers per image"),
        (as_json([["a/0.png", "cat"]]), "entry 1"),
        (as_json([[3, 0]]), "entry 1"),
        (as_json([["a/0.png", 0], ["a/1.png", 1]]), r"1 of 3 images have no label: b/0\.png\. "),
        (as_json([[name, 1] for name in [*NAMES, "c/0.png"]]), r"1 of 4 labels have no image: c/0\.png\. "),
        (as_json([[name, 1] for name in [*NAMES, "b/0.png"]]), r"stand more than once: b/0\.png\. "),
        (as_json([[name, 4801234] for name in NAMES]), "label 4801234 is not a class index below 65536"),
        (as_json([]), "3 of 3 images have no label"),
    ],
)
def test_wrong_json(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        json_labels(content, NAMES)
    assert str(caught.value).startswith("dataset.json: ")
    assert "\n" not in str(caught.value)


def test_csv_with_names_and_with_numbers() -> None:
    labels = csv_labels(b'\xef\xbb\xbfname,label\r\nb/0.png,"dog, big"\r\na/0.png,cat\r\n\r\na/1.png,10\r\n', NAMES)
    assert labels.class_names == ("10", "cat", "dog, big")
    assert labels.values.tolist() == [1, 0, 2]
    labels = csv_labels(b"name,label\na/0.png,2\na/1.png,0\nb/0.png,2\n", NAMES)
    assert labels.class_names == ("0", "1", "2")
    assert labels.values.tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "first line is '', expected name,label"),
        (b"a/0.png,cat\n", "first line is 'a/0.png,cat', expected name,label"),
        (b"name,label\na/0.png\n", r"line 2: found 'a/0\.png'"),
        (b"name,label\na/0.png,cat\na/1.png,\n", "line 3: found"),
        (b"name,label\na/0.png,cat,x\n", "line 2: found"),
        (b'name,label\n"a/0.png,cat\n', "not valid CSV"),
        (b"name,label\na/\xe4.png,cat\n", "not UTF-8"),
        (b"name,label\na/0.png,cat\na/1.png,dog\n", r"1 of 3 images have no label: b/0\.png"),
        (b"name,label\na/0.png,c\na/1.png,d\nb/0.png,d\nz.png,d\n", r"1 of 4 labels have no image: z\.png"),
        (b"name,label\na/0.png,c\na/1.png,d\nb/0.png,d\na/0.png,d\n", r"more than once: a/0\.png"),
        (b"name,label\na/0.png,1\na/1.png,2\nb/0.png,99999999999999999\n", "not a class index"),
        (b"name,smiling\na/0.png,1\n", "first line is 'name,smiling', expected name,label or, for several"),
        (b"file,a,b\na/0.png,1,0\n", "first line is 'file,a,b'"),
        (b"name,a,\na/0.png,1,0\n", "first line is 'name,a,'"),
        (b"name,a,b,a\na/0.png,1,0,1\n", "columns that stand more than once: a"),
        (b"name,a,b\na/0.png,1\n", "line 2: found 'a/0.png,1', expected name,a,b"),
        (b"name,a,b\na/0.png,1,0\na/1.png,1,\n", "line 3: found"),
        (b"name,a,b\na/0.png,1,0\na/1.png,1,yes\n", "line 3: 'yes' is not a number"),
        (b"name,a,b\na/0.png,1,nan\n", "line 2: 'nan' is not a number"),
        (b"name,a,b\na/0.png,1,-inf\n", "line 2: '-inf' is not a number"),
        (b"name,a,b\na/0.png,1,1_0\n", "line 2: '1_0' is not a number"),
        (b"name,a,b\na/0.png,1,2000000\n", r"line 2: '2000000' is not a number within \+-1e\+06"),
        (b"name,a,b\na/0.png,1,0\na/1.png,0,0\n", r"1 of 3 images have no label: b/0\.png"),
    ],
)
def test_wrong_csv(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        csv_labels(content, NAMES)
    assert str(caught.value).startswith("labels.csv")


def test_several_labels_per_image() -> None:
    labels = csv_labels(b"name,smiling, old\nb/0.png,1,-0.0\na/0.png, 0 ,0.5\na/1.png,-1,1e-3\n", NAMES)
    assert labels.multi_label
    assert labels.class_names == ("smiling", "old")
    assert labels.values.dtype == np.float32
    assert np.array_equal(labels.values, np.array([[0, 0.5], [-1, 1e-3], [1, 0]], np.float32))
    assert not np.signbit(labels.values[2, 1])
    labels = json_labels(as_json([["b/0.png", [1, 0.25, 3]], ["a/0.png", [0, 1, 0]], ["a/1.png", [0, 0, -2]]]), NAMES)
    assert labels.class_names == ("0", "1", "2")
    assert np.array_equal(labels.values, np.array([[0, 1, 0], [0, 0, -2], [1, 0.25, 3]], np.float32))
    assert not json_labels(as_json([[name, 1] for name in NAMES]), NAMES).multi_label
    one = json_labels(as_json([["b/0.png", [0.5]], ["a/0.png", [1]], ["a/1.png", [1]]]), NAMES)
    assert one.values.shape == (3, 1)
    with pytest.raises(DataError, match=r"all 3 images are of one class, \[1\.0, 0\.0\]"):
        read_labels("json", NAMES, table(as_json([[name, [1, 0]] for name in NAMES])))


def test_accents_are_compared_composed() -> None:
    labels = json_labels(as_json([["Ko\u0308ln.png", 0], ["x.png", 1]]), ["K\u00f6ln.png", "x.png"])
    assert labels.values.tolist() == [0, 1]
    with pytest.raises(DataError, match="more than once"):
        json_labels(as_json([["Ko\u0308ln.png", 0], ["K\u00f6ln.png", 1]]), ["K\u00f6ln.png"])


def test_read_labels() -> None:
    assert read_labels("none", NAMES, table(None)).class_names == ()
    assert read_labels("none", NAMES, table(None)).values.tolist() == [0, 0, 0]
    assert read_labels("folders", NAMES, table(None)).values.tolist() == [0, 0, 1]
    content = as_json([[name, i] for i, name in enumerate(NAMES)])
    assert read_labels("json", NAMES, table(content)).values.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"prepare\.labels=json, but there is no dataset\.json"):
        read_labels("json", NAMES, table(None))
    with pytest.raises(DataError, match=r"prepare\.labels=csv, but there is no labels\.csv"):
        read_labels("csv", NAMES, table(None))


def test_one_class_is_none() -> None:
    with pytest.raises(DataError, match=r"all 2 images are of one class, a\. Set prepare\.labels: none"):
        read_labels("folders", NAMES[:2], table(None))
    with pytest.raises(DataError, match="all 3 images are of one class, 5"):
        read_labels("json", NAMES, table(as_json([[name, 5] for name in NAMES])))


def test_lists_are_cut_after_ten() -> None:
    assert first_ten("abc") == "a, b, c"
    assert first_ten(str(i) for i in range(25)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (25 in all)"
