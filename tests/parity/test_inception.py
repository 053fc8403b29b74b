"""Inception-2015 in its full size, with random weights: both published files give the features of the script itself."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from ganops.errors import WeightsError
from ganops.metrics import inception as module
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.weights import load_torchscript
from tests.standin import noise, write_full_inception
from tests.tolerances import relative_error

CPU = torch.device("cpu")
# Rounding of float32 through 48 layers of random weights: measured up to 6e-6. A wrong layer gives more than 1e-2.
EQUAL = 2e-5
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@dataclass(frozen=True)
class Files:
    script: Path
    state: Path
    script_sha256: str
    state_sha256: str


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("inception")
    script, state = folder / "one" / module.INCEPTION_FILE, folder / "two" / module.STATE_FILE
    return Files(script, state, *write_full_inception(script, state))


@pytest.fixture
def files(written: Files, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Taken for the published ones."""
    monkeypatch.setattr(module, "INCEPTION_SHA256", written.script_sha256)
    monkeypatch.setattr(module, "STATE_SHA256", written.state_sha256)
    return written


def load(folder: Path, resize: str = "clean", precision: str = "float32", compiled: bool = False) -> Extractor:
    return load_extractor("inception-2015", "", resize, precision, compiled, CPU, folder)


def features_of_the_script(path: Path, images: Tensor) -> Tensor:
    """What the file computes on images of 299 px."""
    script = load_torchscript(path.read_bytes(), path, CPU)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        features: Tensor = script.layers((images.float() - 128) / 128)
    return features


def test_both_files_give_the_features_of_the_script(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    images = noise(3, 1)
    expected = features_of_the_script(files.script, images)
    for path, sha256 in ((files.script, files.script_sha256), (files.state, files.state_sha256)):
        for resize in ("clean", "legacy"):  # at 299 px both change nothing
            extractor = load(path.parent, resize)
            assert (extractor.name, extractor.suffix, extractor.sha256) == ("inception-2015", "inception", sha256)
            assert relative_error(extractor.features(images), expected) < EQUAL
    assert "built otherwise" not in capsys.readouterr().out


def test_resizers_have_their_names_and_their_numbers(files: Files) -> None:
    images = noise(2, 1)[..., :64, :80]
    clean, legacy = load(files.state.parent, "clean"), load(files.state.parent, "legacy")
    assert (clean.resizer, legacy.resizer) == ("pil-bicubic-antialias-299", "tf1-bilinear-299")
    assert relative_error(clean.features(images), legacy.features(images)) > 1e-3


def test_classes_are_those_of_the_file_without_bias(files: Files) -> None:
    weight = torch.load(files.state, weights_only=True)["fc.weight"]
    features = torch.randn([5, 2048], generator=torch.Generator().manual_seed(0))
    for path in (files.script, files.state):
        classify = load(path.parent).classify
        assert classify is not None
        assert relative_error(classify(features), features @ weight.T) < 1e-6


def test_a_script_that_computes_something_else_runs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tensors fit, but its average pools count padding."""
    path = tmp_path / module.INCEPTION_FILE
    monkeypatch.setattr(module, "INCEPTION_SHA256", write_full_inception(path, pools=False)[0])
    images = noise(2, 1)
    extractor = load(tmp_path)
    assert "is built otherwise (features differ by" in capsys.readouterr().out
    assert relative_error(extractor.features(images), features_of_the_script(path, images)) < EQUAL
    assert extractor.classify is not None
    with pytest.raises(WeightsError, match=f"Put {module.STATE_FILE} into"):
        load(tmp_path, precision="bfloat16")


def test_the_state_dict_is_preferred_and_never_replaced_when_damaged(files: Files, tmp_path: Path) -> None:
    (tmp_path / module.INCEPTION_FILE).symlink_to(files.script)
    (tmp_path / module.STATE_FILE).symlink_to(files.state)
    assert load(tmp_path).sha256 == files.state_sha256
    (tmp_path / module.STATE_FILE).unlink()
    (tmp_path / module.STATE_FILE).write_bytes(files.state.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=f"{module.STATE_FILE}: sha256 is .* expected {files.state_sha256}"):
        load(tmp_path)


def test_a_missing_file_is_downloaded_whole_or_not_at_all(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STATE_URL", files.state.as_uri())
    assert load(tmp_path / "weights").features(noise(1, 0)).shape == (1, 2048)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [module.STATE_FILE]

    monkeypatch.setattr(module, "STATE_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="Try again later"):
        load(tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir()) == []


def test_bfloat16_is_close_and_not_equal(files: Files) -> None:
    """Eight bits of mantissa through 48 layers of random weights: measured 0.05 of the largest feature."""
    images = noise(2, 1)
    exact, extractor = load(files.state.parent).features(images), load(files.state.parent, precision="bfloat16")
    features = extractor.features(images)
    assert (extractor.precision, features.dtype) == ("bfloat16", torch.float32)
    assert 1e-3 < relative_error(features, exact) < 0.2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of inductor, about speed
def test_compiled_is_eager(files: Files) -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8))
    except TorchDynamoException as error:
        pytest.skip(f"no compiler here: {str(error).splitlines()[0]}")
    images = noise(2, 1)
    extractor = load(files.state.parent, compiled=True)
    assert relative_error(extractor.features(images), load(files.state.parent).features(images)) < EQUAL


@pytest.mark.slow
def test_the_published_files_are_one_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the real weights, where both files are at hand."""
    folder = Path(__file__).parents[2] / "data" / "weights"
    script, state = folder / module.INCEPTION_FILE, folder / module.STATE_FILE
    if not (script.exists() and state.exists()):
        pytest.skip("needs both files in data/weights")
    images = noise(4, 1)
    expected = features_of_the_script(script, images)
    for path in (script, state):
        alone = tmp_path / path.suffix
        alone.mkdir()
        (alone / path.name).symlink_to(path)
        assert relative_error(load(alone).features(images), expected) < EQUAL
    assert "built otherwise" not in capsys.readouterr().out
