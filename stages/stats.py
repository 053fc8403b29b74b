"""stats: data/shards -> data/stats.npz."""

import sys

import numpy as np

from ganops.collectives import collect_in_order
from ganops.distributed import select_device
from ganops.entry import Stage, progress, run_stage, say
from ganops.errors import DataError
from ganops.images.shards import open_shards
from ganops.launch import rank
from ganops.metrics.extractor import load_extractor
from ganops.metrics.features import (
    Moments,
    Statistics,
    describe_protocol,
    extract,
    image_batches,
    save_statistics,
    spread_indices,
)


def main(stage: Stage) -> None:
    """Features of all real images, their streamed moments, and stats.keep_features of the features themselves."""
    p, run = stage.params.stats, stage.params.run
    device = select_device(run.device, run.cpu_threads)
    extractor = load_extractor(p.extractor, p.extractor_sha256, device, stage.root / "data" / "weights")
    shards = open_shards(stage.path("shards"), verify=True)
    count = len(shards)
    if count < 2:
        raise DataError(f"{stage.path('shards')} holds {count} image; a covariance needs two at least.")
    say(f"stats: {extractor.name} ({extractor.metric}) on {device.type}, {count} images")
    indices = spread_indices(count, p.keep_features)
    moments, kept = Moments(), []
    steps = -(-count // p.batch_size)
    batches = extract(extractor, image_batches(shards, count, p.batch_size), p.batch_size)
    for features in progress(collect_in_order(batches, steps), steps, "stats", "batch"):
        places = indices - moments.count
        kept.append(features[places[(places >= 0) & (places < len(features))]])
        moments.append(features)
    if rank():
        return
    protocol = describe_protocol(extractor, shards.index, p.ddof, p.batch_size)
    statistics = Statistics(moments.mean(), moments.covariance(p.ddof), count, protocol, np.concatenate(kept))
    save_statistics(stage.path("stats.npz"), statistics)
    say(f"stats: mean and covariance of {len(statistics.mu)} features; {len(indices)} images' features kept")


if __name__ == "__main__":
    run_stage("stats", main, lambda params: sys.maxsize)
