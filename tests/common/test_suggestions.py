"""Hints about mistyped names."""

from simsearch.common import suggestions


def test_nearest_known_name():
    known = ["label", "path", "id", "Width"]
    found = {name: suggestions.nearest(name, known) for name in ("labl", "LABEL", "width", "kind", "")}
    assert found == {"labl": "label", "LABEL": "label", "width": "Width", "kind": None, "": None}
    assert suggestions.nearest("dgo", ["god", "cat"]) == "god"
    assert suggestions.nearest("pi", ["ip"]) is None
    assert suggestions.hint("pth", known) == "did you mean path?"
    assert suggestions.hint("zzz", known) == "one of label, path, id, Width"
