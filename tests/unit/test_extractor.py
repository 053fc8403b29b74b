"""Feature networks: the right weights or one clear line, and names that cannot lie."""

import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from ganops.errors import DataError, WeightsError
from ganops.images.pixels import as_tensor
from ganops.metrics import extractor as module
from ganops.metrics import inception, weights
from ganops.metrics.extractor import Extractor, file_suffix, load_extractor
from tests.standin import FixedSize, write_inception, write_network, write_standin
from tests.tolerances import relative_error

CPU = torch.device("cpu")


def load_lite(sha256: str = "", precision: str = "float32", compiled: bool = False) -> Extractor:
    return load_extractor("efficientnet-lite0", sha256, "clean", precision, compiled, CPU, Path())


def load_file(path: str | Path, sha256: str, folder: Path = Path()) -> Extractor:
    return load_extractor(str(path), sha256, "none", "float32", False, CPU, folder)


def images(channels: int, count: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, [count, channels, 16, 16], dtype=torch.uint8, generator=rng)


def test_efficientnet_has_its_real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the size it was trained for, its classifier knows scikit-learn's photographs: 698 is a palace, 985 a daisy."""
    monkeypatch.setattr(module, "EFFLITE0_SIZE", 224)
    extractor = load_lite()
    assert (extractor.suffix, extractor.name) == ("efflite0", "efficientnet-lite0")
    assert (extractor.resizer, extractor.precision) == ("pil-bicubic-antialias-224", "float32")
    assert extractor.classify is not None
    for photograph, expected in zip(load_sample_images().images, (698, 985), strict=True):
        square = torch.from_numpy(photograph[:, 107 : 107 + len(photograph)].copy()).permute(2, 0, 1)
        logits = extractor.classify(extractor.features(square[None]))
        assert (logits.dtype, logits.shape) == (torch.float32, (1, 1000))
        assert logits.argmax() == expected


def test_efficientnet_sees_rgb_of_any_channels() -> None:
    extractor = replace(load_lite(), background=(10, 200, 90))
    grey = images(1)
    assert torch.equal(extractor.features(grey), extractor.features(grey.expand(-1, 3, -1, -1).contiguous()))
    many = images(6)
    assert torch.equal(extractor.features(many), extractor.features(many[:, :3].contiguous()))
    for channels in (2, 4):
        layered = images(channels)
        colour = layered[:, :1].expand(-1, 3, -1, -1) if channels == 2 else layered[:, :3]
        alpha, ground = layered[:, -1:].double() / 255, torch.tensor([10.0, 200.0, 90.0]).double()[:, None, None]
        flat = (colour * alpha + ground * (1 - alpha)).round().to(torch.uint8)
        assert torch.equal(extractor.features(layered), extractor.features(flat))
    said = [extractor.channels_seen(channels) for channels in (1, 2, 3, 4, 6)]
    ground_text = "on background 10 200 90"
    assert said == ["grey, three times", f"grey {ground_text}", "RGB", f"RGB {ground_text}", "the first three of 6"]


def test_16_bits_are_seen_as_8() -> None:
    extractor = load_lite()
    levels = np.random.default_rng(0).integers(0, 65536, (3, 3, 20, 28), dtype=np.uint16)
    rounded = torch.from_numpy(np.floor(levels / 257 + 0.5).astype(np.uint8))
    assert torch.equal(extractor.features(as_tensor(levels)), extractor.features(rounded))


def test_folded_batch_norms_are_equal_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = load_lite().features(images(3))
    monkeypatch.setattr(module, "fold_batch_norms", lambda network: network)
    plain = load_lite().features(images(3))
    assert float((folded - plain).abs().max() / plain.abs().max()) < 2e-5


def test_efficientnet_in_bfloat16_is_close_and_not_equal() -> None:
    """Eight bits of mantissa through 50 layers: measured 0.02 of the largest feature."""
    exact, extractor = load_lite().features(images(3)), load_lite(precision="bfloat16")
    features = extractor.features(images(3))
    assert (extractor.precision, features.dtype) == ("bfloat16", torch.float32)
    assert 1e-3 < relative_error(features, exact) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of inductor
def test_efficientnet_compiled_is_eager() -> None:
    from torch._dynamo.exc import TorchDynamoException

    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8))
    except TorchDynamoException as error:
        pytest.skip(f"no compiler here: {str(error).splitlines()[0]}")
    assert relative_error(load_lite(compiled=True).features(images(3)), load_lite().features(images(3))) < 2e-5


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise TorchDynamoException("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    with pytest.raises(WeightsError, match=r"here \(no C\+\+ compiler\)\. Set run\.compile_extractor: false"):
        load_lite(compiled=True).features(images(3))


def test_a_torchscript_file_by_path(tmp_path: Path) -> None:
    sha256 = write_standin(tmp_path / "My Net.pt")
    extractor = load_file(tmp_path / "My Net.pt", sha256)
    assert (extractor.name, extractor.suffix, extractor.sha256) == ("My Net.pt", "my_net", sha256)
    assert (extractor.resizer, extractor.classify) == ("none", None)
    assert extractor.features(images(4)).shape == (3, 16)
    assert extractor.features(images(1)).dtype == torch.float32


def test_no_file_can_pass_for_a_built_in_network(tmp_path: Path) -> None:
    for name, suffix in (("fid.pt", "fid"), ("FID 2.pt", "fid_2"), (".pt", "pt"), ("a/net-1.ts", "net_1")):
        assert load_file(tmp_path / name, write_standin(tmp_path / name)).suffix == suffix
    for stem in ("efflite0", "EffLite0_bf16", "inception-2015", "Inception", "---", ""):
        with pytest.raises(WeightsError, match="Give it another name"):
            file_suffix(stem)


@pytest.mark.parametrize(
    ("resize", "precision", "compiled", "text"),
    [
        ("clean", "float32", False, r"resize=clean\. Set fid\.protocol: none"),
        ("none", "bfloat16", False, r"stats\.precision=bfloat16\. Set it to float32"),
        ("none", "float32", True, r"run\.compile_extractor=true\. Set it to false"),
    ],
)
def test_a_torchscript_file_runs_as_it_stands(
    tmp_path: Path, resize: str, precision: str, compiled: bool, text: str
) -> None:
    sha256 = write_standin(tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=text):
        load_extractor(str(tmp_path / "net.pt"), sha256, resize, precision, compiled, CPU, tmp_path)


@pytest.mark.parametrize(
    ("name", "resize"),
    [("efficientnet-lite0", "legacy"), ("efficientnet-lite0", "none"), ("inception-2015", "none")],
)
def test_built_in_networks_have_their_resizes(tmp_path: Path, name: str, resize: str) -> None:
    with pytest.raises(WeightsError, match=f"{name} takes .* resize={resize}"):
        load_extractor(name, "", resize, "float32", False, CPU, tmp_path)


def test_a_file_is_also_found_in_the_weights_folder(tmp_path: Path) -> None:
    sha256 = write_standin(tmp_path / "weights" / "net.pt")
    assert load_file("data/weights/net.pt", sha256, tmp_path / "weights").suffix == "net"


def test_a_network_that_does_not_fit_the_images_is_named(tmp_path: Path) -> None:
    sha256 = write_network(tmp_path / "net.pt", FixedSize())
    extractor = load_file(tmp_path / "net.pt", sha256)
    assert extractor.features(images(1)[..., :4, :4]).shape == (3, 2)
    with pytest.raises(DataError, match=r"net\.pt: cannot take uint8 images of shape \[3, 1, 16, 16\]"):
        extractor.features(images(1))


@pytest.mark.parametrize(("scale", "text"), [(float("nan"), "not finite"), (0.0, "expected \\[3, D\\]")])
def test_useless_features_are_refused(tmp_path: Path, scale: float, text: str) -> None:
    def network(_: torch.Tensor) -> torch.Tensor:
        return torch.full([3, 2] if scale else [3, 2, 1], scale)

    extractor = Extractor("net.pt", "net", "", "none", "float32", ("torch",), CPU, network, None)
    with pytest.raises(WeightsError, match=text):
        extractor.features(images(1))


def test_a_pinned_network_takes_no_other_sha256() -> None:
    assert load_lite(module.EFFLITE0_SHA256).suffix == "efflite0"
    with pytest.raises(WeightsError, match="is pinned to 5793"):
        load_lite("0" * 64)


def test_loading_draws_no_random_numbers_and_features_leave_settings_as_they_are() -> None:
    before = torch.random.get_rng_state()
    extractor = load_lite()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.backends.cudnn.allow_tf32 = True
    features = extractor.features(images(3))
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.deterministic
    assert not features.requires_grad


def test_a_file_needs_its_sha256(tmp_path: Path) -> None:
    sha256 = write_standin(tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=f"set it to {sha256}"):
        load_file(tmp_path / "net.pt", "")
    with pytest.raises(WeightsError, match=f"sha256 is {sha256}, but stats.extractor_sha256=0000"):
        load_file(tmp_path / "net.pt", "0" * 64)


def test_an_unknown_name() -> None:
    with pytest.raises(WeightsError, match=r"stats\.extractor=inception is neither.* Did you mean inception-2015\?"):
        load_extractor("inception", "", "clean", "float32", False, CPU, Path())


def test_something_else_than_torchscript(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "net.pt").write_bytes(b"hello")
    with pytest.raises(WeightsError, match="not a TorchScript file"):
        load_file(tmp_path / "net.pt", hashlib.sha256(b"hello").hexdigest())


def load_inception(folder: Path) -> Extractor:
    return load_extractor("inception-2015", "", "clean", "float32", False, CPU, folder)


def test_inception_offline_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(weights.urllib.request, "urlopen", offline)
    with pytest.raises(WeightsError) as error:
        load_inception(tmp_path)
    parts = [str(tmp_path / inception.STATE_FILE), inception.STATE_URL, inception.STATE_SHA256]
    for part in (*parts, inception.INCEPTION_FILE, inception.INCEPTION_URL, inception.INCEPTION_SHA256):
        assert part in str(error.value)


def test_inception_refuses_another_file(tmp_path: Path) -> None:
    """What clean-fid accepts without a word."""
    found = write_inception(tmp_path / inception.INCEPTION_FILE)
    with pytest.raises(WeightsError, match=f"sha256 is {found}, expected {inception.INCEPTION_SHA256}"):
        load_inception(tmp_path)


def test_a_script_of_another_structure_runs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/parity/test_inception.py has those of the right one."""
    monkeypatch.setattr(inception, "INCEPTION_SHA256", write_inception(tmp_path / inception.INCEPTION_FILE))
    extractor = load_inception(tmp_path)
    assert "(2 convolutions, expected 94), so its own script runs" in capsys.readouterr().out
    assert extractor.features(images(1)).shape == (3, 2048)
    assert (extractor.suffix, extractor.classify) == ("inception", None)
