"""Checks that the features of two indexes can be compared with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simsearch.errors import ModelMismatchError
from simsearch.models import registry

if TYPE_CHECKING:
    from simsearch.storage.protocols import OpenIndex


def check_same_features(one: OpenIndex, other: OpenIndex) -> None:
    """Raises ModelMismatchError if two indexes differ in model, kind of features, or precision (float32 or int8)."""
    ours, theirs = one.meta, other.meta
    same_model = any(
        registry.same_weights(meta.model, ours.weights_sha256, theirs.weights_sha256) for meta in (ours, theirs)
    )
    if ours.descriptor != theirs.descriptor and same_model:
        raise ModelMismatchError(
            f"the features of {one.path} ({ours.features}) and {other.path} ({theirs.features})"
            " are computed differently",
            hint=f'an index built with features="{one.path}" has the same features',
            shell_hint=f"an index built with --features {one.path} has the same features",
        )
    if not same_model or (ours.recipe, ours.dimension) != (theirs.recipe, theirs.dimension):
        raise ModelMismatchError(
            f"{one.path} was made by model {ours.model} with weights {ours.weights_sha256},"
            f" {other.path} by {theirs.model} with weights {theirs.weights_sha256}",
            hint="only indexes of one model can be merged or compared",
        )
    precision = registry.precision_of(ours.engine)
    if precision != registry.precision_of(theirs.engine):
        raise ModelMismatchError(
            f"{one.path} was made by {ours.engine}, {other.path} by {theirs.engine}: their features differ a little",
            hint=f"an index built with SIMSEARCH_PRECISION={precision} can be merged or compared with {one.path}",
        )
