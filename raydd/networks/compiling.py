"""Settings that everything compiled here shares."""

from __future__ import annotations

_SHAPES = 512
"""How many shapes, structures and gradient modes one process may compile; more is an error, never a
silent fall-back to eager.
"""


def allow_many_shapes() -> None:
    """Raise the compiler's limit: the default of 8 ends in eager code without an error; with
    ``fullgraph``, reaching it raises.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, _SHAPES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, _SHAPES)
