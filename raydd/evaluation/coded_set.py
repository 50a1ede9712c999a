"""Sets that students see as they come out of a file, and random images that fill such a file (docs/per_byte.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from raydd.artifacts.byte_filling import most_that_fit, none_fits
from raydd.artifacts.coded_facts import CodedFacts, ImageCodec
from raydd.artifacts.decoding import SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.reading import Reading
from raydd.core.errors import DataError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Ref, Stage
from raydd.data.catalog import DatasetInfo
from raydd.evaluation.coding_rule import CodingRule
from raydd.evaluation.set_sources import AssembledSet, StoredSet

BYTES_PER_VALUE = {8: 0.63, 4: 0.22, 3: 0.13, 2: 0.075, 1: 0.034}
"""Bytes that a value takes on Fashion-MNIST, by bits: for estimates of how many random images fill a file."""


@dataclass(frozen=True, kw_only=True)
class EncodeSet(Stage):
    """Code the set of ``source`` as ``rule`` says, once for all its students. Output: ``file`` uint8 ``[bytes]``.

    ``ConfigError`` for a set that cannot be coded, or whose smallest file is larger than the budget.
    """

    phase: ClassVar[str] = "evaluate"

    seed: int = 0
    source: Any
    rule: CodingRule

    @property
    def images(self) -> int:
        """Number of images that students see, about: a budget may leave some out."""
        return int(self.source.images)

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return what the set is made of."""
        inputs: Mapping[str, Ref] = self.source.inputs()
        return inputs

    def steps(self, unit: str) -> int:
        """Return 0: there is nothing to iterate."""
        return 0

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the file."""
        kept = self._kept()
        return {"file": as_tensor(kept or self.rule.file(self.source.load(ctx)))}

    def _kept(self) -> bytes | None:
        """Return the file that a stored set has already, if it is coded in this very way."""
        from raydd.artifacts.encoding import coded_file
        from raydd.artifacts.image_codecs import facts

        source = self.source
        if not isinstance(source, StoredSet) or source.reading != Reading() or self.rule.budget:
            return None
        source.read()  # refuses one that has changed
        file = coded_file(source.url)
        return file if file is not None and facts(file).codec == self.rule.codec else None


@dataclass(frozen=True, kw_only=True)
class FillBytes(Stage):
    """Fill a file's bytes with random real images, as many of each class as fit. Output: ``file`` uint8 ``[bytes]``.

    ``beside``: what makes the file that is filled. ``codec``: of the images; ``None``: the one of
    that file. A class's images are the first of the permutation of which the method ``random``
    takes its own, by the stage's seed: so larger files hold the images of smaller ones.
    ``DataError`` where not even one image of each class fits.
    """

    phase: ClassVar[str] = "evaluate"

    beside: EncodeSet
    dataset: DatasetInfo
    codec: ImageCodec | None = None

    @property
    def images(self) -> int:
        """Number of images, estimated."""
        own = self.beside.rule.codec.bits or 8
        bits = self.codec.bits if self.codec is not None else own
        held = self.beside.images
        return max(held, round(held * BYTES_PER_VALUE[own] / BYTES_PER_VALUE[bits or 8]))

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the file whose bytes are filled."""
        return {"file": Ref(self.beside, "all")}

    def steps(self, unit: str) -> int:
        """Return 0: there is nothing to iterate."""
        return 0

    def cost(self, unit: str) -> Cost:
        """Return the bytes of the images, about."""
        info = self.dataset
        pixels = self.images * info.channels * info.height * info.width
        return Cost(peak_bytes=16 * pixels, output_bytes=pixels // 4)

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the file of random images."""
        from raydd.artifacts.image_codecs import encode, facts

        room = ctx.load("file")["file"]
        codec = facts(as_bytes(room)).codec if self.codec is None else self.codec
        orders = [self._order(label, ctx) for label in range(self.dataset.classes)]
        if not all(map(len, orders)):
            raise DataError(f"no training images of class {[len(o) for o in orders].index(0)}")

        def code(count: int) -> bytes:
            return encode(self._first(orders, count, ctx), codec)

        found = most_that_fit(code, len(room), min(map(len, orders)))
        if found is None:
            how = f"{codec.text}, one image of each class"
            raise none_fits("random images", len(room), len(code(1)), how)
        return {"file": as_tensor(found[1])}

    def _order(self, label: int, ctx: Context) -> Tensor:
        """Return the indices of a class's images, in the order of choice."""
        members = (ctx.data["train"].labels == label).nonzero().flatten()
        return members[torch.randperm(len(members), generator=ctx.rng("random", label))]

    def _first(self, orders: list[Tensor], count: int, ctx: Context) -> DistilledSet:
        ids = torch.cat([order[:count] for order in orders])
        labels = torch.arange(len(orders)).repeat_interleave(count)
        return DistilledSet(images=ctx.data["train"].take(ids), labels=labels, info=self.dataset)


@dataclass(frozen=True, kw_only=True)
class CodedSet:
    """A source: what is decoded of the file that a stage makes. ``dataset``: its facts, without digests."""

    made: EncodeSet | FillBytes
    dataset: DatasetInfo

    def inputs(self) -> Mapping[str, Ref]:
        """Return the file."""
        return {"file": Ref(self.made, "all")}

    def load(self, ctx: Context) -> DistilledSet:
        """Return the set in the file."""
        from raydd.artifacts.image_codecs import decode

        return decode(self._file(ctx), self.dataset, "the coded set")

    def facts(self, ctx: Context) -> CodedFacts:
        """Return what the file says of itself."""
        from raydd.artifacts.image_codecs import facts

        return facts(self._file(ctx), "the coded set")

    @staticmethod
    def _file(ctx: Context) -> bytes:
        return as_bytes(ctx.load("file")["file"])

    @property
    def images(self) -> int:
        """Number of images that students see, for estimates."""
        return self.made.images

    @property
    def size(self) -> SetSize:
        """Images, estimated; what is kept is known once it is coded."""
        return SetSize(self.images, self.images, 0)


def coded(source: AssembledSet, rule: CodingRule, dataset: DatasetInfo) -> CodedSet:
    """Return a source as it comes out of the file that ``rule`` makes of it."""
    return CodedSet(made=EncodeSet(source=source, rule=rule), dataset=dataset.only())


def coded_sizes(facts: CodedFacts) -> dict[str, int]:
    """Return what an evaluation keeps of a coded set's file: its bytes, those of labels among them,
    the images in it, their bits and size.
    """
    return {
        "file_bytes": facts.bytes,
        "file_label_bytes": facts.label_bytes,
        "stored": facts.images,
        "bits": facts.codec.bits or 0,
        "size": facts.codec.size,
    }


def as_tensor(file: bytes) -> Tensor:
    """Return a file as uint8 ``[bytes]``."""
    return torch.frombuffer(bytearray(file), dtype=torch.uint8)


def as_bytes(file: Tensor) -> bytes:
    """Return the bytes of a file that is kept as a tensor."""
    return file.cpu().numpy().tobytes()
