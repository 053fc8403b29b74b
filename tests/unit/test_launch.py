"""Ranks: how many, Slurm's environment, and what is said of a failure."""

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from ganops import launch
from ganops.config import Params, load_params
from ganops.errors import Interrupted, ParamsError, RunError
from ganops.launch import (
    Report,
    adopt_slurm,
    await_meeting,
    gather_nodes,
    raise_cause,
    ranks_per_node,
    read_reports,
    slurm_first_host,
    slurm_local_tasks,
    write_report,
)
from ganops.training.loop import check_ranks, micro_batches
from tests.unit.tiny import ROOT


def params_with(**run: object) -> Params:
    params = load_params(ROOT / "params.yaml")
    return params.model_copy(update={"run": params.run.model_copy(update=run)})


@pytest.mark.parametrize(
    ("gpus", "nodes", "visible", "most", "expected"),
    [
        ("auto", 1, 0, 100, 1),  # no GPU: one process, as ever
        ("auto", 1, 8, 100, 8),
        ("auto", 1, 8, 3, 3),  # as many as there is work for
        ("auto", 2, 8, 6, 3),
        (3, 1, 0, 100, 3),  # processes on the CPU
        (3, 1, 8, 100, 3),
        (4, 1, 0, 2, 2),
        (4, 1, 4, 1, 1),
    ],
)
def test_ranks_per_node(
    monkeypatch: pytest.MonkeyPatch, gpus: object, nodes: int, visible: int, most: int, expected: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    assert ranks_per_node(params_with(gpus=gpus, nodes=nodes), most) == expected


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ParamsError, match=r"run\.gpus=3, but 2 GPUs are visible here"):
        ranks_per_node(params_with(gpus=3), 100)
    assert ranks_per_node(params_with(gpus=3, device="cpu"), 100) == 3


@pytest.mark.parametrize(
    ("changes", "most", "said"),
    [
        ({}, 2, "train.batch_size=64 and train.batch_gpu=32 make only 2 micro-batches"),
        (
            {"batch_size_by_resolution": {8: 32}},
            1,
            "train.batch_size=32 and train.batch_gpu=32 (their values at 8 px) make only 1 micro-batches",
        ),
    ],
)
def test_more_ranks_than_micro_batches(changes: dict[str, Any], most: int, said: str) -> None:
    params = load_params(ROOT / "params.yaml")
    grows = {"lod_initial_resolution": 4} if changes else {}
    train = params.train.model_copy(update={"batch_size": 64, "batch_gpu": 32, **grows, **changes})
    params = params.model_copy(update={"train": train})
    assert micro_batches(params) == most
    check_ranks(params, most)
    with pytest.raises(RunError, match=re.escape(f"{most + 1} ranks, but {said}")):
        check_ranks(params, most + 1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node[03-06,9],gpu1", "node03"), ("gpu1,gpu2", "gpu1"), ("localhost", "localhost"), ("a-[1,3]-ib", "a-1-ib")],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert slurm_first_host(nodes) == first


@pytest.mark.parametrize(("node", "tasks"), [(0, 2), (1, 2), (2, 2), (3, 1)])
def test_tasks_of_a_node_in_slurms_list(node: int, tasks: int) -> None:
    assert slurm_local_tasks("2(x3),1", node) == tasks


SLURM = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "1234",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_ID": "0",
}  # fmt: skip


def test_slurm_tasks_become_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(SLURM))
    adopt_slurm()
    assert (launch.rank(), launch.world_size(), launch.local_rank(), launch.local_world_size()) == (5, 8, 1, 4)
    assert os.environ["MASTER_ADDR"] == "n1"
    assert 20000 <= int(os.environ["MASTER_PORT"]) < 40000


@pytest.mark.parametrize(
    "changes",
    [{"SLURM_STEP_NUM_TASKS": "1"}, {"DVC_ROOT": "/repository"}, {"RANK": "0", "WORLD_SIZE": "2"}],
    ids=["one task", "under DVC, which runs once", "torchrun was faster"],
)
def test_not_every_process_under_slurm_is_a_rank(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]) -> None:
    monkeypatch.setattr(os, "environ", SLURM | changes)
    before = dict(os.environ)
    adopt_slurm()
    assert dict(os.environ) == before


def test_a_batch_script_is_not_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """There SLURM_PROCID and SLURM_NTASKS are set too, but nothing runs beside it."""
    monkeypatch.setattr(os, "environ", {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"})
    adopt_slurm()
    assert not launch.is_rank()


def report(rank: int, kind: str, message: str = "", code: int = 1, time: float = 0.0) -> Report:
    return Report(rank, kind, message, code, "host", 100 + rank, time)


def cause(reports: list[Report], exits: dict[int, int], received: list[int] | None = None) -> str:
    with pytest.raises((RunError, Interrupted)) as error:
        raise_cause(reports, exits, received or [])
    return f"{type(error.value).__name__}: {error.value}"


def test_the_cause_is_told_and_not_its_consequences() -> None:
    lost = report(0, "lost", "lost contact", time=1.0)
    assert (
        cause([lost, report(1, "error", "disk full", time=2.0)], {0: 1, 1: 1}) == "RunError: rank 1 on host: disk full"
    )
    assert (
        cause([lost, report(1, "crash", "ZeroDivisionError: x")], {})
        == "RunError: rank 1 on host: ZeroDivisionError: x"
    )
    assert cause([report(0, "error", "wrong data")], {0: 1, 1: -15}) == "RunError: wrong data"
    assert "rank 1 on " in cause([lost], {0: 1, 1: -9})
    assert "killed by SIGKILL (out of memory?" in cause([lost], {0: 1, 1: -9})
    assert "rank 2 on " in cause([lost], {0: -15, 1: -15, 2: -11})  # SIGTERM is how the launcher ends the others
    hung = report(0, "silent", "rank 1 has given no sign of life")
    assert cause([hung], {0: 1, 1: -9}) == "RunError: rank 1 has given no sign of life"  # killed because it hung
    early = report(1, "silent", "rank 0 has given no sign of life")
    assert "rank 0 on " in cause([early], {0: -9, 1: 1})  # it did not hang: it was the first to end
    assert cause([lost], {0: 1, 1: 1}) == "RunError: rank 0 on host: lost contact"
    assert cause([], {0: 3}) == "RunError: rank 0 ended with exit code 3"


def test_an_interruption_is_one() -> None:
    stopped = [report(1, "interrupted", "by rank 1", 143), report(0, "interrupted", "saved", 143)]
    assert cause(stopped, {0: 143, 1: 143}) == "Interrupted: saved"
    assert cause([], {0: -2, 1: -15}, [signal.SIGINT]).startswith("RunError: rank 0")  # not by ours: somebody else's
    assert cause([report(0, "lost")], {0: 1}, [signal.SIGTERM]) == "Interrupted: stopped by SIGTERM"
    assert cause([stopped[0], report(0, "error", "disk full")], {}) == "RunError: disk full"


def test_reports_reach_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not write_report("error", "nobody listens", 1)
    monkeypatch.setenv(launch.REPORTS, str(tmp_path))
    monkeypatch.setenv(launch.LAUNCHER, "1")
    assert not write_report("error", "the launcher is gone", 1)
    monkeypatch.setenv(launch.LAUNCHER, str(os.getppid()))
    monkeypatch.setenv("RANK", "3")
    assert write_report("error", "a message", 1)
    (found,) = read_reports(tmp_path)
    assert (found.rank, found.kind, found.message, found.code, found.pid) == (3, "error", "a message", 1, os.getpid())


def test_nodes_meet() -> None:
    """The first node tells the others what to run, where torch's store will be, and their numbers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    params = params_with(nodes=3, rendezvous=f"127.0.0.1:{port}")
    met = []
    threads = [threading.Thread(target=lambda: met.append(await_meeting(params))) for _ in range(2)]
    for thread in threads:
        thread.start()
    own = gather_nodes("train", params, 4)
    for thread in threads:
        thread.join()
    assert sorted(meeting.node for meeting in [own, *met]) == [0, 1, 2]
    assert {(m.stage, m.address, m.port, m.most) for m in [own, *met]} == {("train", "127.0.0.1", own.port, 4)}


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.create_server(("", 0)) as taken:
        params = params_with(nodes=2, rendezvous=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(RunError, match="Start `python -m stages.node` on each of them"):
            gather_nodes("train", params, 1)


def test_another_version_at_the_first_node_is_told() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        params = params_with(nodes=2, rendezvous=f"127.0.0.1:{server.getsockname()[1]}")

        def answer() -> None:
            call, _ = server.accept()
            with call:
                call.recv(4096)
                call.sendall(b'{"something": "else"}')

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RunError, match="another ganops than this one answers there"):
            await_meeting(params)
        thread.join()
