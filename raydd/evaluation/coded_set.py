"""A source that wraps a source: its set as it comes out of an image codec (docs/per_byte.md, "In a job")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raydd.artifacts.coded_facts import ImageCodec
from raydd.artifacts.decoding import SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.encoding import Encoded, encoded_set
from raydd.core.errors import ConfigError
from raydd.core.units import Context, Ref
from raydd.evaluation.packed_set import PackedSet
from raydd.evaluation.set_sources import AssembledSet
from raydd.methods.method import Method


@dataclass(frozen=True, kw_only=True)
class CodedSet:
    """The set of ``made``, encoded and decoded: what students see is what the file holds.

    The codec is in the key of whatever is trained on the set, and in none of what makes it.
    """

    made: AssembledSet | PackedSet
    codec: ImageCodec

    def inputs(self) -> Mapping[str, Ref]:
        """Return what the set is made of."""
        return self.made.inputs()

    def load(self, ctx: Context) -> DistilledSet:
        """Return the decoded set; ``ConfigError`` for one that cannot be coded."""
        return self.encoded(self.made.load(ctx)).distilled

    def encoded(self, distilled: DistilledSet) -> Encoded:
        """Return the file of an assembled set, and what it is decoded to."""
        return encoded_set(distilled, self.codec)

    @property
    def note(self) -> str:
        """What a reader of the report has to know of the set that is coded."""
        return self.made.note if isinstance(self.made, PackedSet) else ""

    @property
    def method(self) -> Method:
        """What made the set."""
        return self.made.method if isinstance(self.made, AssembledSet) else self.made.made.method

    @property
    def images(self) -> int:
        """Number of images that students see."""
        return self.made.images

    @property
    def size(self) -> SetSize:
        """What the decoded set keeps: images in 8 bits."""
        whole = self.made.size
        labels = 8 * whole.stored
        pixels = (whole.bytes - labels) // self.method.value_bytes
        return SetSize(whole.stored, whole.seen, pixels + labels, whole.whitening)


def coded(
    source: AssembledSet | PackedSet, codec: ImageCodec | None
) -> AssembledSet | PackedSet | CodedSet:
    """Return a source behind a codec, or without one as it is; ``ConfigError`` for sets that cannot be coded."""
    if codec is None:
        return source
    made = CodedSet(made=source, codec=codec)
    method = made.method
    if method.made_in != "normalised":
        raise ConfigError(
            f"images: the sets of '{method.name}' are whitened ('{method.made_in}'), and whitened values are no"
            " pixels; leave out images, or set the method's space to normalised"
        )
    if not method.stores_pixels:
        raise ConfigError(
            f"images: the sets of '{method.name}' store what images are made of, and no pixels; leave out images"
        )
    return made
