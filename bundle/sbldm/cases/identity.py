"""What tells a case from another, whatever its files are called: hashes of its voxels, its mask and its place."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import nibabel as nib
import numpy as np

from sbldm.cases.layouts import Case, content_hash

__all__ = ["IDENTITY", "Identity", "Seen", "brightness_hash", "coarse_hash", "stamp"]

PARTS = {"image": "image", "mask": "mask", "place": "affine"}  # of an identity, in the words of messages


def _hash(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=20).hexdigest()


def brightness_hash(volume: np.ndarray) -> str:
    """Fingerprint of the non-zero voxels of a volume in the order of their brightness.

    The same for a copy that is stored with other axes, mirrored, padded or cropped, under whatever affine.
    """
    voxels = volume.ravel("K")
    voxels = voxels[voxels != 0].astype(np.float32)
    voxels.sort()
    return hashlib.blake2b(voxels, digest_size=20).hexdigest()


def coarse_hash(volume: np.ndarray, affine: np.ndarray) -> str:
    """`brightness_hash` of the means over 2 x 2 x 2 voxels `[X, Y, Z]`, from the left, front and lower end on, as whole
    numbers: that of the same scan once it has been stored with half the resolution.
    """
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LPS"))
    turned = nib.orientations.apply_orientation(volume, turn).astype(np.float64)
    even = np.pad(turned, [(0, n % 2) for n in turned.shape])
    x, y, z = (n // 2 for n in even.shape)
    return brightness_hash(np.rint(even.reshape(x, 2, y, 2, z, 2).mean((1, 3, 5))))


@dataclass(frozen=True)
class Seen:
    """Cases that a generator has learned from, as salted hashes of their voxels: who has a case can ask for it.

    Names are not among them: there are so few that they could be tried one by one.

    Attributes:
        lists: salt and hashes (of each case's content and brightness, see `Identity`) of each training that made it.
    """

    lists: tuple[tuple[str, frozenset[str]], ...] = ()

    @classmethod
    def of(cls, cases: Iterable[Mapping[str, Any]], salt: str = "") -> Seen:
        """Of cases by the `content` and, as far as it is known, the `brightness` of each one's identity."""
        salt = salt or secrets.token_hex(16)
        marks = [case[key] for case in cases for key in ("content", "brightness") if key in case]
        return cls(((salt, frozenset(_salted(mark, salt) for mark in marks)),))

    @classmethod
    def from_state(cls, state: Sequence[Mapping[str, Any]]) -> Seen:
        """The inverse of `state`."""
        return cls(tuple((own["salt"], frozenset(own["hashes"])) for own in state))

    def state(self) -> list[dict[str, Any]]:
        """Plain values; sorted, so that the order tells nothing."""
        return [{"salt": salt, "hashes": sorted(hashes)} for salt, hashes in self.lists]

    def holds(self, *marks: str) -> bool:
        """Whether a case with one of these marks (content, brightness) is among them."""
        return any(_salted(mark, salt) in hashes for salt, hashes in self.lists for mark in marks)

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.lists + other.lists)


def _salted(mark: str, salt: str) -> str:
    return hashlib.blake2b(mark.encode(), salt=bytes.fromhex(salt)[:16], digest_size=20).hexdigest()


@dataclass(frozen=True)
class Identity:
    """Hashes of one case, from its voxels as numbers: file names, number types and compression play no part.

    Attributes:
        content: of the first image as it is stored; it stands for the case in lineages.
        brightness: of the first image in any orientation, see `brightness_hash`.
        image: of all channels in their order.
        mask: of the labels, after they were mapped to those of the source.
        place: of the affine, to 0.0001 mm.
    """

    content: str
    brightness: str
    image: str
    mask: str
    place: str

    @classmethod
    def build(cls, hashes: Sequence[str], brightness: str, labels: np.ndarray, affine: np.ndarray) -> Identity:
        """From the content hash of each channel, the brightness hash of the first, labels `[X, Y, Z]` and affine."""
        place = _hash((np.round(affine.astype(float), 4) + 0.0).tolist())  # + 0 turns -0 into 0
        mask = hashlib.blake2b(repr(labels.shape).encode(), digest_size=20)
        mask.update(np.ascontiguousarray(labels.T, np.uint8))
        return cls(hashes[0], brightness, _hash(list(hashes)), mask.hexdigest(), place)

    @classmethod
    def of(cls, image: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> Identity:
        """From what `read_arrays` returns."""
        return cls.build([content_hash(channel) for channel in image], brightness_hash(image[0]), labels, affine)

    def state(self) -> dict[str, str]:
        """Plain values for a sidecar; `content` among them."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Identity:
        """The inverse of `state`; what else stands there is ignored."""
        return cls(**{name: state[name] for name in IDENTITY})

    def changes(self, held: Mapping[str, Any]) -> list[str]:
        """Which parts differ from those that a sidecar holds; one from before there were masks in it tells less."""
        if "image" not in held:
            return ["image"] if held.get("content") not in (None, self.content) else []
        return [word for part, word in PARTS.items() if held.get(part) != getattr(self, part)]


IDENTITY = tuple(field.name for field in fields(Identity))


def stamp(case: Case) -> list[Any]:
    """What changes whenever a file of a case is written anew: size, times and number of each, and what labels mean.

    Raises:
        OSError: a file is not there.
    """
    files = [(path, path.stat()) for path in dict.fromkeys((*case.images, case.mask))]
    stamps = [[str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in files]
    return [*stamps, repr(sorted(case.label_values.items())), list(case.volume)]
