"""Of every process that tests start, Ray's as well: the collector of cycles, which finds next to nothing in what
imports make, looks seldom. A small job on Ray is a dozen processes that import, and takes an eighth less.
"""

import gc

gc.set_threshold(50_000, 20, 50)
