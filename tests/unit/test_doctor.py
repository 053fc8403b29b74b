"""What `stages.doctor` calls dead, stale or in use, in temporary folders; with real DVC: tests/pipeline/test_doctor.py."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ganops import doctor
from ganops.files import sha256_file
from stages.doctor import examine

ROOT = Path(__file__).parents[2]
SHA, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with this project's params.yaml and one module, outside git and DVC."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "ganops").mkdir()
    (tmp_path / "ganops" / "loop.py").write_text("new = 1\n")
    return tmp_path


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def write_state(path: Path, nimg: int) -> None:
    """A state without tensors but one, by hand: no torch."""
    metadata = {"ganops": json.dumps({"nimg": nimg, "tick_nimg": nimg, "format": 1})}
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"__metadata__": metadata, "pl_mean": tensor}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def make_run(root: Path, name: str, kimg: float | None, used: float, **identity: Any) -> Path:
    """A run of the present values and of old code, unless `identity` says otherwise."""
    path = root / "runs" / (name * 16)
    (path / "states").mkdir(parents=True)
    (path / "lock").touch()
    values = {"params": {"G_lr": 0.004, "a_key_of_old": 1}, "data": "d", "fresh": 0, "code": {"ganops.loop": "old"}}
    (path / "identity.json").write_text(json.dumps(values | identity))
    if kimg is not None:
        write_state(path / "states" / f"{round(kimg * 1000):09d}.safetensors", round(kimg * 1000))
    for file in [*path.rglob("*"), path]:
        os.utime(file, (used, used))
    return path


def stale(root: Path) -> set[str]:
    return {finding.text.split()[0][len("runs/")] for finding in doctor.look_at_runs(root)[1]}


def present_code(root: Path) -> dict[str, str]:
    return {"ganops.loop": sha256_file(root / "ganops" / "loop.py")}


def test_an_empty_folder_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "PROC", tmp_path / "no-proc")
    assert examine(tmp_path, fix=False) == examine(tmp_path, fix=True) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == "All is well."
    assert "has no dvc.yaml" in output
    assert "processes cannot be listed" in output


def test_the_command_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "importtime", "-m", "stages.doctor", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    asked = run("--help")
    assert asked.returncode == 0
    assert "--fix" in asked.stdout
    assert " torch" not in asked.stderr, "slow to import"
    wrong = run("--fi")
    assert wrong.returncode == 2
    assert "usage:" in wrong.stderr
    assert wrong.stdout == ""


def test_runs_of_present_values_and_code_or_furthest_are_kept(root: Path) -> None:
    now = time.time()
    make_run(root, "a", 10, now - 50)  # as far as b, before it
    make_run(root, "b", 20, now - 40)  # the furthest
    make_run(root, "c", 5, now, code=present_code(root))  # the present one
    make_run(root, "d", 5, now - 60, data="other")  # the only one of its data
    make_run(root, "e", 5, now - 10)  # used after the furthest
    make_run(root, "f", None, now - 90)  # nothing in it
    make_run(root, "0", None, now - 90, code=present_code(root))
    assert stale(root) == {"a", "f"}
    assert examine(root, fix=True) == 0
    assert {path.name[0] for path in (root / "runs").iterdir()} == {"b", "c", "d", "e", "0"}
    assert examine(root, fix=False) == 0


def test_other_values_are_another_run(root: Path) -> None:
    now = time.time()
    make_run(root, "a", 10, now - 50, params={"G_lr": 0.004})
    make_run(root, "b", 20, now - 40, params={"G_lr": 0.005})
    make_run(root, "c", None, now, params={"G_lr": 0.005}, code=present_code(root))
    assert stale(root) == {"c"}


def test_runs_in_use_are_never_stale_nor_removed(root: Path) -> None:
    path = make_run(root, "a", None, 1.0)
    findings = doctor.look_at_runs(root)[1]
    with (path / "lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        notes, none = doctor.look_at_runs(root)
        assert not none
        assert "in use" in notes[0]
        mend = findings[0].mend
        assert mend is not None
        with pytest.raises(doctor.GanopsError, match="works now"):
            mend()
    assert path.exists()
    mend()
    assert not path.exists()


def test_truncated_states_do_not_count_and_odd_or_unknown_things_are_kept(root: Path) -> None:
    cut = make_run(root, "a", 10, 1.0) / "states" / "000010000.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    odd = make_run(root, "b", 10, 1.0) / "states" / "000010000.safetensors"
    odd.write_bytes((2).to_bytes(8, "little") + b"{}")
    snapshot = make_run(root, "c", None, 1.0) / "snapshots" / "000010000.safetensors"
    write_state(snapshot, 10_000)
    (root / "runs" / "events").mkdir()  # of TensorBoard, which calls its folder runs too
    make_run(root, "d", 20, 2.0)
    assert stale(root) == {"a"}


def test_without_params_nothing_with_an_identity_is_stale(root: Path) -> None:
    make_run(root, "a", None, 1.0)
    (make_run(root, "b", None, 1.0) / "identity.json").unlink()
    (root / "params.yaml").write_text("train: {\n")
    notes, findings = doctor.look_at_runs(root)
    assert "not valid YAML" in notes[0]
    assert [finding.text[:6] for finding in findings] == ["runs/b"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"write": {"p": {"pid": "x"}}}', '{"read": 3}'])
def test_broken_locks_are_removed(root: Path, text: str) -> None:
    path = root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert examine(root, fix=False) == 1
    assert path.exists()
    assert examine(root, fix=True) == 0
    assert not path.exists()


def test_only_entries_of_ended_processes_are_removed(root: Path, dead_pid: int) -> None:
    living = {"pid": os.getpid(), "cmd": " ".join(doctor.read_process(os.getpid()).words[-2:])}  # type: ignore[union-attr]
    reused = {"pid": os.getpid(), "cmd": "/usr/bin/dvc repro"}
    ended = {"pid": dead_pid, "cmd": "/usr/bin/dvc repro"}
    path = root / ".dvc" / "tmp" / "exps" / "rwlock"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"write": {"a": ended, "b": living}, "read": {"c": [ended, reused], "d": [living]}}))
    text = doctor.look_at_locks(root)[1][0].text
    assert f"pid {dead_pid} (`/usr/bin/dvc repro`) has ended" in text
    assert f"pid {os.getpid()} was `/usr/bin/dvc repro` and is now" in text
    assert examine(root, fix=True) == 0
    assert json.loads(path.read_text()) == {"write": {"b": living}, "read": {"d": [living]}}
    path.write_text(json.dumps({"write": {}}))
    assert doctor.look_at_locks(root) == ([], [])


def test_a_lock_that_dvc_writes_just_now_is_left(root: Path) -> None:
    path = root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    path.touch()
    with path.with_name("rwlock.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        notes, findings = doctor.look_at_locks(root)
    assert "works now" in notes[0]
    assert not findings


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("python3", "/venv/bin/dvc", "exp", "run"), True),
        (("python", "-m", "dvc", "repro"), True),
        (("/usr/bin/python", "/lib/dvc/__main__.py"), True),
        (("vim", "dvc.yaml"), False),
        (("python", "-m", "stages.train"), False),
    ],
)
def test_what_dvc_looks_like(words: tuple[str, ...], expected: bool) -> None:
    assert doctor.is_dvc(words) == expected


def fake_process(proc: Path, pid: int, parent: int, *words: str, **environment: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} (a) b) S {parent} " + "0 " * 17 + "100 0\n")
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    (folder / "environ").write_bytes(b"".join(f"{key}={value}\0".encode() for key, value in environment.items()))


def test_which_stages_are_orphans(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, here = tmp_path / "proc", {"DVC_ROOT": str(root.resolve())}
    train = ("python", "-m", "stages.train")
    fake_process(proc, 1, 0, "init")
    fake_process(proc, 10, 1, *train, **here)  # an orphan
    fake_process(proc, 11, 10, *train, **here)  # its worker
    fake_process(proc, 20, 1, "python", "/bin/dvc", "repro")
    fake_process(proc, 21, 20, "sh", "-c", "python -m stages.train", **here)
    fake_process(proc, 22, 21, *train, **here)
    fake_process(proc, 30, 1, *train)  # of a person, without dvc
    fake_process(proc, 40, 1, *train, DVC_ROOT="/elsewhere")
    fake_process(proc, 50, 1, "sh")
    fake_process(proc, 51, 50, "python", "-m", "stages.fid", **here)  # an orphan below the shell that ran it
    fake_process(proc, 61, 60, *train, **here)  # what is above is hidden
    (proc / "uptime").write_text("1000.0 1000.0\n")
    monkeypatch.setattr(doctor, "PROC", proc)
    found = sorted(finding.text.split(", since")[0] for finding in doctor.look_for_orphans(root)[1])
    assert found == ["stage fid (pid 51", "stage train (pid 10"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([f"checkout: moving from main to {SHA}", "dvc: Restore HEAD to 'main'", "commit: one"], ("main", False)),
        (
            [f"dvc: Restore HEAD to '{SHA}'", "commit: dvc: commit experiment c0ffee",
             f"checkout: moving from main to {SHA}", "dvc: Restore HEAD to 'main'"],
            ("main", True),
        ),
        ([f"checkout: moving from main to {SHA}", "commit: one"], None),  # a CI's or a person's
        (["checkout: moving from main to v1.0", "dvc: Restore HEAD to 'main'"], None),
        ([f"checkout: moving from {OTHER} to {SHA}", f"checkout: moving from main to {OTHER}",
          "dvc: Restore HEAD to 'main'"], None),
        (["commit: mine", f"checkout: moving from main to {OTHER}", "dvc: Restore HEAD to 'main'"], None),
        ([], None),
    ],
)  # fmt: skip
def test_how_dvc_detaches(messages: list[str], expected: tuple[str, bool] | None) -> None:
    assert doctor.left_branch(messages, SHA) == expected


def test_temporary_files(root: Path, dead_pid: int) -> None:
    def temporary(name: str, age: float) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    gone = [
        temporary(f"models/.last.safetensors.{dead_pid}.tmp", 100),
        temporary(f"runs/{'a' * 16}/states/.000000001.safetensors.{os.getpid()}.tmp", 4000),
        temporary("data/shards/.pixels.tmp", 4000),
    ]
    kept = [
        temporary(f"models/.best.safetensors.{os.getpid()}.tmp", 100),  # being written
        temporary(f"models/.best.safetensors.{dead_pid}.tmp", 1),  # perhaps by another machine
        temporary("data/shards/.pixels.tmp2", 4000),
        temporary("data/mine/.notes.tmp", 4000),  # nothing of ours
        temporary("models/plain.12.tmp", 4000),
    ]
    assert examine(root, fix=False) == 1
    assert examine(root, fix=True) == 0
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def test_folders_of_killed_experiments_are_shown_and_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    folder.mkdir(parents=True)
    process = subprocess.Popen(["sleep", "60"], cwd=folder)
    assert examine(root, fix=True) == 0
    assert "may still run" in capsys.readouterr().out
    process.kill()
    process.wait()
    assert examine(root, fix=True) == 1
    assert "`rm -rf .dvc/tmp/exps/standalone/tmpabc`" in capsys.readouterr().out
    assert folder.exists()


def test_what_cannot_be_mended_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> str:
        raise PermissionError(13, "Permission denied")

    def broken(_: Path) -> doctor.Look:
        raise OSError("unreadable")

    findings = [doctor.Finding("one", refuse), doctor.Finding("two"), doctor.Finding("three", lambda: "done", 2000)]
    assert examine(root, True, (lambda _: ([], findings), broken)) == 1
    output = capsys.readouterr().out
    assert "left: [Errno 13] Permission denied" in output
    assert "FOUND: two\n  left to you" in output
    assert "FOUND: not all could be looked at: unreadable" in output
    assert "1 of 4 mended, 2.0 kB freed." in output


def test_sizes() -> None:
    assert [doctor.format_bytes(size) for size in (0, 999, 1234, 56_780_000)] == ["0 B", "999 B", "1.2 kB", "57 MB"]
