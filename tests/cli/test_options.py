"""Which index a command takes when none is named, and what `build` says next."""

import shutil

import pytest


@pytest.fixture
def project(tmp_path, index, monkeypatch):
    """A folder with the index at indexes/default, and nothing in the environment."""
    monkeypatch.delenv("SIMSEARCH_INDEX")
    place = tmp_path / "project" / "indexes" / "default"
    place.parent.mkdir(parents=True)
    index.rename(place)
    deep = tmp_path / "project" / "a" / "b"
    deep.mkdir(parents=True)
    return tmp_path / "project"


def test_index_of_a_folder_above(run, project, monkeypatch):
    monkeypatch.chdir(project / "a" / "b")
    done = run("info", "--format", "json")
    assert done.json["items"] == 12
    assert done.err == f"note: the index is {project / 'indexes' / 'default'}\n"


def test_index_here_needs_no_note(run, project, monkeypatch):
    monkeypatch.chdir(project)
    done = run("query", "id:1", "-k", 1, "--format", "paths")
    assert (done.code, done.err) == (0, "")


def test_nearest_index_wins(run, project, monkeypatch, pictures):
    monkeypatch.chdir(project / "a" / "b")
    run("build", pictures / "red", "--model", "alexnet", "--dry-run")
    assert not (project / "a" / "b" / "indexes").exists()
    near = project / "a" / "indexes" / "default"
    near.parent.mkdir(parents=True)
    (project / "indexes" / "default").rename(near)
    assert run("info", "--format", "json").err == f"note: the index is {near}\n"


def test_no_index_anywhere(run, tmp_path, monkeypatch):
    monkeypatch.delenv("SIMSEARCH_INDEX")
    monkeypatch.chdir(tmp_path)
    done = run("query", "id:1")
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: there is no index at indexes/default",
        "hint: make one: simsearch build SOURCE -i indexes/default",
    ]


def test_an_index_beside_is_named(run, index, tmp_path, monkeypatch):
    monkeypatch.delenv("SIMSEARCH_INDEX")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(index, tmp_path / "indexes" / "photos")
    assert "hint: there is an index indexes/photos: -i indexes/photos; or make one:" in run("info").err
    shutil.copytree(index, tmp_path / "indexes" / "albums")
    assert "hint: there is an index indexes/photos:" in run("info", "-i", "indexes/photo").err  # the most similar name
    assert "hint: there is an index indexes/albums:" in run("info", "-i", "indexes/xyz").err


def test_build_makes_its_index_here(run, project, monkeypatch, pictures, tiny_weights):
    monkeypatch.chdir(project / "a")
    done = run("build", pictures, "--model", tiny_weights)
    assert done.out.startswith("indexes/default: 12 items; 12 added")
    assert "note: `simsearch query IMAGE` searches it, `simsearch serve` shows it in the browser" in done.err
    assert "searches it" not in run("build", pictures).err


def test_next_step_names_the_index(run, tmp_path, pictures, tiny_weights):
    done = run("build", pictures, "--model", tiny_weights, "-i", tmp_path / "my index")
    assert f"`simsearch query IMAGE -i '{tmp_path / 'my index'}'` searches it" in done.err
