"""Labels of fakes: drawn as those of the real images are, with the data or from a snapshot without them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ganops.distributed import make_generator
from ganops.errors import WeightsError
from ganops.images.shards import Shards, ShardWriter, open_shards
from ganops.networks import law as module
from ganops.networks.law import LabelVectors, bounded, draw_places, grid_labels, label_law, labels_at, total_of
from ganops.networks.sampling import encode_labels, generate_images, image_labels, one_hot
from ganops.networks.snapshot import load_law, load_snapshot, save_snapshot
from ganops.training.step import draw_latents
from tests.unit.test_networks import make_generator as make_G
from tests.unit.test_networks import seeded
from tests.unit.test_snapshot import rewrite
from tests.unit.tiny import tiny_params, tiny_state

VECTORS = np.array([[0, 1, 0.5], [1, 0, 0], [0, 1, 0.5], [0, 0, 0], [1, 0, 0], [0, 1, 0.5]], np.float32)
CPU = torch.device("cpu")


def shards_of(folder: Path, vectors: NDArray[np.float32]) -> Shards:
    names = tuple(str(place) for place in range(vectors.shape[1]))
    with ShardWriter(folder, 4, 6, 1, names, {}, multi_label=True) as writer:
        writer.append(np.zeros((len(vectors), 1, 6, 6), np.uint8), vectors)
        writer.close({})
    return open_shards(folder, verify=False)


def test_distinct_vectors_are_counted(tmp_path: Path) -> None:
    law = label_law(shards_of(tmp_path, VECTORS))
    assert isinstance(law, LabelVectors)
    assert np.array_equal(law.vectors, VECTORS[[0, 1, 3]])
    assert law.counts.tolist() == [3, 2, 1]
    assert bounded(law) is law
    assert total_of(law) == 6
    found = Counter(tuple(row) for row in labels_at(law, torch.arange(6)).tolist())
    assert found == Counter(tuple(row) for row in VECTORS.tolist())


def test_vectors_are_drawn_by_the_empirical_law(tmp_path: Path) -> None:
    law = label_law(shards_of(tmp_path, VECTORS))
    drawn = image_labels(0, range(10_000), law)
    assert drawn.dtype == torch.float32
    shares = Counter(tuple(row) for row in drawn.tolist())
    assert [shares[tuple(row)] / 10_000 for row in VECTORS[[0, 1, 3]].tolist()] == pytest.approx(
        [1 / 2, 1 / 3, 1 / 6], abs=0.02
    )
    assert torch.equal(drawn[70:75], image_labels(0, range(70, 75), law))
    params = tiny_params()
    latents = draw_latents(tiny_state(params), params, "Gmain", 0, 20_000, law)
    assert latents.c.mean(0).tolist() == pytest.approx(VECTORS.mean(0).tolist(), abs=0.012)
    assert {tuple(row) for row in latents.c.tolist()} == {tuple(row) for row in VECTORS.tolist()}


def test_classes_are_drawn_as_before() -> None:
    """The very stream of the first version: places among the images, by a running sum."""
    counts = (3, 0, 5, 2)
    rng, other = (make_generator(CPU, 4, "label") for _ in range(2))
    places = torch.randint(10, [50], generator=other)
    expected = torch.searchsorted(torch.tensor([3, 3, 8, 10]), places, right=True)
    assert torch.equal(labels_at(counts, draw_places(counts, 50, rng)), expected)
    assert not (expected == 1).any()
    assert image_labels(0, range(3), ()).tolist() == [0, 0, 0]
    assert total_of(()) == 0


def test_too_many_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws from all of them, snapshots carry some that are spread evenly."""
    monkeypatch.setattr(module, "MOST_VECTORS", 8)
    vectors = np.random.default_rng(0).random((30, 2), dtype=np.float32)
    law = label_law(shards_of(tmp_path / "30", vectors))
    assert isinstance(law, LabelVectors)
    assert np.array_equal(law.vectors, vectors)
    assert law.counts.tolist() == [1] * 30
    few = bounded(law)
    assert isinstance(few, LabelVectors)
    assert np.array_equal(few.vectors, vectors[[0, 3, 7, 11, 15, 18, 22, 26]])
    assert bounded(few) is few
    exactly = label_law(shards_of(tmp_path / "8", np.repeat(vectors[:8], 3, axis=0)))
    assert isinstance(exactly, LabelVectors)
    assert exactly.counts.tolist() == [3] * 8


def test_rows_of_pictures() -> None:
    assert grid_labels(()).tolist() == []
    assert grid_labels((5, 0, 7)).tolist() == [0, 1, 2]
    assert grid_labels((1,) * 50).tolist() == list(range(32))
    law = LabelVectors(VECTORS[[3, 1, 0]], np.array([2, 2, 9]))
    assert np.array_equal(grid_labels(law).numpy(), VECTORS[[0, 3, 1]])


def test_labels_as_networks_take_them() -> None:
    classes, vectors = torch.tensor([2, 0]), torch.from_numpy(VECTORS[:2])
    assert torch.equal(encode_labels(classes, 3), one_hot(classes, 3))
    assert encode_labels(vectors, 3) is vectors
    assert encode_labels(vectors, 0).shape == encode_labels(classes, 0).shape == (2, 0)


def test_images_follow_their_vectors() -> None:
    G = make_G(seeded(), c_dim=3)
    labels = torch.from_numpy(VECTORS)
    images = torch.cat(list(generate_images(G, 3, range(6), labels, 1.0, None, "const", 4, 16)))
    assert (images.dtype, images.shape) == (torch.int16, (6, 3, 16, 16))
    again = torch.cat(list(generate_images(G, 3, range(6), labels, 1.0, None, "const", 4, 16)))
    assert torch.equal(images, again)
    other = torch.cat(list(generate_images(G, 3, range(6), labels.flip(1), 1.0, None, "const", 4, 16)))
    assert [bool((one == two).all()) for one, two in zip(images, other, strict=True)] == [False] * 3 + [True] + [
        False
    ] * 2


def test_a_snapshot_carries_the_law(tmp_path: Path) -> None:
    path, G = tmp_path / "G.safetensors", make_G(seeded(), c_dim=3)
    law = LabelVectors(VECTORS[[0, 1, 3]], np.array([3, 2, 1]))
    save_snapshot(path, G, {"class_counts": [2, 3, 0]}, law)
    found = load_law(path)
    assert isinstance(found, LabelVectors)
    assert np.array_equal(found.vectors, law.vectors)
    assert np.array_equal(found.counts, law.counts)
    loaded = load_snapshot(path)[0].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in G.state_dict().items())
    assert torch.equal(image_labels(5, range(20), found), image_labels(5, range(20), law))
    save_snapshot(path, G, {"class_counts": [2, 3, 0]}, (2, 3, 0))
    assert load_law(path) == (2, 3, 0)
    save_snapshot(path, make_G(seeded()), {"class_counts": [2, 3, 0]})
    assert load_law(path) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: tensors.pop("labels.counts"), "label vectors are damaged"),
        (
            lambda header, tensors: tensors.update({"labels.counts": torch.tensor([1, 0, 2])}),
            "label vectors are damaged",
        ),
        (lambda header, tensors: tensors.update({"labels.vectors": torch.zeros(3, 2)}), "label vectors are damaged"),
        (lambda header, tensors: tensors.update({"labels.vectors": torch.zeros(3, 3).double()}), "label vectors are"),
        (lambda header, tensors: [tensors.pop(f"labels.{name}") for name in ("vectors", "counts")], "class_counts"),
    ],
)
def test_damaged_laws(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "G.safetensors"
    save_snapshot(path, make_G(seeded(), c_dim=3), {}, LabelVectors(VECTORS[[0, 1, 3]], np.array([3, 2, 1])))
    rewrite(path, change)
    with pytest.raises(WeightsError, match=message):
        load_law(path)


def test_snapshots_from_before_there_were_grids(tmp_path: Path) -> None:
    path, G = tmp_path / "G.safetensors", make_G(seeded(), c_dim=3)
    save_snapshot(path, G, {})
    rewrite(path, lambda header, tensors: header["arguments"].pop("base_grid"))
    loaded, _ = load_snapshot(path)
    assert loaded.arguments == G.arguments
    assert loaded.arguments["base_grid"] == (4, 4)
    for grid, message in (
        ([4, 3], "do not fit its arguments"),
        ([4], "no generator can be made"),
        ("x", "no generator"),
    ):
        rewrite(path, lambda header, tensors, grid=grid: header["arguments"].update(base_grid=grid))
        with pytest.raises(WeightsError, match=message):
            load_snapshot(path)
