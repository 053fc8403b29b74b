"""sample: a snapshot -> data/samples (shards, to be measured) and results/samples (pictures, for people)."""

from collections import deque

import torch

from ganops.distributed import configure_numerics, derive_seed, select_device
from ganops.entry import Stage, progress, run_stage, say
from ganops.files import sha256_file
from ganops.images.pixels import magnify, make_grid, save_png
from ganops.images.shards import ShardWriter
from ganops.launch import rank
from ganops.networks.sampling import MAX_ROWS, draw_classes, draw_truncation_sweep, generate_in_ranks, image_labels
from ganops.networks.snapshot import load_snapshot
from ganops.ops.kernels import choose_ops


def main(stage: Stage) -> None:
    """Writes sample.count seeded images, a grid (a class per row) and a truncation sweep."""
    p, run = stage.params.sample, stage.params.run
    device = select_device(run.device, run.cpu_threads)
    configure_numerics(tf32=False, deterministic=run.deterministic)
    choose_ops(run.ops, device)
    path = stage.path(f"{p.snapshot}.safetensors")
    G, metadata = load_snapshot(path)
    G = G.to(device).eval().requires_grad_(False)
    names, counts = (tuple(metadata[key]) if G.c_dim else () for key in ("class_names", "class_counts"))
    labels = image_labels(p.seed, range(p.count), counts)
    steps = -(-p.count // p.batch_size)
    batches = generate_in_ranks(G, p.seed, labels, p.truncation_psi, p.truncation_cutoff, p.noise_mode, p.batch_size)
    if rank():
        deque(batches, maxlen=0)  # the other ranks only make images
        return
    provenance = {key: metadata[key] for key in ("kimg", "run", "data_digest", "accepted_code", "retries", "init_from")}
    values = {key: value for key, value in p.model_dump().items() if not key.startswith(("grid", "sweep", "shard"))}
    shape = (p.shard_images, G.resolution, G.img_channels)
    with ShardWriter(stage.path("data/samples"), *shape, names, {}) as writer:
        parts = torch.split(labels, p.batch_size)
        for part, images in zip(parts, progress(batches, steps, "sample", "batch"), strict=True):
            writer.append(images.numpy(), part.numpy())
        writer.close({"snapshot_sha256": sha256_file(path), "training": provenance, "sample": values})
    kimg = "unknown" if metadata["kimg"] is None else f"{metadata['kimg']:g}"  # of an imported snapshot
    say(f"sample: {p.count} images of {path} (kimg {kimg}), psi {p.truncation_psi:g}")

    pictures, classes = stage.path("results/samples"), G.c_dim
    seed = derive_seed(p.seed, "pictures")
    grid = draw_classes(G, seed, classes, p.grid_columns, p.grid_psi, p.noise_mode, p.batch_size)
    save_png(pictures / "grid.png", make_grid(magnify(grid), p.grid_columns))
    columns = max(min(classes, MAX_ROWS), p.grid_columns)
    sweep = draw_truncation_sweep(G, seed, classes, columns, p.sweep_psi, p.batch_size)
    save_png(pictures / "truncation.png", make_grid(magnify(sweep), columns))
    say(f"sample: pictures in {pictures}: grid.png (psi {p.grid_psi:g}), truncation.png (psi {p.sweep_psi})")


if __name__ == "__main__":
    run_stage("sample", main, lambda params: -(-params.sample.count // params.sample.batch_size))
