"""Reads and writes `components.safetensors`, the principal components that an index's features are projected on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.numpy

from simsearch.common.pca import Projection
from simsearch.errors import IndexDamagedError
from simsearch.models.descriptors import Descriptor, DescriptorModel
from simsearch.storage.folder import error_for

if TYPE_CHECKING:
    from simsearch.models.base import Model
    from simsearch.storage.folder import Folder
    from simsearch.storage.meta import Meta

FILE = "components.safetensors"

LIMIT = 1 << 30
"""Maximum size of the components file in bytes; a larger file is not read."""


def write(folder: Folder, projection: Projection) -> str:
    """Writes principal components to an index's folder, atomically and durably; returns the SHA-256 of the file."""
    data = safetensors.numpy.save({"mean": projection.mean, "axes": projection.axes})
    folder.write(FILE, data)
    return hashlib.sha256(data).hexdigest()


def record(folder: Folder, model: Model) -> dict[str, Any]:
    """Writes a model's principal components, if it has any; returns the definition of its features for `meta.json`.

    The definition is {} for a model that computes the plain features, those of the network's last hidden layer. Only a
    `DescriptorModel`, which `build --features` uses, computes other features.
    """
    if not isinstance(model, DescriptorModel):
        return {}
    digest = {} if model.projection is None else {"components_sha256": write(folder, model.projection)}
    return {**model.descriptor.to_dict(), **digest}


def read(folder: Folder, sha256: str) -> Projection:
    """Reads the principal components of an index.

    sha256: the expected SHA-256 of the file, in hexadecimal.
    Raises IndexDamagedError if the file is missing or damaged or has another SHA-256, and SimsearchError if the system
    cannot read it.
    """
    path = folder.path / FILE
    try:
        data = folder.read(FILE, LIMIT)
    except OSError as error:
        raise error_for(path, error) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IndexDamagedError(f"{path} has SHA-256 {found}, expected {sha256}")
    try:
        tensors = safetensors.numpy.load(data)
        mean, axes = tensors["mean"], tensors["axes"]
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise IndexDamagedError(f"{path}: {error}") from error
    kinds = {str(mean.dtype), str(axes.dtype)}
    if kinds != {"float32"} or (mean.ndim, axes.ndim) != (1, 2) or len(mean) != len(axes):
        raise IndexDamagedError(f"{path} does not hold principal components")
    return Projection(mean, axes)


def read_recorded(folder: Folder | None, meta: Meta) -> Projection | None:
    """Reads the principal components of an index; returns None if the index uses none.

    folder: the index's folder; None if the index has no folder.
    Raises IndexDamagedError if the components are missing or damaged.
    """
    digest = meta.descriptor.get("components_sha256")
    if digest is None:
        return None
    if folder is None:
        raise IndexDamagedError(f"the principal components for the features {meta.features} are missing")
    return read(folder, str(digest))


def apply(model: Model, folder: Folder | None, meta: Meta) -> Model:
    """Returns the model that computes the features of an index.

    If the index has plain features, those of the network's last hidden layer, returns the base model, which computes
    them. Otherwise returns a `DescriptorModel`, which computes the index's features with the base model.
    model: a base model, or a `DescriptorModel`, of which only the base model is used.
    Raises IndexDamagedError if the principal components are missing or damaged, or have another dimension than the
    index.
    """
    base = model.base if isinstance(model, DescriptorModel) else model
    if not meta.descriptor:
        return base
    values = {key: value for key, value in meta.descriptor.items() if key != "components_sha256"}
    found = DescriptorModel(base, Descriptor.from_dict(values), read_recorded(folder, meta))
    if found.dimension != meta.dimension:
        place = "" if folder is None else f"{folder.path}: "
        message = f"{place}the features {meta.features} have {found.dimension} dimensions, not {meta.dimension}"
        raise IndexDamagedError(message)
    return found
