"""The learned components of an index's features: the file in its folder that holds them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.numpy

from simsearch.common.atomic_files import sync_folder
from simsearch.common.pca import Projection
from simsearch.errors import IndexDamagedError

if TYPE_CHECKING:
    from simsearch.models.base import Model
    from simsearch.storage.meta import Meta
from simsearch.models.descriptors import Descriptor, DescriptorModel

FILE = "components.safetensors"

"""In an index's folder: the principal components that its features are made with."""


def write_components(folder: Path, projection: Projection) -> str:
    """Writes the components into an index's folder, durably in one step, and returns their SHA-256."""
    data = safetensors.numpy.save({"mean": projection.mean, "axes": projection.axes})
    partial = folder / f".{FILE}.partial"
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / FILE)
    sync_folder(folder)
    return hashlib.sha256(data).hexdigest()


def descriptor_record(folder: Path, model: Model) -> dict[str, Any]:
    """What `meta.json` says of a model's descriptor, whose components are written first; empty without one."""
    if not isinstance(model, DescriptorModel):
        return {}
    digest = {} if model.projection is None else {"components_sha256": write_components(folder, model.projection)}
    return {**model.descriptor.to_dict(), **digest}


def read_components(folder: Path, sha256: str) -> Projection:
    """The components of an index. Raises IndexDamagedError unless they are those that it was made with."""
    path = folder / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IndexDamagedError(f"{path}: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IndexDamagedError(f"{path} has SHA-256 {found}, recorded was {sha256}")
    tensors = safetensors.numpy.load(data)
    return Projection(tensors["mean"], tensors["axes"])


def load_components(folder: Path, meta: Meta) -> Projection | None:
    """An index's components; None if its features have none. Raises IndexDamagedError."""
    digest = meta.descriptor.get("components_sha256")
    return None if digest is None else read_components(folder, str(digest))


def descriptor_model_of(model: Model, folder: Path, meta: Meta) -> Model:
    """The model that an index's features come from: `model`, or what the index's recipe makes of it."""
    base = model.base if isinstance(model, DescriptorModel) else model
    if not meta.descriptor:
        return base
    values = {key: value for key, value in meta.descriptor.items() if key != "components_sha256"}
    found = DescriptorModel(base, Descriptor.from_dict(values), load_components(folder, meta))
    if found.dimension != meta.dimension:
        raise IndexDamagedError(f"{folder}: {meta.features} has {found.dimension} dimensions, not {meta.dimension}")
    return found
