"""All metrics of any images: `python -m stages.evaluate IMAGES REFERENCE [RESULT.json]`.

Both are a folder or .zip of images, or a folder of shards; REFERENCE may also be statistics (data/stats.npz). Values are
those of `stats` and `fid` in params.yaml, so the same images give the same digits as the pipeline.
"""

import json
import sys
from pathlib import Path

import torch

from ganops.config import load_params
from ganops.entry import say
from ganops.errors import DataError, GanopsError
from ganops.evaluation.images import evaluate_images
from ganops.files import write_json
from ganops.metrics.evaluate import summary


def main(source: Path, reference: Path, target: Path | None) -> None:
    """Prints the result as JSON and in words; writes it if there is a place for it."""
    if target is not None and (target.is_dir() or not target.name or not target.parent.is_dir()):
        raise DataError(f"{target}: no place for a file. Name one in a folder that exists.")
    result = evaluate_images(source, reference, load_params(Path("params.yaml")), Path())
    say(json.dumps(result, indent=1, sort_keys=True))
    for line in summary(result):
        say(f"evaluate: {line}")
    if target is not None:
        write_json(target, result)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python -m stages.evaluate IMAGES REFERENCE [RESULT.json]")
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) == 4 else None)
    except KeyboardInterrupt:
        sys.exit("evaluate: interrupted")
    except (GanopsError, OSError) as error:
        sys.exit(f"evaluate: {error}")
    except (MemoryError, torch.OutOfMemoryError):
        sys.exit("evaluate: out of memory. Close other programs, or lower stats.batch_size.")
