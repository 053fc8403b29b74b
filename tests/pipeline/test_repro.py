"""`dvc repro` and `dvc exp run` as users use them: what runs, what comes from the cache, what is shown."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.clone import Clone, stages_run

Copy = Callable[..., Clone]
ALL = ["digits", "prepare", "stats", "train", "sample", "fid", "report"]


def shown(clone: Clone) -> dict[str, dict[str, Any]]:
    """Rows of `dvc exp show --json`: name -> data, of the workspace, the branch and its experiments."""
    rows = json.loads(clone.dvc("exp", "show", "--json"))
    found = {row["name"] or row["rev"]: row["data"] for row in rows}
    for row in rows:
        found |= {experiment["name"]: experiment["revs"][0]["data"] for experiment in row.get("experiments") or []}
    return found


def metric(data: dict[str, Any], file: str) -> dict[str, Any]:
    values: dict[str, Any] = data["metrics"][file]["data"]
    return values


def test_the_first_repro_runs_all_and_leaves_git_clean(copy: Copy, finished: Clone) -> None:
    clone = copy()
    assert stages_run((finished.path.parent / "first.log").read_text()) == ALL
    assert clone.run("git", "status", "--porcelain") == ""
    tracked = clone.run("git", "ls-files", "data", "models", "results", "runs").split()
    assert sorted(tracked) == ["data/README.md", "data/standin.pt", "results/fid.json"]
    fid = json.loads((clone.path / "results" / "fid.json").read_text())
    assert fid["fd_standin"] > 0
    assert "fid" not in fid
    assert fid["protocol"]["num_fake"] == 100


def test_a_second_repro_runs_nothing(copy: Copy) -> None:
    assert stages_run(copy().dvc("repro")) == []


def test_editing_run_values_runs_nothing(copy: Copy) -> None:
    clone = copy()
    clone.set(run__keep_states=5, run__state_kimg=1, run__workers=2, run__cpu_threads=2)
    assert stages_run(clone.dvc("repro")) == []


def test_editing_a_metric_never_trains(copy: Copy) -> None:
    clone = copy()
    models = clone.models()
    with (clone.path / "ganops" / "metrics" / "frechet.py").open("a") as file:
        file.write("\n# a remark\n")
    assert stages_run(clone.dvc("repro")) == ["fid"]  # the same numbers: no new report
    with (clone.path / "ganops" / "metrics" / "features.py").open("a") as file:
        file.write("\n# a remark\n")
    output = clone.dvc("repro")
    assert stages_run(output) == ["stats", "fid"]
    assert clone.models() == models


def test_editing_values_and_exp_run(copy: Copy) -> None:
    """By hand, then with -S; both rows are shown; going back trains nothing."""
    clone = copy()
    clone.set(sample__seed=5)
    assert stages_run(clone.dvc("exp", "run", "-n", "seed5")) == ["sample", "fid", "report"]
    clone.commit()
    before = clone.models()
    output = clone.dvc("exp", "run", "-n", "gamma", "-S", "train.r1_gamma=1")
    assert stages_run(output) == ["train", "sample", "fid", "report"]
    assert clone.models() != before
    rows = shown(clone)
    for data, gamma in ((rows["gamma"], 1), (rows["main"], 3.0)):
        assert data["params"]["params.yaml"]["data"]["train"]["r1_gamma"] == gamma
        assert metric(data, "results/fid.json")["fd_standin"] > 0
        assert metric(data, "results/train/metrics.json")["kimg"] == 2
    assert len(list((clone.path / "runs").iterdir())) == 2
    output = clone.dvc("exp", "run", "-n", "back", "-S", "train.r1_gamma=3.0")
    assert "is cached - skipping run" in output
    assert "train" not in stages_run(output)
    assert clone.models() == before


def test_a_raised_total_continues_and_equals_one_go(copy: Copy) -> None:
    clone = copy()
    clone.set(train__total_kimg=3)
    output = clone.dvc("repro")
    assert stages_run(output) == ["train", "sample", "fid", "report"]
    assert "continues at kimg 2" in output
    assert clone.kimgs() == [0.52, 1.0, 1.52, 2.0, 2.52, 3.0]
    extended = clone.models()
    clone.remove_runs()
    shutil.rmtree(clone.path / ".dvc" / "cache")
    (clone.path / "dvc.lock").unlink()
    assert "starts, ends at kimg 3" in clone.stage("train")
    assert clone.models() == extended


def test_a_clone_without_run_directory_continues_from_the_cache(copy: Copy) -> None:
    clone = copy()
    clone.set(train__total_kimg=3)
    expected = clone.path.parent / "expected"
    shutil.copytree(clone.path, expected)
    Clone(expected).dvc("repro", "train")
    clone.remove_runs()
    output = clone.dvc("repro", "train")
    assert "continues at kimg 2" in output
    assert clone.models() == Clone(expected).models()
    assert clone.kimgs() == Clone(expected).kimgs()
    assert len(list((clone.path / "results" / "train" / "grids").iterdir())) == 4


def test_no_stage_writes_into_the_cache(finished: Clone) -> None:
    objects = [path for path in (finished.path / ".dvc" / "cache" / "files" / "md5").rglob("*") if path.is_file()]
    assert len(objects) > 15
    for path in objects:
        name = path.parent.name + path.name.removesuffix(".dir")
        assert hashlib.md5(path.read_bytes()).hexdigest() == name, path


def test_train_is_in_the_run_cache(finished: Clone) -> None:
    """An uncached output, `persist` or a value in `cmd` would switch DVC's run cache off for the stage, silently."""
    text = "".join(
        path.read_text() for path in (finished.path / ".dvc" / "cache" / "runs").rglob("*") if path.is_file()
    )
    for stage in ALL:
        if stage != "fid":
            assert f"stages.{stage}" in text


def test_a_first_repro_that_fails_in_train_leaves_git_clean(copy: Copy) -> None:
    clone = copy()
    clone.remove_runs()
    shutil.rmtree(clone.path / ".dvc" / "cache")
    for name in ("models", "data/shards", "results"):
        shutil.rmtree(clone.path / name)
    (clone.path / "dvc.lock").unlink()
    clone.set(train__precision="float16", train__low_precision_resolutions=1, run__device="cpu")
    clone.commit()
    output = clone.dvc("repro", ok=False)
    assert "train.precision=float16 needs a CUDA device" in output
    assert "Traceback" not in output.split("train: ")[1].split("ERROR")[0]
    untracked = [line for line in clone.run("git", "status", "--porcelain").splitlines() if line.startswith("??")]
    assert untracked == ["?? dvc.lock"]


def test_users_mistakes_end_in_one_line(copy: Copy) -> None:
    clone = copy()
    text = (clone.path / "params.yaml").read_text()
    (clone.path / "params.yaml").write_text(text.replace("  r1_gamma:", "  r1_gama:"))
    output = clone.stage("train", ok=False)
    assert output.strip() == "train: params.yaml: train.r1_gama is not a known key. Did you mean train.r1_gamma?"


@pytest.mark.parametrize("way", ["--temp", "--queue"])
def test_experiments_outside_the_workspace(copy: Copy, way: str) -> None:
    """They use the parent repository's run directory, so that killing them loses nothing."""
    clone = copy()
    clone.set(train__total_kimg=2.5)
    if way == "--temp":
        clone.dvc("exp", "run", "--temp", "-n", "away")
    else:
        clone.dvc("exp", "run", "--queue", "-n", "away")
        clone.dvc("exp", "run", "--run-all")
    assert sorted(int(path.stem) for path in clone.states())[-1] == 2520
    assert metric(shown(clone)["away"], "results/train/metrics.json")["kimg"] == 2.52
    assert Path(clone.path / "models" / "last.safetensors").exists()
