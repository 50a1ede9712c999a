"""What an unroll costs, known without computing anything (docs/methods/rat_bptt_podd.md, "Cost")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from raydd.core.units import Cost
from raydd.methods.unroll.real_batches import REAL_CHUNK
from raydd.training.training_cost import network_facts

if TYPE_CHECKING:
    from raydd.methods.unroll.unroll_stage import Unroll

STEP, GRAPH_STEP, ADJOINT_STEP = 3, 9, 12
"""FLOP of an inner step in the warm-up and in the window of either engine, in forward passes."""
KEPT_MAPS, PRODUCT_MAPS, STEP_MAPS = 1.4, 7, 2
"""Values in memory of one image, in outputs of all layers: kept of a recorded step, at once for a
Hessian-vector product, and for a training step (docs/methods/rat_bptt_podd.md, "Memory and speed").
"""


def unroll_cost(stage: Unroll) -> Cost:
    """Return the cost of the only unit of a stage; memory is that of one worker, with one unroll at a time."""
    batches, placement = stage.batches, stage.placement
    facts = network_facts(stage.network, batches.shape, batches.classes)
    graph = stage.engine == "graph"
    inner = STEP * placement.mean_warmup
    inner += (GRAPH_STEP if graph else ADJOINT_STEP) * placement.mean_length
    images = inner * batches.batch + STEP * stage.batch_real
    flop = facts.flop * images * stage.unrolls * stage.iterations
    if stage.plateau is not None:
        per_epoch = max(1, -(-sum(stage.dataset.train_counts) // stage.batch_real))
        tests = stage.iterations / (per_epoch * stage.plateau.every)
        trained = STEP * stage.plateau.steps * batches.batch + sum(stage.dataset.train_counts)
        flop += facts.flop * tests * trained * stage.unrolls
    pixels = math.prod(batches.shape)
    made = 4 * batches.count * (pixels + batches.classes)
    real = 4 * stage.batch_real * pixels
    maps, weights = 4 * batches.batch * facts.activations, 4 * facts.parameters
    step = PRODUCT_MAPS * maps
    window = placement.longest * (int(KEPT_MAPS * maps) + 7 * weights if graph else 4 * weights)
    chunk = 4 * min(REAL_CHUNK, stage.batch_real) * facts.activations * STEP_MAPS
    resident = pixels * sum(stage.dataset.train_counts)
    whitening = 0 if stage.whitening is None else 3 * stage.whitening.bytes
    peak = resident + whitening + 2 * real + 3 * made + window + max(step, chunk) + 12 * weights
    return Cost(
        flop=flop,
        peak_bytes=peak,
        state_bytes=3 * batches.parameter_bytes,
        output_bytes=batches.output_bytes,
    )
