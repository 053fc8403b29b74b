"""Ranks on two nodes, started in each of the ways docs/cluster.md names, give the bytes of one process."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.pipeline.clone import TIMEOUT_SEC, Clone, environment, free_port, survivors, wait_for
from tests.pipeline.test_kill import assert_equal_results
from tests.pipeline.test_resume import start_over

Copy = Callable[..., Clone]
TRAIN = (sys.executable, "-m", "stages.train")


def files(clone: Clone, *folders: str) -> dict[str, str]:
    """sha256 of each file in these folders."""
    paths = [path for folder in folders for path in sorted((clone.path / folder).rglob("*")) if path.is_file()]
    assert paths
    return {str(path.relative_to(clone.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def assert_both_end_well(processes: list[subprocess.Popen[str]]) -> list[str]:
    outputs = [process.communicate(timeout=TIMEOUT_SEC)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return outputs


@pytest.mark.slow
def test_a_node_joins_every_stage(copy: Copy, finished: Clone) -> None:
    """`python -m stages.node` waits through two stages, trains and samples with the first node, and ends on Ctrl-C."""
    clone = copy()
    start_over(clone)
    for folder in ("data/samples", "results/samples"):
        shutil.rmtree(clone.path / folder)
    clone.set(run__nodes=2, run__gpus=1, run__rendezvous=f"127.0.0.1:{free_port()}")
    node = clone.start(sys.executable, "-m", "stages.node")
    output = clone.stage("train")
    assert "waits for 1 other nodes" in output
    assert "on 2 ranks, cpu" in output
    clone.stage("sample")
    node.send_signal(signal.SIGINT)
    said, _ = node.communicate(timeout=TIMEOUT_SEC)
    assert node.returncode == 1
    for line in ("stage train, 1 ranks, as node 1", "stage train has ended", "stage sample has ended", "interrupted"):
        assert f"node: {line}" in said
    wait_for(lambda: not survivors(clone))
    assert_equal_results(clone, finished)
    assert files(clone, "data/samples", "results/samples") == files(finished, "data/samples", "results/samples")


def torchrun(node: int, address: str, port: int) -> tuple[str, ...]:
    where = ("--nnodes=2", f"--node-rank={node}", f"--master-addr={address}", f"--master-port={port}")
    return ("torchrun", *where, "--nproc-per-node=1", "-m", "stages.train")


@contextmanager
def two_hosts() -> Iterator[list[str] | None]:
    """Two network namespaces that see only each other: 10.77.0.1 and 10.77.0.2, each on its interface `wire`.

    None where this is not permitted.
    """
    names = [f"ganops{os.getpid()}{side}" for side in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError):
        yield None
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_torchruns(copy: Copy, finished: Clone) -> None:
    """As on two machines with one shared folder: where it is permitted, nothing can go over a common loopback."""
    clone = copy()
    start_over(clone)
    port = free_port()
    with two_hosts() as hosts:
        processes = []
        for node in (0, 1):
            if hosts is None:
                processes.append(clone.start(*torchrun(node, "127.0.0.1", port)))
            else:
                # The interface by name: the machine's own name does not lead to this one.
                inside = ("ip", "netns", "exec", hosts[node], "env", "GLOO_SOCKET_IFNAME=wire")
                processes.append(clone.start(*inside, *torchrun(node, "10.77.0.1", port)))
        outputs = assert_both_end_well(processes)
    assert sum("on 2 ranks, cpu" in output for output in outputs) == 1
    assert_equal_results(clone, finished)


def slurm_task(clone: Clone, task: int, job: int) -> subprocess.Popen[str]:
    """A task as srun would start it, on the node of its number, of job `job`."""
    slurm = {
        "SLURM_PROCID": str(task),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(task),
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_ID": "0",
    }
    return subprocess.Popen(
        TRAIN, cwd=clone.path, env=environment() | slurm, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
def test_two_tasks_of_slurm(copy: Copy, finished: Clone) -> None:
    """Only its environment variables are Slurm's here; the port follows from the job's number."""
    clone = copy()
    start_over(clone)
    job = os.getpid() % 1500  # ports from 20000 to 32000: below those that the kernel gives away
    outputs = assert_both_end_well([slurm_task(clone, task, job) for task in (0, 1)])
    assert "on 2 ranks, cpu" in outputs[0]
    assert "train:" not in outputs[1]  # only rank 0 speaks
    assert_equal_results(clone, finished)
