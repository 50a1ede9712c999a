"""What is a published set worth? `python examples/published_set.py SET DATASET [KEY=VALUE ...]`.

SET is what somebody else made: a `.pt` file of DC, DSA or DM, `images_<n>.pt` with `labels_<n>.pt`
beside it, a folder of class folders, or tar shards. DATASET is the real data it stands for, a name
of raydd's catalog such as cifar10. Networks are trained on the set alone by DM's protocol and
tested on the real test split, beside as many random and as many herded real images.
"""

from __future__ import annotations

import sys

from raydd.artifacts.reading import Reading
from raydd.config import load_evaluation
from raydd.runtime.evaluating import plan_stored, run_stored


def main(url: str, dataset: str, *changes: str) -> None:
    tree = {
        "dataset": {"name": dataset},
        "evaluation": {"protocol": "dm", "baselines": ["random", "herding"]},
    }
    job = load_evaluation(tree, changes)
    # DC's files hold normalised images: Reading(space="normalised"). Here it is told from the values.
    subject, plan = plan_stored(job, url, Reading(), None)
    for note in subject.notes:
        print(note)
    report = run_stored(job, subject, plan, print).report
    for row in report.rows:
        print(f"{row.set:10} {row.network:16} {row.accuracy_mean:5.1f} ± {row.accuracy_std:.1f} %")
    print(f"better than random images by {report.ior:+.1f} points")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
