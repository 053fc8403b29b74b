"""SeFa: directions against numpy's SVD, the styles that each w makes, and what is moved."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ganops.errors import DataError
from ganops.explore.directions import draw_directions, factorize, move, style_matrices
from ganops.explore.model import open_model, sample_w
from ganops.networks.families import active_ws
from ganops.networks.layers import SynthesisLayer, ToRGB
from ganops.networks.snapshot import save_snapshot
from tests.tolerances import TOLERANCES, assert_close, relative_error
from tests.unit.tiny_model import growing_generator, tiny_generator, tool_params, write_snapshot


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp("model") / "last.safetensors")


@pytest.mark.parametrize("shape", [(40, 12), (12, 12), (5, 12)])
def test_directions_are_the_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    count = min(shape)
    directions, eigenvalues = factorize(matrix, count)
    _, values, vectors = np.linalg.svd(matrix)
    assert_close(eigenvalues, values[:count] ** 2, "eigenvectors_float64")
    signs = np.sign((directions * vectors[:count]).sum(axis=1, keepdims=True))
    assert_close(directions, signs * vectors[:count], "eigenvectors_float64")
    assert (directions[np.arange(count), np.abs(directions).argmax(axis=1)] > 0).all()


def test_more_directions_than_rows() -> None:
    directions, eigenvalues = factorize(np.random.default_rng(0).standard_normal((3, 6)), 6)
    assert_close(directions @ directions.T, np.eye(6), "eigenvectors_float64")
    assert (eigenvalues >= 0).all()
    assert eigenvalues[3:] == pytest.approx(0, abs=1e-12)


def test_matrices_are_in_the_order_of_ws() -> None:
    """A block's image layer has the w of the next block's first convolution."""
    G = tiny_generator()
    matrices = style_matrices(G)
    blocks = [G.synthesis.get_submodule(f"blocks.{r}x{r}") for r in (4, 8, 16)]
    expected = [
        ["0.conv"], ["0.to_rgb", "1.conv0_up"], ["1.conv1"], ["1.to_rgb", "2.conv0_up"], ["2.conv1"], ["2.to_rgb"],
    ]  # fmt: skip
    for matrix, names in zip(matrices, expected, strict=True):
        layers = {name: blocks[int(name[0])].get_submodule(name[2:]) for name in names}
        parts = []
        for layer in layers.values():
            assert isinstance(layer, SynthesisLayer | ToRGB)
            parts.append(layer.affine.weight.double() * layer.affine.weight_gain)
        in_some_order = [torch.cat(order) for order in (parts, parts[::-1])]
        assert min(relative_error(matrix, order) for order in in_some_order) <= TOLERANCES["eigenvectors_float64"]


def test_styles_move_as_the_matrix_says() -> None:
    G = tiny_generator().double()
    matrix = style_matrices(G)[2]
    layer = G.synthesis.get_submodule("blocks.8x8.conv1")
    assert isinstance(layer, SynthesisLayer)
    w, step = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change = layer.affine((w + step)[None]) - layer.affine(w[None])
    assert_close(change[0], matrix @ step.numpy(), "eigenvectors_float64")


def test_only_these_layers_move() -> None:
    ws, step = torch.zeros(2, 6, 3), torch.tensor([1.0, 2.0, -1.0])
    moved = move(ws, step, [-1.0, 0.0, 2.0], (1, 3))
    assert moved.shape == (2, 3, 6, 3)
    assert torch.equal(moved[:, 1], ws)
    assert torch.equal(moved[:, 2, 1:3], (2 * step).expand(2, 2, 3))
    assert not moved[:, :, 0].any()
    assert not moved[:, :, 3:].any()
    assert not ws.any()


def test_files(snapshot: Path, tmp_path: Path) -> None:
    params = tool_params(directions__layers=[1, 4], directions__count=3)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        draw_directions(params, snapshot, folder)
    names = {path.name for path in folders[0].iterdir()}
    assert names == {"directions.json", "directions.safetensors", *[f"direction0{number}.png" for number in range(3)]}
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    found = safetensors.torch.load_file(folders[0] / "directions.safetensors")
    model = open_model(snapshot, params.run)
    directions, eigenvalues = factorize(np.concatenate(style_matrices(model.G)[1:4]), 3)
    assert torch.equal(found["directions"], torch.from_numpy(directions).float())
    assert torch.equal(found["eigenvalues"], torch.from_numpy(eigenvalues).float())
    w = sample_w(model, "k", None, 0, 10_000).double().numpy()
    assert found["w_std"].numpy() == pytest.approx((w @ directions.T).std(axis=0), rel=1e-6)
    values = json.loads((folders[0] / "directions.json").read_text())["values"]
    assert (values["layers"], values["seeds"], values["snapshot_sha256"]) == ([1, 4], [0, 1], model.sha256)
    with pytest.raises(DataError, match="holds results of other values: count=3 there, 2 now"):
        draw_directions(tool_params(directions__layers=[1, 4]), snapshot, folders[0])


def test_what_a_model_has_not(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, message in (
        ({"directions__count": 9}, r"directions.count=9, but w has 8 dimensions"),
        ({"directions__layers": [0, 7]}, r"directions.layers=\[0, 7\], but .* has 6 layers"),
        ({"directions__label": "bird"}, r"directions.label='bird' is no class"),
    ):
        with pytest.raises(DataError, match=message) as error:
            draw_directions(tool_params(**changes), snapshot, tmp_path / "folder")
        assert "\n" not in str(error.value)

    class Flat(nn.Module):
        def forward(self, ws: Tensor, noise_mode: str, rng: None) -> Tensor:
            return ws[:, 0, :1, None, None].expand(-1, 1, 16, 16)

    G = copy.deepcopy(open_model(snapshot, tool_params().run).G)
    G.synthesis, G.num_ws = Flat(), 1
    monkeypatch.setattr("ganops.explore.model.load_snapshot", lambda path: (G, {}))
    with pytest.raises(DataError, match="has no layers with an affine map of w to styles"):
        draw_directions(tool_params(), snapshot, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "lod"), [("stylegan2-growing", 0.0), ("stylegan2-growing", 1.3), ("stylegan1", 1.0)]
)
def test_networks_that_grow_have_matrices_of_what_runs(family: str, lod: float) -> None:
    """Image layers below the present level are there, but have no w at the moment."""
    G = growing_generator(family, lod)
    matrices = style_matrices(G)
    assert len(matrices) == G.num_ws
    running = active_ws(G)
    assert all(len(matrix) for matrix in matrices[:running])
    assert not any(len(matrix) for matrix in matrices[running:])


def test_directions_of_layers_that_do_not_run_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = tmp_path / "growing.safetensors"
    save_snapshot(snapshot, growing_generator("stylegan1", 1.0), {})
    changes = {"directions__label": None}
    for layers in ([4, 6], [3, 5]):
        with pytest.raises(
            DataError, match=r"still growing: so far only layers 0 to 3 of 6 run\..*from 0 to 4"
        ) as error:
            draw_directions(tool_params(directions__layers=layers, **changes), snapshot, tmp_path / "folder")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "folder").exists()
    draw_directions(tool_params(directions__layers=None, **changes), snapshot, tmp_path / "all")
    assert "of layers 0 to 3 in" in capsys.readouterr().out
    draw_directions(tool_params(directions__layers=[3, 4], **changes), snapshot, tmp_path / "one")
    assert "of layer 3 in" in capsys.readouterr().out
