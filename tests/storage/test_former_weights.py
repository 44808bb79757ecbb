"""Indexes made by former weights of a built-in model: stored features still serve, new ones are refused."""

import json
import shutil

import pytest
from click.testing import CliRunner

import simsearch
from simsearch.cli.main import main
from simsearch.errors import UsageError
from simsearch.models import load, registry
from simsearch.models.weights import read_card, read_tensors, write


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(params=["alexnet", "alexnet-distilled"])
def former(request, tiny_weights, photos, tmp_path, monkeypatch):
    """An index that records `alexnet` under either name, made before the shipped weights changed.

    Returned: the index, the file with the former weights, and the SHA-256 of both.
    """
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    shutil.copy(tiny_weights, old)
    tensors = read_tensors(old)
    write(new, read_card(old), {name: value * 2 for name, value in tensors.items()}, {})
    monkeypatch.setitem(registry.BUILTIN, "alexnet", str(old))
    index = tmp_path / "index"
    simsearch.build(photos, index).close()
    meta = json.loads((index / "meta.json").read_text())
    del meta["crc32"]  # as in former versions
    (index / "meta.json").write_text(json.dumps({**meta, "model": request.param}))
    monkeypatch.setitem(registry.BUILTIN, "alexnet", str(new))
    return index, old, meta["weights_sha256"], registry.find_weights("alexnet").sha256


def test_new_features_are_refused_in_one_line(former, photos):
    index, _, before, now = former
    shutil.copy(photos / "amber" / "0.png", photos / "new.png")
    picture = photos / "new.png"
    picture.write_bytes(picture.read_bytes() + b"\0")  # content that the index does not have
    for command in (["query", picture], ["add", picture], ["build", photos], ["query", "id:1", "--model", "alexnet"]):
        done = run(*command, "-i", index)
        assert done.exit_code == 2, done.output
        assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr
        assert before in done.stderr
        assert now in done.stderr
        assert "former weights of alexnet" in done.stderr
        assert "--model FILE" in done.stderr


def test_stored_features_still_serve(former, photos, tmp_path):
    index, _, before, _ = former
    for command in (
        ["query", "id:1"],
        ["query", photos / "amber" / "0.png"],  # its content is stored
        ["info"],
        ["verify"],
        ["export", "-o", tmp_path / "out"],
        ["duplicates", "--max-distance", 0],
        ["duplicates"],
    ):
        done = run(*command, "-i", index)
        assert done.exit_code in ({0, 1} if command[0] == "duplicates" else {0}), done.output
    assert before in run("info", "-i", index).stdout


def test_former_weights_by_their_file(former, photos):
    index, old, *_ = former
    picture = photos / "amber" / "0.png"
    done = run("query", picture, "--crop", "0,0,9,9", "-i", index, "--model", old)
    assert done.exit_code == 0, done.output


def test_former_name_is_understood(tiny_weights, photos, tmp_path, monkeypatch):
    """An index that records the former name of the same weights is used as before."""
    weights = tmp_path / "w.safetensors"
    shutil.copy(tiny_weights, weights)
    monkeypatch.setitem(registry.BUILTIN, "alexnet", str(weights))
    index = tmp_path / "index"
    simsearch.build(photos, index).close()
    meta = json.loads((index / "meta.json").read_text())
    del meta["crc32"]  # as in former versions
    (index / "meta.json").write_text(json.dumps({**meta, "model": "alexnet-distilled"}))
    with simsearch.open(index) as engine:
        assert engine.load_model().name == "alexnet"


def test_renamed_models_say_so(tmp_path, photos):
    with pytest.raises(UsageError, match="alexnet-distilled is called alexnet now"):
        load.load_model("alexnet-distilled")
    done = run("build", photos, "-i", tmp_path / "index", "--model", "alexnet-distilled")
    assert done.exit_code == 2
    assert done.stderr.count("error:") == 1
