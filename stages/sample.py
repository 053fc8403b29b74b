"""sample: a snapshot -> data/samples (shards, to be measured) and results/samples (pictures, for people)."""

from collections import deque

import torch

from ganops.distributed import configure_numerics, derive_seed, select_device
from ganops.entry import Stage, progress, run_stage, say
from ganops.files import sha256_file
from ganops.images.pixels import as_array, for_eyes, magnify, make_grid, save_png
from ganops.images.shards import ShardWriter
from ganops.launch import rank
from ganops.networks.law import LabelVectors, grid_labels
from ganops.networks.sampling import draw_rows, draw_truncation_sweep, generate_in_ranks, image_labels
from ganops.networks.snapshot import load_law, load_snapshot
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
    law, names, bits = load_law(path), tuple(metadata["class_names"]) if G.c_dim else (), metadata.get("bits", 8)
    labels = image_labels(p.seed, range(p.count), law)
    steps, how = -(-p.count // p.batch_size), (p.truncation_psi, p.truncation_cutoff, p.noise_mode, p.batch_size, bits)
    batches = generate_in_ranks(G, p.seed, labels, *how)
    if rank():
        deque(batches, maxlen=0)  # the other ranks only make images
        return
    provenance = {key: metadata[key] for key in ("kimg", "run", "data_digest", "accepted_code", "retries", "init_from")}
    values = {key: value for key, value in p.model_dump().items() if not key.startswith(("grid", "sweep", "shard"))}
    shape, vectors = (p.shard_images, G.size, G.img_channels), isinstance(law, LabelVectors)
    with ShardWriter(stage.path("data/samples"), *shape, names, {}, bits=bits, multi_label=vectors) as writer:
        parts = torch.split(labels, p.batch_size)
        for part, images in zip(parts, progress(batches, steps, "sample", "batch"), strict=True):
            writer.append(as_array(images), part.numpy())
        writer.close({"snapshot_sha256": sha256_file(path), "training": provenance, "sample": values})
    kimg = "unknown" if metadata["kimg"] is None else f"{metadata['kimg']:g}"  # of an imported snapshot
    say(f"sample: {p.count} images of {path} (kimg {kimg}), psi {p.truncation_psi:g}")

    pictures, rows = stage.path("results/samples"), grid_labels(law)
    seed = derive_seed(p.seed, "pictures")
    grid = draw_rows(G, seed, rows, p.grid_columns, p.grid_psi, p.noise_mode, p.batch_size)
    save_png(pictures / "grid.png", make_grid(magnify(for_eyes(grid)), p.grid_columns))
    columns = max(len(rows), p.grid_columns)
    sweep = draw_truncation_sweep(G, seed, rows, columns, p.sweep_psi, p.batch_size)
    save_png(pictures / "truncation.png", make_grid(magnify(for_eyes(sweep)), columns))
    say(f"sample: pictures in {pictures}: grid.png (psi {p.grid_psi:g}), truncation.png (psi {p.sweep_psi})")


if __name__ == "__main__":
    run_stage("sample", main, lambda params: -(-params.sample.count // params.sample.batch_size))
