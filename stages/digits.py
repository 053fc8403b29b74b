"""Stage digits: scikit-learn's 1,797 handwritten digits as PNG files, one folder per class; no network needed.

They are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI, CC BY 4.0):
8x8 grey images with values 0 to 16.
"""

import numpy as np
from sklearn.datasets import load_digits

from ganops.entry import Stage, run_stage, say
from ganops.images.pixels import save_png


def main(stage: Stage) -> None:
    folder = stage.path("digits")
    digits = load_digits()
    images = np.floor(digits.images * (255 / 16) + 0.5).astype(np.uint8)  # 16 becomes 255
    for number, (image, label) in enumerate(zip(images, digits.target, strict=True)):
        save_png(folder / str(label) / f"{number:04d}.png", image)
    say(f"digits: {len(images)} images 8x8 in {folder}")


if __name__ == "__main__":
    run_stage("digits", main)
