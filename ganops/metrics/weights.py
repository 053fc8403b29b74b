"""Files of published weights: found or downloaded, hashed, and read from the bytes that were hashed."""

import hashlib
import http.client
import io
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import torch

from ganops.entry import progress, say
from ganops.errors import WeightsError
from ganops.files import atomic_path


def read_checked(path: Path, sha256: str) -> bytes:
    """A downloaded file's content.

    Raises:
        WeightsError: it is not the published file.
    """
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise WeightsError(
            f"{path}: sha256 is {found}, expected {sha256}: not the published file, or a broken download. "
            "Remove it; the next run downloads it again."
        )
    return content


def download(path: Path, url: str, sha256: str, otherwise: str) -> None:
    """Writes a file from the network, whole and checked or not at all.

    Args:
        path: where to.
        url: where from.
        sha256: what it must be.
        otherwise: sentences for an error: what to do if this machine cannot have it.
    Raises:
        WeightsError: it cannot be had, or is another file.
    """
    say(f"downloading {url} to {path}")
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, atomic_path(path) as temporary:
            size = int(answer.headers["Content-Length"])
            blocks = iter(lambda: answer.read(1 << 20), b"")
            content = b"".join(progress(blocks, -(-size // (1 << 20)), "download", "MB"))
            found = hashlib.sha256(content).hexdigest()
            if found != sha256:
                raise WeightsError(f"{url}: sha256 is {found}, expected {sha256}. Try again later.")
            temporary.write_bytes(content)
    except (urllib.error.URLError, http.client.HTTPException, OSError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is missing and cannot be downloaded ({error}). {otherwise}") from None


def load_torchscript(content: bytes, path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """A TorchScript network from bytes that were hashed; `path` is where they are from, for messages.

    Raises:
        WeightsError: the bytes are not TorchScript.
    """
    with warnings.catch_warnings():
        # Published networks are TorchScript files; torch 2.15 deprecates the format without another reader for them.
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=FutureWarning)
        try:
            network: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"{path}: not a TorchScript file ({reason}).") from None
    return network.eval()
