"""A generator of NVIDIA's code as a snapshot: `python -m stages.import_snapshot SOURCE.pkl TARGET.safetensors`.

SOURCE is a pickle of the stylegan2-ada-pytorch or stylegan3 repository with a StyleGAN2 network; its G_ema is taken.
Nothing in it is run.
"""

from pathlib import Path

from ganops.entry import say
from ganops.errors import DataError
from ganops.explore.tool import refuse_output, run_command
from ganops.networks.nvidia_snapshot import read_generator
from ganops.networks.snapshot import save_snapshot


def main(source: Path, target: Path) -> None:
    """Writes TARGET, whole or not at all."""
    if target.suffix != ".safetensors" or target.is_dir() or not target.parent.is_dir():
        raise DataError(f"{target}: no place for a snapshot. Name a .safetensors file in a folder that exists.")
    refuse_output(target)
    G, metadata = read_generator(source)
    save_snapshot(target, G, metadata)
    values = ", ".join(f"{name} {value}" for name, value in G.arguments.items())
    say(f"import_snapshot: {target}: G_ema of {source} ({metadata['origin']['format']}); {values}")


if __name__ == "__main__":
    run_command("import_snapshot", "SOURCE.pkl TARGET.safetensors", lambda paths: main(*paths))
