"""Ranks: how a stage becomes several processes, and what is said when one of them fails.

A stage starts its ranks itself, through torch's elastic launcher, or finds itself a rank that torchrun or Slurm has
started. Either way a rank is a process with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its
environment. Under the stage's own launcher each rank leaves a report of how it ended, and the launcher says one thing.
"""

import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from ganops.config import Params
from ganops.errors import Interrupted, ParamsError, RunError

LAUNCHER = "GANOPS_LAUNCHER"  # from the launcher to its ranks: its process id
REPORTS = "GANOPS_REPORTS"  # and the folder for their reports
JOIN_SEC = 600  # how long the first node waits for the others to call
MEET_SEC = 60  # and then for their launchers
CALL_SEC = 0.5  # how often they call
HELLO = b"ganops node"


def rank() -> int:
    """This process's number among all ranks; 0 without ranks. Only rank 0 speaks and writes."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many ranks there are, on all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number among the ranks of its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many ranks this node has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_rank() -> bool:
    """Whether a launcher (ours, torchrun, Slurm's srun) started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def adopt_slurm() -> None:
    """Under `srun` with several tasks: takes over Slurm's numbers in torch's names.

    Not in a batch script, where SLURM_PROCID is set too but no tasks run beside it; and not under DVC, which runs once.
    """
    slurm = os.environ
    if is_rank() or "DVC_ROOT" in slurm or int(slurm.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    tasks = slurm.get("SLURM_STEP_TASKS_PER_NODE") or slurm.get("SLURM_TASKS_PER_NODE") or "1"
    step = int(slurm.get("SLURM_JOB_ID", "0")) * 8 + int(slurm.get("SLURM_STEP_ID", "0")) % 8
    os.environ |= {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(slurm_local_tasks(tasks, int(slurm.get("SLURM_NODEID", "0")))),
        "MASTER_ADDR": slurm.get("MASTER_ADDR") or slurm_first_host(slurm["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": slurm.get("MASTER_PORT") or str(20000 + step % 20000),
    }


def slurm_first_host(nodes: str) -> str:
    """The first of Slurm's compact list of hosts: "node[03-06,9],gpu1" -> "node03"."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise RunError(f"SLURM_STEP_NODELIST={nodes} names no host. Set MASTER_ADDR to the first node's name.")
    return match[1] + (match[2] or "") + (match[3] or "")


def slurm_local_tasks(tasks_per_node: str, node: int) -> int:
    """Tasks on the node of that number, from Slurm's compact list: ("2(x3),1", 3) -> 1."""
    counts: list[int] = []
    for count, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(count)] * int(repeated or 1)
    return counts[min(node, len(counts) - 1)]


def ranks_per_node(params: Params, most: int) -> int:
    """How many ranks to start on this node, for `run.gpus`.

    Args:
        params: all of params.yaml.
        most: how many ranks the stage has work for, over all nodes.
    Raises:
        ParamsError: `run.gpus` asks for more GPUs than there are.
    """
    run = params.run
    usable = max(most // run.nodes, 1)
    if usable == 1:
        return 1
    visible = 0
    if run.device != "cpu":
        import torch  # not at the top: `digits`, `prepare` and its workers would wait seconds for it

        visible = torch.cuda.device_count()
    if run.gpus == "auto":
        return min(max(visible, 1), usable)
    if visible and run.gpus > visible:
        raise ParamsError(f"run.gpus={run.gpus}, but {visible} GPUs are visible here. Set run.gpus: auto or {visible}.")
    return min(run.gpus, usable)


@dataclass(frozen=True)
class Report:
    """How a rank ended. `kind`: error (a user's), crash (a traceback was printed), silent (it misses another rank, which
    `message` names), lost (a consequence of another's end), interrupted."""

    rank: int
    kind: str
    message: str
    code: int
    host: str
    pid: int
    time: float


def is_launched() -> bool:
    """Whether our own launcher started this rank, and not torchrun or Slurm."""
    return LAUNCHER in os.environ


def has_launcher() -> bool:
    """Whether the launcher that started this rank still lives."""
    return is_launched() and os.getppid() == int(os.environ[LAUNCHER])


def write_report(kind: str, message: str, code: int) -> bool:
    """Leaves this rank's report for the launcher. False without one: then the rank must speak for itself."""
    if not has_launcher():
        return False
    report = Report(rank(), kind, message, code, socket.gethostname(), os.getpid(), time.time())
    path = Path(os.environ[REPORTS]) / f"{local_rank()}.json"
    try:  # not files.write_json: no fsync is needed, and the disk may be full
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(report)))
        temporary.replace(path)
    except OSError:
        return False
    return True


def print_error(line: str) -> None:
    """A line on stderr, whole: in one write, or the lines of torchrun's ranks run into each other."""
    print(f"{line}\n", end="", file=sys.stderr, flush=True)


def is_ended_by_launcher() -> bool:
    """Whether a signal that has come is the launcher's, which ends this rank because another failed."""
    return REPORTS in os.environ and not (Path(os.environ[REPORTS]) / "stop").exists()


def announce_rank() -> None:
    """Tells the launcher this rank's process id, and obeys a signal that came before the rank could hear it.

    Raises:
        Interrupted: the launcher was told to stop, or is gone.
    """
    if REPORTS not in os.environ:
        return
    folder = Path(os.environ[REPORTS])
    if not has_launcher() or not folder.is_dir():
        raise Interrupted("the launcher is gone", signal.SIGTERM)  # it died before this rank asked to be told
    (folder / f"{local_rank()}.pid").write_text(str(os.getpid()))
    if (folder / "stop").exists():
        number = int((folder / "stop").read_text() or signal.SIGTERM)
        raise Interrupted(f"stopped by {signal.Signals(number).name}", number)


@dataclass(frozen=True)
class Meeting:
    """What the nodes of one launch agree on: the stage, the address of torch's store, this node's number."""

    stage: str
    node: int
    address: str
    port: int
    most: int  # ranks per node that there is work for


def gather_nodes(stage: str, params: Params, most: int) -> Meeting:
    """On the first node: waits at `run.rendezvous` until `run.nodes` - 1 others have called, and tells them what to run.

    Raises:
        RunError: the port cannot be listened on, or they did not come.
    """
    address, port = params.run.rendezvous.rsplit(":", 1)
    others = params.run.nodes - 1
    print(f"{stage}: waits for {others} other nodes at {params.run.rendezvous}", flush=True)
    with ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", int(port))))
            with socket.create_server(("", 0)) as probe:
                store_port = probe.getsockname()[1]
            server.settimeout(JOIN_SEC)
            calls: list[socket.socket] = []
            while len(calls) < others:
                call = stack.enter_context(server.accept()[0])
                call.settimeout(MEET_SEC)
                with suppress(OSError):  # others than nodes may knock at a port: they do not know the word
                    if call.recv(len(HELLO)) == HELLO:
                        calls.append(call)
            for node, call in enumerate(calls, 1):
                text = json.dumps(asdict(Meeting(stage, node, address, store_port, most)))
                call.sendall(text.encode())
        except OSError as error:
            raise RunError(
                f"run.nodes={params.run.nodes}: the other nodes did not come to {params.run.rendezvous} ({error}). Start "
                "`python -m stages.node` on each of them, with the same params.yaml."
            ) from None
    return Meeting(stage, 0, address, store_port, most)


def await_meeting(params: Params) -> Meeting:
    """On another node: calls `run.rendezvous` until the first node starts a stage, however long that takes.

    Raises:
        RunError: the first node runs other code.
    """
    address, port = params.run.rendezvous.rsplit(":", 1)
    unknown = False
    while True:
        try:
            with socket.create_connection((address, int(port)), timeout=5) as call:
                call.settimeout(JOIN_SEC)
                call.sendall(HELLO)
                text = b"".join(iter(lambda: call.recv(4096), b""))
            if text:
                return Meeting(**json.loads(text))
        except TypeError:
            raise RunError(
                f"run.rendezvous={params.run.rendezvous}: another ganops than this one answers there. Check out the same "
                "commit on all nodes."
            ) from None
        except socket.gaierror as error:
            if not unknown:  # names may come up later, when a cluster starts
                what = (
                    f"run.rendezvous={params.run.rendezvous}: this machine does not know {address} ({error.strerror})"
                )
                print(f"{what}. Check the name; until it is known, it is tried every {CALL_SEC:g} s", flush=True)
            unknown = True
        except (OSError, ValueError):
            pass  # the first node is between two stages, or not there yet, or somebody else answers there
        time.sleep(CALL_SEC)


def launch(name: str, params: Params, count: int, meeting: Meeting | None = None) -> list[int]:
    """Runs `python -m stages.NAME` as `count` ranks on this node, and waits for their end.

    Args:
        name: of the stage.
        params: all of params.yaml.
        count: ranks on this node.
        meeting: with other nodes; None when there are none.
    Returns:
        Signals that came too late to interrupt anything.
    Raises:
        Interrupted: a signal came; the ranks have saved what could be saved.
        RunError: a rank failed; names it and its error. Also when the first node was interrupted, and this is another.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(params.run.cpu_threads))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or each lost connection shows its stack
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch").setLevel(logging.CRITICAL)  # the launcher's own tale of each failure, ten lines long
    alone = meeting is None
    config = LaunchConfig(
        min_nodes=params.run.nodes,
        max_nodes=params.run.nodes,
        nproc_per_node=count,
        run_id="ganops",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if meeting is None else f"{meeting.address}:{meeting.port}",
        rdzv_configs={"is_host": True} if meeting is None else {"rank": meeting.node, "timeout": MEET_SEC},
        local_addr="127.0.0.1" if alone else None,
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # SIGINT and SIGTERM are passed on below: its own way kills after 30 seconds
    )
    with tempfile.TemporaryDirectory(prefix="ganops-") as folder, _forward_signals(Path(folder)) as received:
        os.environ |= {LAUNCHER: str(os.getpid()), REPORTS: folder}
        try:
            elastic_launch(config, sys.executable)("-m", f"stages.{name}")
        except ChildFailedError as error:
            exits = {failure: int(what.exitcode) for failure, what in error.failures.items()}
            try:
                raise_cause(read_reports(Path(folder)), exits, received)
            except Interrupted as interruption:
                if meeting is not None and meeting.node and not received:
                    raise RunError(f"interrupted at the first node ({interruption})") from None
                raise
        except (RendezvousError, DistError) as error:
            where = "this machine" if meeting is None else f"{meeting.address}:{meeting.port}"
            raise RunError(f"the launchers of {params.run.nodes} nodes did not meet at {where} ({error}).") from None
        finally:
            del os.environ[LAUNCHER], os.environ[REPORTS]
    return received


@contextmanager
def _forward_signals(folder: Path) -> Iterator[list[int]]:
    """Passes SIGINT and SIGTERM on to the ranks, which save and end; the launcher then ends by itself."""
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        (folder / "stop").write_text(str(number))  # for ranks that are still starting
        pids = [int(path.read_text() or 0) for path in folder.glob("*.pid")]
        for pid in filter(None, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    old = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def read_reports(folder: Path) -> list[Report]:
    """The reports in a folder, by time."""
    reports = [Report(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(reports, key=lambda report: report.time)


def raise_cause(reports: list[Report], exits: Mapping[int, int], received: list[int]) -> None:
    """Raises what ended the ranks: the cause, not its consequences.

    Args:
        reports: of the ranks that could leave one, by time.
        exits: rank -> exit code, negative for a signal; of all that did not end with 0, in the order of their ends.
        received: signals that the launcher was sent.
    """
    by_kind: dict[str, list[Report]] = {kind: [] for kind in ("error", "crash", "silent", "interrupted", "lost")}
    for report in reports:
        by_kind[report.kind].append(report)
    own = by_kind["error"] + by_kind["crash"]
    if by_kind["interrupted"] and not own:
        first = min(by_kind["interrupted"], key=lambda report: report.rank)
        raise Interrupted(first.message, first.code - 128)
    if own:
        where = "" if own[0].rank == 0 else f"rank {own[0].rank} on {own[0].host}: "
        raise RunError(where + own[0].message)
    told = {report.rank for report in reports}
    killed = {number: -code for number, code in exits.items() if code < 0 and number not in told}
    # A rank that hangs is killed only after another has given it up; one that was killed is the first to end.
    if by_kind["silent"] and next(iter(exits), None) not in killed:
        raise RunError(by_kind["silent"][0].message)
    if killed:  # SIGTERM last: that is how the launcher ends the others
        number = min(killed, key=lambda number: (killed[number] == signal.SIGTERM, number))
        signum = signal.Signals(killed[number])
        hint = " (out of memory? `dmesg` would say)" if signum == signal.SIGKILL else ""
        raise RunError(
            f"rank {number} on {socket.gethostname()} was killed by {signum.name}{hint}. "
            "What was saved is whole; the same command continues from it."
        )
    if received:
        raise Interrupted(f"stopped by {signal.Signals(received[0]).name}", received[0])
    if by_kind["lost"]:
        raise RunError(f"rank {by_kind['lost'][0].rank} on {by_kind['lost'][0].host}: {by_kind['lost'][0].message}")
    raise RunError("; ".join(f"rank {number} ended with exit code {code}" for number, code in sorted(exits.items())))
