"""All metrics of any images: `python -m stages.evaluate IMAGES REFERENCE [RESULT.json]`.

Both are a folder or .zip of images, or a folder of shards; REFERENCE may also be statistics (data/stats.npz). Values are
those of `stats` and `fid` in params.yaml, so the same images give the same digits as the pipeline.
"""

import json
from pathlib import Path

from ganops.config import load_params
from ganops.entry import say
from ganops.errors import DataError
from ganops.evaluation.images import evaluate_images
from ganops.explore.tool import refuse_output, run_command
from ganops.files import write_json
from ganops.metrics.evaluate import summary


def main(source: Path, reference: Path, target: Path | None = None) -> None:
    """Prints the result as JSON and in words; writes it if there is a place for it."""
    if target is not None and (target.is_dir() or not target.name or not target.parent.is_dir()):
        raise DataError(f"{target}: no place for a file. Name one in a folder that exists.")
    if target is not None:
        refuse_output(target)
    result = evaluate_images(source, reference, load_params(Path("params.yaml")), Path())
    say(json.dumps(result, indent=1, sort_keys=True))
    for line in summary(result):
        say(f"evaluate: {line}")
    if target is not None:
        write_json(target, result)


if __name__ == "__main__":
    run_command("evaluate", "IMAGES REFERENCE [RESULT.json]", lambda paths: main(*paths), ", or lower stats.batch_size")
