"""The facts about models (their model cards) as text, for `simsearch models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simsearch.common.atomic_files import atomic_write
from simsearch.common.printable import printable
from simsearch.errors import UsageError
from simsearch.models.registry import BUILTIN, DEFAULT, find_weights
from simsearch.models.weights import read_tensors
from simsearch.reports import charts
from simsearch.reports.text import format_size, table


def facts(model: str | None = None) -> list[dict[str, Any]]:
    """Returns the facts about all built-in models, or only about `model`, as plain JSON values."""
    rows = []
    for name in [model] if model else BUILTIN:
        weights = find_weights(name)
        card = weights.card
        rows.append(
            {
                "name": name,
                "default": name == DEFAULT,
                "architecture": card.architecture,
                "dimension": weights.config.dimension,
                "classes": len(card.classes),
                "bytes": weights.path.stat().st_size,
                "sha256": weights.sha256,
                "recipe": card.recipe.to_dict(),
                "arguments": card.arguments,
                "description": card.description,
                "training": card.training,
                "metrics": card.metrics,
                "int8_agreement": card.agreement if card.ranges else None,
            }
        )
    return rows


def brief() -> str:
    """Returns the list of models as text, with a line for each model."""
    rows = [("name", "features", "file", "")]
    for row in facts():
        mark = "default; " if row["default"] else ""
        rows.append(
            (row["name"], str(row["dimension"]), format_size(row["bytes"]), mark + row["description"].split(". ")[0])
        )
    rows.append(("torchvision/NAME", "", "", "any classifier of torchvision with its official weights, fetched once"))
    rows.append(("FILE.safetensors", "", "", "weights that simsearch wrote"))
    rows.append(("FILE.onnx", "", "", "any other network, with FILE.json beside it (docs/models.md)"))
    return "\n".join(table(rows))


def draw_filters(model: str | None, path: Path) -> int:
    """Draws the kernels of a model's first layer into a PNG file, and returns their number.

    model: the name of a built-in model or the path of a weights file; None for the default model.
    Raises UsageError if the name of the PNG file does not end in .png, and the errors of `find_weights`.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: kernels are drawn as PNG", hint=f"{path.with_suffix('.png')}")
    tensors = read_tensors(find_weights(model or DEFAULT).path)
    first = next(name for name in ("conv.0.weight", "layers.0.weight") if name in tensors)
    atomic_write(path, charts.png(charts.kernels(tensors[first])))
    return len(tensors[first])


def verbose(model: str | None = None) -> str:
    """Returns the facts about all built-in models, or only about `model`, as text with several lines for each model."""
    blocks = []
    for row in facts(model):
        recipe = row["recipe"]
        lines = [
            f"{row['name']}{' (default)' if row['default'] else ''}",
            f"  {row['description']}",
            f"  architecture: {row['architecture']}, {row['arguments']}",
            f"  features:     {row['dimension']} (last hidden layer), {row['classes']} classes",
            f"  recipe:       shorter side {recipe['resize']}, centre {recipe['crop']}, {recipe['interpolation']},"
            f" mean {[round(value, 1) for value in recipe['mean']]}",
            f"  file:         {row['bytes']:,} bytes, sha256 {row['sha256']}",
            *_int8(row["int8_agreement"]),
            *(
                printable(f"  training:     {key}: {value}")
                for key, value in row["training"].items()
                if key != "settings"
            ),
            *(printable(f"  score:        {key}: {value}") for key, value in row["metrics"].items()),
        ]
        blocks.append("\n".join(map(printable, lines)))
    return "\n\n".join(blocks)


def _int8(agreement: float | None) -> list[str]:
    if agreement is None:
        return []
    return [f"  int8:         shares {agreement:.1%} of the six nearest training images with float32"]
