"""Reads pickles of NVIDIA's PyTorch snapshots, and runs nothing that stands in them.

A pickle is a program for a small stack machine whose instructions may import any function and call it, so Python's
own reader hands the computer to whoever wrote the file. Here the standard library only splits the file into
instructions (`pickletools.genops`, which executes none), and a machine of our own follows those of them that such
snapshots need. It imports nothing and calls nothing: names of functions stay names, and the few that are known give
plain dictionaries and the frozen records below. Everything else is refused. No step is recursive, nothing that a file
describes is hashed or compared but strings and integers, and what is kept is bounded by the file's size.

Source: the format as found in published files: pickle protocol 3 or 4, modules as
`torch_utils.persistence._reconstruct_persistent_obj`, storages in torch's format from before its zip files.
"""

import io
import math
import mmap
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from ganops.errors import WeightsError
from ganops.files import format_bytes

MAX_FILE_BYTES = 2 << 30
"""G, D and G_ema of config-f at 1024x1024 are 0.36 GB."""
MAX_INSTRUCTIONS = 1_000_000
"""The same file has 0.03 million. An instruction makes at most one object, so this bounds the memory that they take."""
MAX_STACK = 10_000
MAX_AXES = 8
MAX_TEXT = 1 << 20
"""Characters; the source text that a file carries has 40,000."""

MAGIC = 0x1950A86A20F9469CFC6C
"""The first number of files that torch.save wrote before it wrote zip files; storages are stored so."""
FORMAT_VERSION = 6
"""Of modules."""
STORAGE_VERSION = 1001

PERSISTENT_OBJECT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
EASY_DICT = ("dnnlib.util", "EasyDict")
ORDERED_DICT = ("collections", "OrderedDict")
PARAMETER = ("torch._utils", "_rebuild_parameter")
TENSOR = ("torch._utils", "_rebuild_tensor_v2")
STORAGE = ("torch.storage", "_load_from_bytes")
# Values that the architecture is not told from: they become Opaque.
OPAQUE = {
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("torch", "device"),
    ("builtins", "set"),
}
IN_SNAPSHOT = frozenset({PERSISTENT_OBJECT, EASY_DICT, ORDERED_DICT, PARAMETER, TENSOR, STORAGE, *OPAQUE})
FLOAT_STORAGE = ("torch", "FloatStorage")
IN_STORAGE = frozenset({FLOAT_STORAGE})


@dataclass(frozen=True)
class Global:
    """The name of a class or function; nothing is imported."""

    module: str
    name: str


@dataclass(frozen=True)
class Blob:
    """Bytes of the file, not read yet."""

    start: int
    length: int


@dataclass(frozen=True)
class TensorData:
    """A tensor as the file describes it, in elements of its storage; not checked against it yet."""

    storage: Blob
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Module:
    """A network or a part of one: the name of its class and its attributes."""

    class_name: str
    state: dict[Any, Any]


@dataclass(frozen=True)
class Opaque:
    """A value that nothing is read from."""


@dataclass(frozen=True)
class PersistentId:
    """How a storage names itself inside its blob."""

    value: Any


@contextmanager
def open_pickle(path: Path) -> Iterator[mmap.mmap]:
    """The file's bytes, in memory only as far as they are looked at.

    Raises:
        WeightsError: missing, empty, too large, or by its first bytes no pickle.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if len(content) > MAX_FILE_BYTES:
                size, most = format_bytes(len(content)), format_bytes(MAX_FILE_BYTES)
                raise WeightsError(f"{size} are more than any known snapshot has; at most {most} are read.")
            start = content[:4]
            if start == b"PK\x03\x04":
                raise WeightsError("a zip archive (torch.save writes such), not a pickle of NVIDIA's training code.")
            if start[:1] != b"\x80":
                raise WeightsError("not a pickle of protocol 2 or newer, as NVIDIA's training code writes them.")
            yield content
    except FileNotFoundError:
        raise WeightsError("no such file. Expected a snapshot of NVIDIA's training code (.pkl).") from None
    except IsADirectoryError:
        raise WeightsError("a folder. Name the .pkl file in it.") from None
    except ValueError as error:
        if path.stat().st_size:
            raise
        raise WeightsError("the file is empty. Get it again.") from error


def read_pickle(content: mmap.mmap) -> Any:
    """What a snapshot describes: dictionaries, lists, tuples, numbers, strings, and the records of this module.

    Tuples, lists and dictionaries may be nested to any depth and share parts: walk through them by known names only.

    Args:
        content: of `open_pickle`.
    Raises:
        WeightsError: anything that such snapshots do not need; names it.
    """
    content.seek(0)
    return _follow(content, IN_SNAPSHOT)


def read_tensor(content: mmap.mmap, data: TensorData) -> Tensor:
    """The numbers of a tensor: float32, contiguous, on the CPU.

    Takes the memory of the blob and of the tensor, which is no larger.

    Args:
        content: of `open_pickle`.
        data: found in it by `read_pickle`.
    Raises:
        WeightsError: the storage is not one of float32, is damaged, or is too small for the tensor.
    """
    blob = content[data.storage.start : data.storage.start + data.storage.length]
    count, start = _storage_place(blob)
    last = data.offset + sum((n - 1) * step for n, step in zip(data.size, data.stride, strict=True))
    # The count forbids what overlaps itself, such as a stride of 0, which would be larger than the file.
    if math.prod(data.size) > count or (all(data.size) and last >= count):
        raise WeightsError(f"reaches beyond its storage of {count} elements. Get the file again.")
    flat = torch.from_numpy(np.frombuffer(blob, "<f4", count, start).astype(np.float32))
    return flat.as_strided(data.size, data.stride, data.offset).contiguous()


def _storage_place(blob: bytes) -> tuple[int, int]:
    """Number of float32 elements in a stored storage, and the byte that they begin at.

    torch.load(weights_only=True) reads this format too and runs nothing. But it allocates what the header asks for, and
    hashes dictionary keys of any depth, so the header had to be followed here first; behind it stand plain numbers.
    """
    stream = io.BytesIO(blob)
    magic, version, system, storage, keys = (_follow(stream, IN_STORAGE) for _ in range(5))
    if magic != MAGIC or version != STORAGE_VERSION or type(system) is not dict:
        raise WeightsError("its storage is not in the format of torch.save. Get the file again.")
    if system.get("little_endian") is not True:
        raise WeightsError("its storage is from a big-endian machine, which is not supported.")
    fields = storage.value if isinstance(storage, PersistentId) else None
    if type(fields) is not tuple or len(fields) != 6 or fields[0] != "storage" or fields[1] != Global(*FLOAT_STORAGE):
        raise WeightsError("its storage does not hold float32. Get the file again.")
    _, _, key, _, count, view = fields
    if type(key) is not str or type(keys) is not list or len(keys) != 1 or keys[0] != key or view is not None:
        raise WeightsError("its storage is not a single whole one. Get the file again.")
    start = stream.tell() + 8
    if type(count) is not int or int.from_bytes(blob[start - 8 : start], "little") != count:
        raise WeightsError("its storage contradicts itself about its size. Get the file again.")
    if len(blob) - start != 4 * count:
        raise WeightsError(f"its storage should have {count} elements, but has {max(len(blob) - start, 0)} bytes.")
    return count, start


def shown(value: Any) -> str:
    """A short text without line breaks, for messages: values from a file may be long, or deep enough to take for ever."""
    if value is None or type(value) in (bool, int, float, str):
        text = ascii(value[:100] if type(value) is str else value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    if type(value) in (list, tuple) and len(value) <= 8 and all(type(item) in (bool, int, float) for item in value):
        return ascii(list(value))
    return f"a {type(value).__name__}"


def _follow(stream: BinaryIO | mmap.mmap, allowed: frozenset[tuple[str, str]]) -> Any:
    """The value that one pickle describes; the stream then stands behind it."""
    machine = _Machine(allowed)
    try:
        for number, (instruction, argument, place) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if number == MAX_INSTRUCTIONS or len(machine.stack) > MAX_STACK or len(machine.marks) > MAX_STACK:
                raise WeightsError(
                    f"not a snapshot: more than {MAX_INSTRUCTIONS} instructions, or {MAX_STACK} on a stack."
                )
            if instruction.name == "STOP":
                return machine.pop()
            machine.do(instruction.name, argument, place or 0)
    except ValueError as error:  # of genops: an unknown instruction, or an end in the middle
        raise WeightsError(f"damaged, or not a pickle ({shown(str(error))}). Get the file again.") from error
    raise WeightsError("the file ends early. Get it again.")  # not reached: genops raises


class _Machine:
    """The stack machine of pickles, without the instructions that snapshots do not need."""

    def __init__(self, allowed: frozenset[tuple[str, str]]) -> None:
        self.allowed = allowed
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise WeightsError("damaged: an instruction finds nothing on the stack. Get the file again.")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise WeightsError("damaged: an instruction finds no mark on the stack. Get the file again.")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def take(self, kind: type[Any]) -> Any:
        value = self.pop()
        if type(value) is not kind:
            _refuse(f"{type(value).__name__} instead of {kind.__name__} before an instruction")
        return value

    def do(self, name: str, argument: Any, place: int) -> None:
        """Follows one instruction; `place` is where it stands in the stream."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT":
                stack.append(argument)
            case "LONG1":
                if argument.bit_length() > 80:
                    _refuse("a number of more than 80 bits")
                stack.append(argument)
            case "SHORT_BINUNICODE" | "BINUNICODE":
                if len(argument) > MAX_TEXT:
                    _refuse(f"a text of {len(argument)} characters")
                stack.append(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                header = {"SHORT_BINBYTES": 2, "BINBYTES": 5, "BINBYTES8": 9}[name]
                stack.append(Blob(place + header, len(argument)))
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}, "EMPTY_SET": Opaque()}[name])
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple([self.pop() for _ in range(int(name[-1]))][::-1]))
            case "APPEND":
                item = self.pop()
                self.top(list).append(item)
            case "APPENDS":
                items = self.pop_to_mark()
                self.top(list).extend(items)
            case "ADDITEMS":
                self.pop_to_mark()
                self.top(Opaque)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    _refuse("a reference to nothing")
                stack.append(self.memo[argument])
            case "GLOBAL":
                module, _, attribute = argument.partition(" ")
                self.push_global(module, attribute)
            case "STACK_GLOBAL":
                attribute, module = self.take(str), self.take(str)
                self.push_global(module, attribute)
            case "REDUCE":
                arguments = self.take(tuple)
                stack.append(_call(self.take(Global), arguments))
            case "NEWOBJ":
                arguments, kind = self.take(tuple), self.take(Global)
                if (kind.module, kind.name) != EASY_DICT or arguments:
                    _refuse(f"an object of {kind.module}.{kind.name}")
                stack.append({})
            case "BUILD":
                self.pop()
                self.top(Opaque)  # a numpy dtype's byte order; any other attribute that a file wants to set is refused
            case "BINPERSID" if self.allowed is IN_STORAGE:
                stack.append(PersistentId(self.pop()))
            case _:
                _refuse(f"the instruction {name}")

    def top(self, kind: type[Any] | None = None) -> Any:
        """What stays on top of the stack."""
        value = self.pop()
        if kind is not None and type(value) is not kind:
            _refuse(f"a change of a {type(value).__name__}")
        self.stack.append(value)
        return value

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            _refuse("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # a tuple may be too deep to hash
                _refuse(f"a {type(key).__name__} as a key")
            target[key] = value

    def push_global(self, module: str, name: str) -> None:
        if (module, name) not in self.allowed:
            text = f"{module}.{name}"
            text = text if text.isascii() and text.isprintable() and len(text) <= 100 else shown(text)
            if module.startswith(("dnnlib.tflib", "tfutil")):
                raise WeightsError(f"a TensorFlow snapshot (it names {text}), which is not supported.")
            _refuse(f"the name {text}")
        self.stack.append(Global(module, name))


def _call(function: Global, arguments: tuple[Any, ...]) -> Any:
    """What a known function would give, as plain data."""
    match (function.module, function.name), arguments:
        case known, [dict() as meta] if known == PERSISTENT_OBJECT:
            return _describe_module(meta)
        case known, [] if known == ORDERED_DICT:
            return {}
        case known, [TensorData() as data, bool(), dict()] if known == PARAMETER:
            return data
        case known, [Blob() as blob] if known == STORAGE:
            return blob
        case known, [Blob() as blob, int() as offset, tuple() as size, tuple() as stride, bool(), dict(), *rest] if (
            known == TENSOR and len(rest) <= 1
        ):
            numbers = (offset, *size, *stride)
            if (
                len(size) != len(stride)
                or len(size) > MAX_AXES
                or not all(type(n) is int and 0 <= n <= MAX_FILE_BYTES for n in numbers)
            ):
                _refuse("a tensor without a valid size and stride")
            return TensorData(blob, offset, size, stride)
        case known, _ if known in OPAQUE:
            return Opaque()
    return _refuse(f"a call of {function.module}.{function.name} with other arguments")


def _describe_module(meta: dict[Any, Any]) -> Module:
    kind, version, class_name, state = (meta.get(key) for key in ("type", "version", "class_name", "state"))
    if type(version) is not int or version != FORMAT_VERSION or type(kind) is not str or kind != "class":
        raise WeightsError(
            f"its modules have type={shown(kind)}, version={shown(version)}; 'class' and {FORMAT_VERSION} are known."
        )
    if type(class_name) is not str or type(state) is not dict:
        _refuse("a module without a class name or attributes")
    return Module(class_name, state)


def _refuse(what: str) -> NoReturn:
    raise WeightsError(
        f"not read, because it holds {what}, which snapshots of StyleGAN2 do not need. Nothing in the file was run."
    )
