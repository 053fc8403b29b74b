"""Prints the largest train.batch_gpu that fits this machine, as a line to paste: `python -m stages.batch_gpu`.

params.yaml holds only a number, because the size of micro-batches changes results slightly. Needs data/shards.
"""

from ganops.distributed import configure_numerics, select_device
from ganops.entry import Stage, run_stage, say
from ganops.errors import RunError
from ganops.images.shard_index import read_index
from ganops.launch import ranks_per_node
from ganops.training.memory import fits_into_memory, largest_that_fits, possible_sizes
from ganops.training.state import initial_state


def main(stage: Stage) -> None:
    """Tries sizes from the smallest up; on a CPU it extends what the two smallest need."""
    train, run = stage.params.train, stage.params.run
    device = select_device(run.device, run.cpu_threads)
    configure_numerics(train.tf32, run.deterministic)
    index = read_index(stage.path("shards"))
    if train.lod_initial_resolution is not None:
        raise RunError(
            "a growing network has a micro-batch of its own for each resolution (train.batch_gpu_by_resolution): `train` "
            "tries them all before the first step and names the resolution that does not fit."
        )
    state = initial_state(train, index.size, index.channels, index.num_classes, device)
    ranks = ranks_per_node(stage.params, train.batch_size) * run.nodes
    sizes = [size for size in possible_sizes(train) if size * ranks <= train.batch_size]
    best = largest_that_fits(sizes, fits_into_memory(state, train))
    if best is None:
        raise RunError("not even the smallest micro-batch fits. Lower train.channel_base or train.channel_max.")
    say(f"  batch_gpu: {best}  # of train.batch_size={train.batch_size} over {ranks} ranks; now {train.batch_gpu}")


if __name__ == "__main__":
    run_stage("train", main)
