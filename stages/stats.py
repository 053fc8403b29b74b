"""stats: the reference images (stats.reference) -> data/stats.npz."""

import sys

from ganops.distributed import select_device
from ganops.entry import Stage, run_stage, say
from ganops.metrics.statistics import check_reference, measure_statistics, open_extractor, open_images, save_statistics


def main(stage: Stage) -> None:
    """Features of the real images, their streamed moments, and stats.keep_features of the features themselves."""
    p, run = stage.params.stats, stage.params.run
    device = select_device(run.device, run.cpu_threads)
    extractor = open_extractor(stage.params, device, stage.root)
    images = open_images(stage.path(p.reference), stage.params)
    check_reference(images, stage.params)
    say(f"stats: {extractor.name} ({extractor.resizer}) on {device.type}, {len(images)} images of {p.reference}")
    statistics = measure_statistics(extractor, images, p)
    if statistics is None:  # another rank than the first
        return
    save_statistics(stage.path("data/stats.npz"), statistics)
    kept = len(statistics.features)
    say(f"stats: mean and covariance of {len(statistics.mu)} features; {kept} images' features kept")


if __name__ == "__main__":
    run_stage("stats", main, lambda params: sys.maxsize)
