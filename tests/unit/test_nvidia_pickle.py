"""Hostile and damaged snapshots: each ends in one line and exit code 1, runs nothing, and takes no memory."""

import io
import os
import pickle
import random
import re
import runpy
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ganops.errors import WeightsError
from ganops.networks.nvidia_pickle import MAX_INSTRUCTIONS, open_pickle, read_pickle, shown
from ganops.networks.nvidia_snapshot import read_generator
from tests.nvidia import Persistent, dumps, foreign_names, nested_kwargs, network, official_tensors, snapshot
from tests.parity.names import golden_generator
from tests.unit.test_networks import make_generator, seeded

ROOT = Path(__file__).parents[2]
# Measured up to 79 MB, for modules that torch imports when a network is first made on the meta device; else up to 30 MB.
MOST_MEMORY = 160 << 20
OLD = b"what stood there before"
DEPTH = 100_000


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Stored:
    """Pickles as a tensor whose storage is `blob`."""

    def __init__(self, blob: bytes, offset: Any, size: Any, stride: Any) -> None:
        self.arguments = Call(torch.storage._load_from_bytes, blob), offset, size, stride, False, {}

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


def blob_of(tensor: torch.Tensor) -> bytes:
    """The bytes that a tensor's storage is pickled as."""
    typed_storage = tensor.__reduce_ex__(4)[1][0]
    blob = typed_storage.__reduce__()[1][0]
    assert isinstance(blob, bytes)
    return blob


def tensors() -> dict[str, Any]:
    return dict(official_tensors(make_generator(seeded())))


def with_weight(value: Any, name: str = "mapping.fc0.weight") -> bytes:
    """A snapshot one tensor of which is something else."""
    return dumps(snapshot(network(tensors() | {name: value}, nested_kwargs(make_generator(None)), {})))


def with_attribute(name: str, value: Any, part: str = "") -> bytes:
    return dumps(snapshot(network(tensors(), nested_kwargs(make_generator(None)), {part: {name: value}})))


def with_argument(name: str, value: Any) -> bytes:
    return dumps(snapshot(network(tensors(), nested_kwargs(make_generator(None)) | {name: value}, {})))


def raw(middle: bytes) -> bytes:
    """A pickle of instructions."""
    return b"\x80\x04" + middle + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name_of(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def deep_modules() -> bytes:
    """G_ema in which each module holds the next, too many to walk through by recursion."""
    names = ("type", "class", "version", "class_name", "Generator", "state", "_modules", "a")
    head = b"".join(text(name) + b"\x94" for name in names)
    function = name_of("torch_utils.persistence", "_reconstruct_persistent_obj") + b"\x94"
    # {type: class, version: 6, class_name: Generator, state: {_modules: {a: the module before}}}
    wrap = b"h\x08}(h\x00h\x01h\x02K\x06h\x03h\x04h\x05}h\x06}h\x07h\x0fssu\x85Rq\x0fa"
    return raw(
        b"("
        + head
        + function
        + b"Nq\x0f]"
        + wrap * 30_000
        + b"}"
        + text("G_ema")
        + b"h\x0fst\x94"
        + b"}"
        + text("G_ema")
        + b"h\x0fs"
    )


def module_in_itself(count: int) -> bytes:
    """G_ema that holds itself under so many names: a tree that grows by that factor with each level."""
    names = ("type", "class", "version", "class_name", "Generator", "state", "_modules")
    head = b"".join(text(name) + b"\x94" for name in names)
    function = name_of("torch_utils.persistence", "_reconstruct_persistent_obj") + b"\x94"
    # A dict of modules; {type: class, version: 6, class_name: Generator, state: {_modules: that dict}}; then itself in it.
    wrap = b"}q\x10h\x07}(h\x00h\x01h\x02K\x06h\x03h\x04h\x05}h\x06h\x10su\x85Rq\x0fh\x10"
    named = [text(f"{number:064d}") + b"h\x0f" for number in range(count)]
    itself = b"".join(b"(" + b"".join(named[start : start + 1000]) + b"u" for start in range(0, count, 1000))
    return raw(b"(" + head + function + wrap + itself + b"t\x94}" + text("G_ema") + b"h\x0fs")


def bomb(levels: int = 200) -> Any:
    """A tuple of 2 ** levels items, in `levels` objects."""
    value: Any = (1, 1)
    for _ in range(levels):
        value = (value, value)
    return value


TARGET_OF_CALLS = "touched"
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    # Calls of functions, anywhere.
    "system": (lambda: pickle.dumps(Call(os.system, f"touch {TARGET_OF_CALLS}"), 4), "the name posix.system"),
    "system, protocol 3": (
        lambda: pickle.dumps(Call(os.system, f"touch {TARGET_OF_CALLS}"), 3),
        "the name posix.system",
    ),
    "eval": (lambda: pickle.dumps(Call(eval, f"open('{TARGET_OF_CALLS}', 'w')"), 4), "the name builtins.eval"),
    "exec in a module": (
        lambda: with_attribute("x", [Call(exec, f"open('{TARGET_OF_CALLS}', 'w')")], "synthesis.b4.conv1"),
        "the name builtins.exec",
    ),
    "getattr": (lambda: with_attribute("x", Call(getattr, "", "join")), "the name builtins.getattr"),
    "instead of a tensor": (lambda: with_weight(Call(os.system, f"touch {TARGET_OF_CALLS}")), "the name posix.system"),
    "instead of the file": (lambda: dumps(snapshot(Call(open, TARGET_OF_CALLS, "w"))), r"the name _?io\.open"),
    "in another network": (lambda: dumps(snapshot(None, D=Call(os.mkdir, TARGET_OF_CALLS))), "the name posix.mkdir"),
    "dotted name": (
        lambda: raw(name_of("torch.storage", "_load_from_bytes.__globals__")),
        "the name torch.storage._load_from_bytes.__globals__",
    ),
    "dotted module": (
        lambda: raw(name_of("torch", "storage._load_from_bytes")),
        "the name torch.storage._load_from_bytes",
    ),
    "name with a line break": (lambda: raw(name_of("os", "a\nb\x1b[2J")), r"the name 'os\.a\\nb\\x1b\[2J'"),
    "old name": (lambda: raw(b"cos\nsystem\n"), "the name os.system"),
    "name of a number": (lambda: raw(b"K\x01K\x02\x93"), "int instead of str"),
    "call of a value": (lambda: raw(b"K\x01)R"), "int instead of Global"),
    "storage class called": (lambda: raw(name_of("torch", "FloatStorage")), "the name torch.FloatStorage"),
    "known call, other arguments": (
        lambda: raw(name_of("torch.storage", "_load_from_bytes") + b"K\x01\x85R"),
        "a call of torch.storage._load_from_bytes with other arguments",
    ),
    # Attributes of real things.
    "build a class": (
        lambda: raw(name_of("dnnlib.util", "EasyDict") + b"}" + text("x") + b"K\x01sb"),
        "change of a Global",
    ),
    "build a dictionary": (lambda: raw(b"}}" + text("__class__") + b"K\x01sb"), "a change of a dict"),
    "setstate of a module": (
        lambda: dumps(snapshot(network(tensors(), {}, {})))[:-1] + b"}" + text("__setstate__") + b"Nsb.",
        "a change of a dict",
    ),
    "new object": (
        lambda: raw(name_of("collections", "OrderedDict") + b")\x81"),
        "an object of collections.OrderedDict",
    ),
    # Instructions that no snapshot needs.
    "persistent id": (lambda: raw(text("x") + b"Q"), "the instruction BINPERSID"),
    "persistent id, old": (lambda: raw(b"Px\n"), "the instruction PERSID"),
    "inst": (lambda: raw(b"(ios\nsystem\n"), "the instruction INST"),
    "obj": (lambda: raw(b"(K\x01o"), "the instruction OBJ"),
    "ext": (lambda: raw(b"\x82\x01"), "the instruction EXT1"),
    "newobj_ex": (lambda: raw(b"K\x01)}\x92"), "the instruction NEWOBJ_EX"),
    "long number": (lambda: raw(b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096), "the instruction LONG4"),
    "longer number": (lambda: raw(b"\x8a\xff" + b"\x7f" * 255), "a number of more than 80 bits"),
    # Depth and repetition.
    "deep tuples": (lambda: raw(b"N" + b"\x85" * DEPTH), "holds no network G_ema"),
    "deep tuples in an argument": (
        lambda: with_argument("z_dim", 7777).replace(b"M\x61\x1e", b"N" + b"\x85" * DEPTH),
        "z_dim=a tuple",
    ),
    "deep lists": (lambda: raw(b"]" * DEPTH + b"a" * (DEPTH - 1)), "10000 on a stack"),
    "deep marks": (lambda: raw(b"(" * DEPTH + b"t" * DEPTH), "10000 on a stack"),
    "deep lists by reference": (lambda: raw(b"]\x94" + b"]h\x00aq\x00" * DEPTH), "10000 on a stack"),
    "million instructions": (lambda: raw(b"]" + b"Na" * (MAX_INSTRUCTIONS // 2 + 1)), "more than 1000000 instructions"),
    "deep modules": (deep_modules, "parts in parts to no end"),
    "a module in itself": (lambda: module_in_itself(20_000), "parts in parts to no end"),
    "bomb as an argument": (lambda: with_argument("w_dim", bomb()), "w_dim=a tuple"),
    "bomb as a filter": (lambda: with_argument("resample_filter", bomb()), "resample_filter=.* and a tuple at once"),
    "bomb as an unknown argument": (lambda: with_argument("colour", bomb()), "colour=a tuple"),
    "bomb as a size": (lambda: with_weight(Stored(b"", 0, bomb(), bomb())), "a tensor without a valid size and stride"),
    "bomb as a key": (lambda: raw(b"}" + b"N\x85\x94h\x00\x86" + b"Ns"), "a tuple as a key"),
    "bomb as a network": (lambda: dumps(snapshot(bomb())), "holds no network G_ema"),
    "long line": (lambda: raw(b"c" + b"a" * 10_000_000 + b"\nb\n"), r"the name 'a{70,}\.\.\."),
    "long text": (
        lambda: raw(b"X" + (1 << 21).to_bytes(4, "little") + b"a" * (1 << 21)),
        "a text of 2097152 characters",
    ),
    "huge length": (lambda: raw(b"\x8e" + (1 << 60).to_bytes(8, "little") + b"abc"), "damaged, or not a pickle"),
    "huger length": (lambda: raw(b"\x8e" + b"\xff" * 8 + b"abc"), "damaged, or not a pickle"),
    "huge frame": (lambda: raw(b"\x95" + b"\xff" * 8 + b"N"), "holds no network G_ema"),
    "huge memo": (lambda: raw(b"Nr\xff\xff\xff\xff"), "holds no network G_ema"),
    "empty stack": (lambda: raw(b"0" * 0), "nothing on the stack"),
    "no mark": (lambda: raw(b"Nt"), "no mark on the stack"),
    "behind the mark": (lambda: raw(b"N(\x85"), "nothing on the stack"),
    "reference to nothing": (lambda: raw(b"h\x07"), "a reference to nothing"),
    # Tensors that are not what they claim.
    "stride of 0": (
        lambda: with_weight(Stored(blob_of(torch.zeros(1)), 0, (12, 8), (0, 0))),
        "mapping.fc0.weight: reaches beyond its storage of 1 elements",
    ),
    "other size": (
        lambda: with_weight(Stored(blob_of(torch.zeros(1)), 0, (1 << 30, 8), (0, 0))),
        r"mapping.fc0.weight is \[1073741824, 8\] instead of \[12, 8\]",
    ),
    "offset": (
        lambda: with_weight(Stored(blob_of(torch.zeros(96)), 1, (12, 8), (8, 1))),
        "reaches beyond its storage of 96",
    ),
    "strides": (
        lambda: with_weight(Stored(blob_of(torch.zeros(96)), 0, (12, 8), (9, 1))),
        "reaches beyond its storage of 96",
    ),
    "negative offset": (
        lambda: with_weight(Stored(blob_of(torch.zeros(96)), -1, (12, 8), (8, 1))),
        "a tensor without a valid size and stride",
    ),
    "huge stride": (
        lambda: with_weight(Stored(b"", 0, (12, 8), (1 << 70, 1))),
        "a tensor without a valid size and stride",
    ),
    "many axes": (
        lambda: with_weight(Stored(b"", 0, (1,) * 70, (1,) * 70)),
        "a tensor without a valid size and stride",
    ),
    "float16": (
        lambda: with_weight(torch.zeros(12, 8, dtype=torch.float16)),
        "mapping.fc0.weight: .*torch.HalfStorage",
    ),
    "not finite": (
        lambda: with_weight(torch.full((12, 8), torch.nan)),
        "mapping.fc0.weight holds values that are not finite",
    ),
    # Storages that are pickles of their own.
    "system in a storage": (
        lambda: with_weight(
            Stored(
                pickle.dumps(Call(os.system, f"touch {TARGET_OF_CALLS}"), 2) + blob_of(torch.zeros(96)),
                0,
                (12, 8),
                (8, 1),
            )
        ),
        "mapping.fc0.weight: .* the name posix.system",
    ),
    "a tensor in a storage": (
        lambda: with_weight(Stored(dumps(torch.zeros(1)) + blob_of(torch.zeros(96)), 0, (12, 8), (8, 1))),
        "the name torch._utils._rebuild_parameter|the name torch._utils._rebuild_tensor_v2",
    ),
    "zip as a storage": (
        lambda: with_weight(Stored(zip_of(torch.zeros(96)), 0, (12, 8), (8, 1))),
        "damaged, or not a pickle",
    ),
    "count in a storage": (
        lambda: with_weight(
            Stored(blob_of(torch.zeros(96)).replace(b"K\x60N", b"\x8a\x06\0\0\0\0\0\x01N"), 0, (12, 8), (8, 1))
        ),
        "its storage contradicts itself about its size",
    ),
    "both counts in a storage": (
        lambda: with_weight(Stored(lying_blob(), 0, (12, 8), (8, 1))),
        "should have 1099511627776",
    ),
    "negative count": (
        lambda: with_weight(
            Stored(blob_of(torch.zeros(96)).replace(b"K\x60N", b"J\xff\xff\xff\xffN"), 0, (12, 8), (8, 1))
        ),
        "its storage contradicts itself about its size",
    ),
    "short storage": (
        lambda: with_weight(Stored(blob_of(torch.zeros(96))[:-1], 0, (12, 8), (8, 1))),
        "but has 383 bytes",
    ),
    "empty storage": (lambda: with_weight(Stored(b"", 0, (12, 8), (8, 1))), "damaged, or not a pickle"),
    "big-endian storage": (
        lambda: with_weight(Stored(blob_of(torch.zeros(96)).replace(b"q\x02\x88", b"q\x02\x89"), 0, (12, 8), (8, 1))),
        "from a big-endian machine",
    ),
}


def zip_of(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def legacy_of(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def lying_blob() -> bytes:
    blob, count = blob_of(torch.zeros(96)), 1 << 40
    blob = blob.replace(b"K\x60N", b"\x8a\x06" + count.to_bytes(6, "little") + b"N")
    return blob.replace((96).to_bytes(8, "little"), count.to_bytes(8, "little"))


def empty_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.txt", "a")
    return stream.getvalue()


OTHER_KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"<html>404</html>", "not a pickle of protocol 2 or newer"),
    "protocol 0": (lambda: pickle.dumps({"G_ema": 1}, 0), "not a pickle of protocol 2 or newer"),
    "safetensors": (lambda: safetensors.torch.save({"x": torch.zeros(1)}), "not a pickle of protocol 2 or newer"),
    "torch.save": (lambda: zip_of({"g_ema": torch.zeros(3)}), "a zip archive"),
    "zip": (empty_zip, "a zip archive"),
    "torch.save, old": (lambda: legacy_of({"g_ema": torch.zeros(3)}), "a checkpoint of torch.save"),
    "TensorFlow": (
        lambda: raw(b"(" + name_of("dnnlib.tflib.network", "Network") + b")\x81}" + text("version") + b"K\x04sbNNt"),
        "a TensorFlow snapshot .it names dnnlib.tflib.network.Network., which is not supported",
    ),
    "PGGAN": (lambda: raw(b"(ctfutil\nNetwork\n)\x81NNt"), "a TensorFlow snapshot .it names tfutil.Network."),
    "another pickle": (lambda: pickle.dumps([1, 2, 3], 4), "holds no network G_ema"),
    "another dictionary": (lambda: pickle.dumps({"G": 1}, 4), "holds no network G_ema"),
    "R3GAN": (
        lambda: raw(b"}" + text("G_ema") + name_of("R3GAN.Networks", "Generator") + b")\x81s"),
        "the name R3GAN.Networks.Generator",
    ),
    "other version": (
        lambda: dumps(snapshot(network(tensors(), {}, {}))).replace(
            text("version") + b"\x94K\x06", text("version") + b"\x94K\x07"
        ),
        "type='class', version=7; 'class' and 6 are known",
    ),
}


def run_command(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`python -m stages.import_snapshot` in this process; what it says when it fails."""
    monkeypatch.setattr(sys, "argv", ["import_snapshot", str(source), str(target)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("stages.import_snapshot", run_name="__main__")
    assert isinstance(caught.value.code, str)  # printed on stderr, exit code 1
    return caught.value.code


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize("case", [*HOSTILE, *OTHER_KINDS])
def test_refused_in_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = (HOSTILE | OTHER_KINDS)[case]
    monkeypatch.chdir(tmp_path)
    source, target = Path("source.pkl"), Path("target.safetensors")
    source.write_bytes(make())
    target.write_bytes(OLD)
    tracemalloc.start()
    try:
        said = run_command(source, target, monkeypatch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in said
    assert said.isprintable()
    assert len(said) < 400
    assert said.startswith("import_snapshot: source.pkl: ")
    assert re.search(message, said), said
    assert peak < MOST_MEMORY
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, target.name]  # nothing was run
    assert target.read_bytes() == OLD


def test_the_command_itself(tmp_path: Path) -> None:
    (tmp_path / "source.pkl").write_bytes(HOSTILE["exec in a module"][0]())
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "stages.import_snapshot",
            str(tmp_path / "source.pkl"),
            str(tmp_path / "target.safetensors"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert not ended.stdout
    assert ended.stderr.count("\n") == 1
    assert "the name builtins.exec" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source.pkl"]
    assert not (ROOT / TARGET_OF_CALLS).exists()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("none.pkl", "x.safetensors", "none.pkl: no such file"),
        (".", "x.safetensors", "a folder"),
        ("good.pkl", "x.pkl", "x.pkl: no place for a snapshot"),
        ("good.pkl", "none/x.safetensors", "no place for a snapshot"),
        ("good.pkl", "folder.safetensors", "no place for a snapshot"),
    ],
)
def test_wrong_paths(source: str, target: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.safetensors").mkdir()
    Path("good.pkl").write_bytes(pickle.dumps({}))
    assert message in run_command(Path(source), Path(target), monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.safetensors", "good.pkl"]


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps("x" * 2000))
    monkeypatch.setattr("ganops.networks.nvidia_pickle.MAX_FILE_BYTES", 2000)
    with pytest.raises(
        WeightsError, match=r"large\.pkl: 2\.0 kB are more than any known snapshot has; at most 2\.0 kB"
    ):
        read_generator(path)


def test_tensors_that_share_a_storage_are_no_larger_than_the_file(tmp_path: Path) -> None:
    G = golden_generator(torch.float32)
    inside: dict[str, Any] = dict(official_tensors(G))
    shared = blob_of(torch.zeros(max(tensor.numel() for tensor in inside.values())))
    for name, tensor in inside.items():
        inside[name] = Stored(shared, 0, tuple(tensor.shape), tensor.stride())
    path = tmp_path / "shared.pkl"
    path.write_bytes(dumps(snapshot(network(inside, nested_kwargs(G), {}))))
    with pytest.raises(WeightsError, match="its tensors have .* bytes, more than the whole file"):
        read_generator(path)


def test_damage_never_ends_in_a_traceback(tmp_path: Path) -> None:
    """A file cut off, or with bytes changed, is read rightly or refused; it raises nothing else."""
    G = make_generator(seeded())
    whole = dumps(snapshot(network(official_tensors(G), nested_kwargs(G), {})))
    path = tmp_path / "damaged.pkl"
    draw = random.Random(0)
    messages = []
    for index in range(200):
        if index % 4:
            content = bytearray(whole)
            for _ in range(draw.choice([1, 3, 30])):
                content[draw.randrange(len(whole))] = draw.randrange(256)
        else:
            content = bytearray(whole[: draw.randrange(len(whole))])
        path.write_bytes(content)
        try:
            read_generator(path)
        except WeightsError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(message.isprintable() for message in messages)


def test_nothing_is_imported(tmp_path: Path) -> None:
    """The names in a snapshot that is read stay names: there is no such module here."""
    path = tmp_path / "good.pkl"
    G = make_generator(seeded())
    path.write_bytes(dumps(snapshot(network(official_tensors(G), nested_kwargs(G), {}))))
    with foreign_names():
        assert isinstance(pickle.loads(pickle.dumps(Persistent)), type)
    assert "torch_utils.persistence" not in sys.modules
    with open_pickle(path) as content:
        assert set(read_pickle(content)) == {"training_set_kwargs", "G", "D", "G_ema", "augment_pipe"}
    read_generator(path)
    assert not {"torch_utils", "dnnlib"} & set(sys.modules)


def test_shown_is_short() -> None:
    values = [bomb(), "a\nb" * 1000, b"x", [1, 2.5], (1, "a"), 1 << 79, None, [bomb()]]
    assert [shown(value) for value in values[2:7]] == ["a bytes", "[1, 2.5]", "a tuple", str(1 << 79), "None"]
    assert all(len(shown(value)) <= 80 and shown(value).isprintable() for value in values)
