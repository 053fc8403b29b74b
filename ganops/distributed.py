"""Devices, how ranks meet and watch over each other, and seeds that are a pure function of what they are for.

Nothing in ganops keeps a random state: a generator is made where it is used, from (seed, what, where in
training), so a resumed run draws what an uninterrupted one would have drawn, and any number of ranks draws the same.
"""

import ctypes
import datetime
import hashlib
import itertools
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import threadpoolctl
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ganops.config import Params
from ganops.errors import GanopsError, Interrupted, LostContact, ParamsError, RunError
from ganops.launch import is_launched, local_rank, local_world_size, print_error, rank, world_size, write_report

T = TypeVar("T")

BEAT_SEC = 1.0  # each rank gives a sign of life so often
SILENT_SEC = 20.0  # and is given up after so long without one; with the launcher's 30 s to kill it, under a minute
COLLECTIVE_SEC = 600.0  # for one that is alive but never arrives; torch's own limit for NCCL
POLL_SEC = 0.02

_talks = [0]  # how often this rank has talked to the others
_first_calls = itertools.count()
_stores: list[TCPStore] = []  # the main thread's connection


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from `parts`, e.g. (train.seed, "Gmain", nimg, micro_batch). Different parts, unrelated seeds."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(device: torch.device, *parts: int | str) -> torch.Generator:
    """A fresh generator on `device`, seeded by `derive_seed(*parts)`. CPU and CUDA streams differ."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def select_device(device: str, cpu_threads: int) -> torch.device:
    """The device of this rank for `run.device` (auto, cpu, cuda); sets the CPU threads of this process, torch's and numpy's.

    Raises:
        ParamsError: `run.device: cuda` on a machine without a usable CUDA device, or fewer devices than ranks.
    """
    torch.set_num_threads(cpu_threads)
    threadpoolctl.threadpool_limits(cpu_threads)  # numpy's BLAS too: its sums depend on the number of threads
    keep_freed_memory()
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ParamsError("run.device=cuda, but torch finds no CUDA device here. Set run.device: auto or cpu.")
    if not available or device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count < local_world_size() and count > 1:
        raise ParamsError(
            f"{local_world_size()} ranks on this node, but {count} GPUs are visible. Start {count} ranks."
        )
    chosen = torch.device("cuda", local_rank() % count)  # count 1: Slurm shows each task its own GPU only
    torch.cuda.set_device(chosen)
    return chosen


def keep_freed_memory() -> None:
    """Lets glibc keep freed tensors instead of giving every large one back to the kernel.

    Each large tensor otherwise costs its page faults again: measured, feature extraction at 128 px takes twice as long.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc; musl has none
            for parameter, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 256 << 20)):  # mmap, trim, top pad
                libc.mallopt(parameter, value)


def configure_numerics(tf32: bool, deterministic: bool) -> None:
    """Sets what CUDA may do to float32 (`train.tf32`) and whether it must repeat itself bit for bit.

    Without `deterministic`, sums in CUDA's backward passes are in any order and a resumed run is equal only to rounding.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic  # it chooses by timing; shapes stay the same through a run
    # Sums of products in 16 bits are long: up to a million pixels for a gradient of styles.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it for determinism
    # As use_deterministic_algorithms, but without its import of torch._inductor, which takes two seconds of every start.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # It would write NaN into all new memory first, which costs half of what a memory-bound kernel does; that our kernels
    # leave nothing unwritten is tested.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def deal(count: int, number: int, ranks: int) -> range:
    """Which of `count` things rank `number` of `ranks` gets: in blocks, the first ranks one more. 8 over 3: 3, 3, 2."""
    each, more = divmod(count, ranks)
    start = number * each + min(number, more)
    return range(start, start + each + (number < more))


@contextmanager
def joined_ranks(stage: str, params: Params) -> Iterator[None]:
    """Joins the ranks that a launcher has started, and watches over them until the block ends.

    Raises:
        RunError: another rank runs another stage, other code or other params; or they do not meet.
        LostContact: a rank has died or does not answer.
    """
    if world_size() == 1:
        yield
        return
    device = select_device(params.run.device, params.run.cpu_threads)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=COLLECTIVE_SEC))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(f"the ranks did not meet at {where} ({error}). docs/cluster.md says what must be set.") from None
    ended = threading.Event()
    watch = threading.Thread(target=_watch_next_rank, args=(ended,), name="watch", daemon=True)
    watch.start()
    try:
        _compare_ranks(stage, params, device)
        yield
        on_first_rank(lambda: None)  # which may have much to write yet, longer than a collective waits
        with contact():
            dist.barrier()  # nobody leaves while another still needs it
        dist.destroy_process_group()  # only here: after a failure it might wait for the dead
    except LostContact as error:
        raise LostContact(f"{error} {_find_lost()}") from None
    except Interrupted:
        raise
    except GanopsError as error:
        with suppress(RuntimeError):
            _main_store().set("ganops/error", f"Rank {rank()} on {socket.gethostname()}: {error}")
        raise
    finally:
        ended.set()
        watch.join()


def _find_lost() -> str:
    """After contact was lost: which rank had an error, gives no more signs of life, or has not arrived."""
    try:
        store = _main_store()
        before = _signs_of_life(store)
        time.sleep(3 * BEAT_SEC)  # also for a rank that is about to tell its error
        if store.check(["ganops/error"]):
            return str(store.get("ganops/error").decode())
        now = _signs_of_life(store)
        gone = [number for number, sign in now.items() if sign == before[number]]
        late = [number for number, sign in now.items() if sign[1] < now[rank()][1]]
        hosts = {number: store.get(f"ganops/host/{number}").decode() for number in [*gone, *late] if now[number][0]}
    except RuntimeError:
        return "The ranks' store does not answer either: the first node's launcher is gone."
    what, found = ("is gone", gone) if gone else ("has not arrived", late)
    return "; ".join(f"Rank {number} ({hosts.get(number, 'never seen')}) {what}" for number in found) + "."


def _signs_of_life(store: TCPStore) -> dict[int, tuple[int, int]]:
    """Rank -> its beats so far and how often it has talked to the others; zeros before the first."""
    signs = {}
    for number in range(world_size()):
        key = f"ganops/beat/{number}"
        beat, talks = store.get(key).decode().split() if store.check([key]) else ("0", "0")
        signs[number] = int(beat), int(talks)
    return signs


def _open_store() -> TCPStore:
    """A connection of its own to the key-value store through which the ranks have met: one per thread."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = datetime.timedelta(seconds=SILENT_SEC)
    return TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)


def _watch_next_rank(ended: threading.Event) -> None:
    """Gives signs of life, and looks for those of the next rank: in a ring, somebody living watches every rank.

    A dead rank is noticed at once by whoever talks to it; this is for one that hangs, or whose machine is gone.
    """
    other = (rank() + 1) % world_size()
    reason, where = "", "an unknown host"
    try:
        store = _open_store()
        store.set(f"ganops/host/{rank()}", f"{socket.gethostname()}, process {os.getpid()}")
        seen, since = b"", time.monotonic()
        for beat in itertools.count(1):
            store.set(f"ganops/beat/{rank()}", f"{beat} {_talks[0]}")
            key = f"ganops/beat/{other}"
            now = store.get(key).split()[0] if store.check([key]) else b""
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > SILENT_SEC:
                where = store.get(f"ganops/host/{other}").decode() if seen else where
                reason = f"has given no sign of life for {SILENT_SEC:g} seconds"
                break
            if ended.wait(BEAT_SEC):
                return
    except RuntimeError as error:  # dist.DistError: the store is gone, or does not answer
        _end_without_store(ended, str(error))
        return
    message = f"rank {other} ({where}) {reason}. What was saved is whole. Look at that machine, then start again."
    if not write_report("silent", message, 1):
        print_error(f"rank {rank()}: {message}")
    os._exit(1)  # the main thread waits in a collective and cannot be interrupted


def _end_without_store(ended: threading.Event, error: str) -> None:
    """The launcher that kept the store is gone. Rank 0 may still save; the others leave it time for a step."""
    if not ended.wait(BEAT_SEC) and not is_launched():
        os.kill(os.getpid(), signal.SIGTERM)  # as the kernel does for ranks of our own launcher: save and end
    if not ended.wait(COLLECTIVE_SEC if rank() == 0 else 2 * SILENT_SEC):
        message = f"the ranks' store at {os.environ['MASTER_ADDR']} does not answer ({error}). What was saved is whole."
        print_error(f"rank {rank()}: {message}")
        os._exit(1)


def _compare_ranks(stage: str, params: Params, device: torch.device) -> None:
    """Refuses ranks that would compute something else."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    own = {
        "the stage": stage,
        "params.yaml": hashlib.sha256(params.model_dump_json().encode()).hexdigest()[:16],
        "the code of ganops": code.hexdigest()[:16],
        "torch": torch.__version__,
    }
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    everybody: list[tuple[str, str, dict[str, str]]] = [("", "", {})] * world_size()
    with contact():
        dist.all_gather_object(everybody, (socket.gethostname(), gpu, own))
    host, _, first = everybody[0]
    gpus = [(other_host, other_gpu) for other_host, other_gpu, _ in everybody]
    for number, (other_host, _, other) in enumerate(everybody):
        if gpu and gpus.index(gpus[number]) != number:
            raise RunError(
                f"ranks {gpus.index(gpus[number])} and {number} share a GPU of {other_host}. Start one per GPU."
            )
        for key, value in first.items():
            if other[key] != value:
                raise RunError(
                    f"rank {number} on {other_host}: {key} is {other[key]}, but {value} on {host} (rank 0). "
                    "All ranks need the same files."
                )


@contextmanager
def contact() -> Iterator[None]:
    """Turns what torch raises when another rank is gone into one clear error; counts how often ranks have talked.

    Raises:
        LostContact: what was raised within is a RuntimeError, as those of torch's collectives are.
    """
    try:
        yield
        _talks[0] += 1
    except RuntimeError as error:  # gloo raises it, and dist.DistError is one
        text = str(error).split("\n")[0][:200]
        raise LostContact(f"lost contact with another rank ({text}). What was saved is whole.") from None


def on_first_rank(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank. The others wait as long as it takes, without a time limit.

    Every rank must come here. The result travels as a pickle between the processes of one run.
    """
    if world_size() == 1:
        return work()
    store = _main_store()
    key = f"ganops/first/{next(_first_calls)}"
    if rank() == 0:
        try:
            result = work()
        except BaseException:
            with suppress(RuntimeError):
                store.set(key, "")  # the others need not wait for more
            raise
        with contact():
            store.set(key, pickle.dumps(result))  # type: ignore[arg-type]  # bytes are taken as they are
        return result
    with contact():
        while not store.check([key]):
            time.sleep(POLL_SEC)
        found = store.get(key)
    if not found:
        raise LostContact("rank 0 has stopped.")
    value: T = pickle.loads(found)
    return value


def _main_store() -> TCPStore:
    if not _stores:
        _stores.append(_open_store())
    return _stores[0]
