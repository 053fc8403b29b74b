"""fid: data/samples against data/stats.npz -> results/fid.json and results/neighbours.png."""

from ganops.entry import Stage, run_stage, say
from ganops.evaluation.samples import evaluate_samples
from ganops.files import write_json
from ganops.images.pixels import save_png
from ganops.metrics.evaluate import summary


def main(stage: Stage) -> None:
    """All of fid.metrics for the first fid.num_fake samples, and how they came about."""
    params = stage.params
    snapshot = stage.path(f"models/{params.sample.snapshot}.safetensors")
    inputs = (stage.path("data/samples"), stage.path("data/stats.npz"), stage.path(params.stats.reference), snapshot)
    made = evaluate_samples(params, *inputs, stage.root)
    if made is None:  # another rank than the first
        return
    result, picture = made
    save_png(stage.path("results/neighbours.png"), picture)
    write_json(stage.path("results/fid.json"), result)
    for line in summary(result):
        say(f"fid: {line}")


if __name__ == "__main__":
    run_stage("fid", main, lambda params: -(-params.fid.num_fake // params.stats.batch_size))
