"""train: data/shards and data/stats.npz -> models/ and results/train."""

from ganops.entry import Stage, run_stage
from ganops.training.job import Outputs
from ganops.training.loop import most_ranks, train


def main(stage: Stage) -> None:
    """Trains, or continues what was begun, until train.total_kimg."""
    outputs = Outputs(
        last=stage.path("models/last.safetensors"),
        best=stage.path("models/best.safetensors"),
        best_folder=stage.path("models/best"),
        state=stage.path("models/state.safetensors"),
        results=stage.path("metrics.json").parent,
    )
    train(stage.params, stage.path("shards"), stage.path("stats.npz"), outputs, stage.root)


if __name__ == "__main__":
    run_stage("train", main, most_ranks)
