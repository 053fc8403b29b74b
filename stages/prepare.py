"""Stage prepare: raw images to shards."""

from pathlib import Path

from ganops.entry import Stage, run_stage, say
from ganops.images.prepare import prepare


def main(stage: Stage) -> None:
    params = stage.params.prepare
    target = stage.path("data/shards")
    index = prepare(Path(params.source), target, params, stage.params.run.workers)
    if index is None:  # another rank than the first
        return
    classes = f"{index.num_classes} {index.label_kind}" if index.class_names else "unlabelled"
    say(f"prepare: {index.num_images} images {index.describe()}, {classes}, {len(index.shards)} shards in {target}")


if __name__ == "__main__":
    run_stage("prepare", main, lambda params: params.run.nodes)  # on each node run.workers processes
