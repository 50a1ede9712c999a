"""A picture of an IT-GAN job that has run: of each class real images, what was inverted from them, what was learnt.

    python tests/benchmarks/side_by_side.py jobs/digits_itgan.yaml OUT.png [KEY=VALUE ...]

``KEY=VALUE``: what the run changed in the job, ``store=`` among it. The first seed's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from raydd.artifacts.generated import stored_weights
from raydd.artifacts.grid import grid
from raydd.config import load_job
from raydd.core.store import Store
from raydd.core.units import Ref
from raydd.data.datasets import describe, open_data, with_digests
from raydd.methods.itgan import ItGan
from raydd.methods.latents.inversion import Invert
from raydd.methods.latents.latent_matching import MatchLatents
from raydd.methods.latents.latent_rows import GENERATOR
from raydd.methods.method import Problem

COLUMNS = 12


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job")
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    job = load_job(args.job, args.overrides)
    data = open_data(job.dataset)
    info = with_digests(describe(job.dataset), data)
    if not isinstance(job.method, ItGan):
        raise SystemExit(f"{args.job} is a job of '{job.method.name}'")
    problem = Problem(dataset=info, ipc=job.ipc, seed=job.seeds[0], numerics=job.numerics)
    inversion, latents = job.method.plan(problem)[-2:]
    assert isinstance(inversion, Invert)
    assert isinstance(latents, MatchLatents)
    store = Store(job.store)
    weights = stored_weights(store.load(Ref(inversion.generator, GENERATOR)), torch.float32)
    images, labels, names = [], [], []
    for label in range(min(10, info.classes)):
        found = {
            name: [
                store.load(Ref(stage, unit))
                for unit, part in stage.parts.items()
                if part.label == label
            ]
            for name, stage in (("inverted", inversion), ("learnt", latents))
        }
        ids = torch.cat([one["ids"] for one in found["inverted"]])[:COLUMNS]
        rows = [data["train"].take(ids).float() / 255]
        for outputs in found.values():
            z = torch.cat([one["z"] for one in outputs])[:COLUMNS].float()
            given = {"images": z, "labels": torch.full((len(z),), label), **weights}
            made = inversion.decoder.take(given)
            mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (info.mean, info.std))
            rows.append(made * std + mean)
        of_class = info.class_names[label] if info.class_names else str(label)
        for name, row in zip(("real", "inverted", "learnt"), rows, strict=True):
            labels += [len(names)] * len(row)
            names.append(f"{of_class} {name}"[:24])
            images.append(row)
    grid(torch.cat(images), torch.tensor(labels), names).save(args.out)


if __name__ == "__main__":
    main()
