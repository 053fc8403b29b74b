"""A snapshot for other programs: `python -m stages.export SNAPSHOT.safetensors TARGET`.

TARGET.pt is TorchScript, TARGET.onnx is ONNX: what was written is run and compared with the snapshot's images before it
replaces anything. TARGET.safetensors is a copy, read again.
"""

from pathlib import Path

from ganops.entry import say
from ganops.errors import ExportError
from ganops.explore.tool import refuse_output, run_command
from ganops.files import format_bytes
from ganops.networks.export import export_snapshot


def main(source: Path, target: Path) -> None:
    """Writes TARGET, whole or not at all."""
    refuse_output(target)
    same = source.exists() and target.exists() and target.samefile(source)
    if target.is_dir() or not target.parent.is_dir() or same:
        raise ExportError(f"{target}: no place for a file. Name another one, in a folder that exists.")
    error = export_snapshot(source, target)
    size = format_bytes(target.stat().st_size)
    if error is None:
        how = ". NOT VERIFIED: onnxruntime is not installed; the model's structure was checked only"
    elif target.suffix == ".safetensors":
        how = f", copied from {source} and read again"
    else:
        how = f", run and compared with {source}: largest difference {error:.2g} of the largest pixel"
    say(f"export: {target}, {size}{how}")


if __name__ == "__main__":
    run_command("export", "SNAPSHOT.safetensors TARGET.pt|TARGET.onnx|TARGET.safetensors", lambda paths: main(*paths))
