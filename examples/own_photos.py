"""Distil your own photos: `python examples/own_photos.py PHOTOS [KEY=VALUE ...]`.

PHOTOS holds a folder of pictures for each class, or `train` and `test` (or `val`) with such folders:

    photos/cats/1.jpg  photos/cats/2.png ...
    photos/dogs/1.jpg ...

Ten images of 32 x 32 pixels for each class come out, made by DM on this machine's cores, and a
table of what they are worth beside as many random photos. KEY=VALUE changes any key of the job.
"""

from __future__ import annotations

import sys

from raydd import load
from raydd.config import load_job
from raydd.runtime.pipeline import run_job


def main(photos: str, *changes: str) -> None:
    job = load_job(
        None,
        [
            "name=own_photos",
            "dataset.name=image_folder",
            f"dataset.root={photos}",
            "dataset.size=32",
            "ipc=10",
            "method.name=dm",
            "method.iterations=1000",
            "evaluation.epochs=300",
            "compute.workers=0",
            *changes,
        ],
    )
    print(run_job(job, print).render())

    distilled = load(f"{job.output}/distilled")
    print(f"{len(distilled)} images of the classes {', '.join(distilled.class_names)}")
    image, label = distilled[0]
    print(
        f"the first: {tuple(image.shape)}, class {int(label)}; all of them: {job.output}/distilled"
    )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
