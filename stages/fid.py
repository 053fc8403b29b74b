"""fid: data/samples and data/stats.npz -> results/fid.json."""

from ganops.collectives import collect_in_order
from ganops.distributed import select_device
from ganops.entry import Stage, progress, run_stage, say
from ganops.errors import DataError
from ganops.files import write_json
from ganops.images.shards import open_shards
from ganops.launch import rank
from ganops.metrics.extractor import load_extractor
from ganops.metrics.features import (
    Moments,
    check_protocols,
    describe_protocol,
    extract,
    image_batches,
    load_statistics,
    trained_on,
)
from ganops.metrics.frechet import frechet_distance


def main(stage: Stage) -> None:
    """Fréchet distance of the first fid.num_fake samples to the real images, and how it came about."""
    p, count, run = stage.params.stats, stage.params.fid.num_fake, stage.params.run
    device = select_device(run.device, run.cpu_threads)
    real = load_statistics(stage.path("stats.npz"))
    extractor = load_extractor(p.extractor, p.extractor_sha256, device, stage.root / "data" / "weights")
    samples = open_shards(stage.path("samples"), verify=True)
    if len(samples) < count:
        raise DataError(f"fid.num_fake={count}, but data/samples has {len(samples)} images. Run `dvc repro sample`.")
    fake = describe_protocol(extractor, samples.index, p.ddof, p.batch_size)
    check_protocols(real.protocol, {**fake, "data_digest": trained_on(samples.index)})
    say(f"fid: {extractor.name} ({extractor.metric}) on {device.type}, {count} samples")
    batches = extract(extractor, image_batches(samples, count, p.batch_size), p.batch_size)
    moments = Moments()
    steps = -(-count // p.batch_size)
    for features in progress(collect_in_order(batches, steps), steps, "fid", "batch"):
        moments.append(features)
    if rank():
        return
    value = frechet_distance(real.mu, real.sigma, moments.mean(), moments.covariance(p.ddof))
    dim = len(real.mu)
    protocol = {
        **real.protocol,
        "num_real": real.num,
        "num_fake": count,
        "num_features": dim,
        "num_real_below_dimension": real.num < dim,
        "num_fake_below_dimension": count < dim,
        "samples": {**samples.index.source, "data_digest": samples.index.digest, "versions": fake["versions"]},
    }
    write_json(stage.path("fid.json"), {extractor.metric: value, "protocol": protocol})
    if min(real.num, count) < dim:
        say(f"fid: fewer images than the {dim} features: biased upwards, compare only equal counts with each other")
    say(f"fid: {extractor.metric} = {value:.3f} ({real.num} real images, {count} samples, ddof {p.ddof})")


if __name__ == "__main__":
    run_stage("fid", main, lambda params: -(-params.fid.num_fake // params.stats.batch_size))
