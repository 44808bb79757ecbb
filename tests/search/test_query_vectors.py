"""From queries to vectors: prepared in one place and resolved in another, looked up or computed."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import simsearch
from simsearch.errors import ImageError, ImageTooLargeError, ItemNotFoundError, UsageError
from simsearch.search.queries import OutdatedQueryError, PreparedImage, PreparedQuery, as_list
from tests.helpers.pictures import draw


@pytest.fixture
def engine(tmp_path, photos, colours):
    with simsearch.build(photos, tmp_path / "index", model=colours) as engine:
        colours.computed = 0
        yield engine


@pytest.fixture
def fresh(tmp_path):
    """A picture that is not in the index."""
    return draw(tmp_path / "fresh.png", 99)


def vectors(resolved):
    assert isinstance(resolved, np.ndarray), resolved
    return resolved


def test_known_content_is_looked_up(engine, photos, colours, fresh):
    known = photos / "blue" / "3.png"
    with engine.query_resolver() as resolver:
        queries = resolver.prepare_many([known, known.read_bytes(), 4])
        assert all(query.image.pixels is None for query in queries)  # not even decoded
        found = [vectors(each) for each in resolver.resolve(queries)]
        assert colours.computed == 0
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[2][0], engine.stored_features(4))
        resolver.resolve(resolver.prepare_many([fresh]))
        assert colours.computed == 1


def test_a_file_is_prepared_without_a_look_into_the_index(engine, photos, fresh, monkeypatch):
    opened, reading = [], engine.opened_index.reading

    def counted():
        opened.append(1)
        return reading()

    monkeypatch.setattr(engine.opened_index, "reading", counted)
    with engine.query_resolver(serving=True) as resolver:
        query = resolver.prepare(fresh.read_bytes(), flip=True)
        assert not opened
        resolver.prepare(fresh.read_bytes(), plus=[1])
        resolver.resolve([query])
    assert len(opened) == 1  # one snapshot for all of them


def test_only_mirror_of_known_is_computed(engine, photos, colours):
    path = photos / "blue" / "3.png"
    with engine.query_resolver() as resolver:
        for query in (path, engine.find(str(path))[0].id):
            colours.computed = 0
            own, mirrored = vectors(resolver.resolve(resolver.prepare_many([query], flip=True))[0])
            assert colours.computed == 1
            image = Image.open(path)
            assert np.array_equal(own, engine.features([image])[0])
            assert np.array_equal(mirrored, engine.features([ImageOps.mirror(image)])[0])


def test_examples_are_computed_once(engine, photos, colours, fresh):
    pictures = [photos / "blue" / f"{number}.png" for number in range(5)]
    found = engine.search_many(pictures, plus=[(fresh, 2.0)], minus=[7])
    assert colours.computed == 1
    colours.computed = 0
    alone = [engine.search(picture, plus=[(fresh, 2.0)], minus=[7]) for picture in pictures]
    assert colours.computed == 5
    assert found == alone


def test_one_failing_query_leaves_the_others(engine, fresh):
    with engine.query_resolver() as resolver:
        queries = [
            resolver.prepare(fresh),
            resolver.prepare(999),
            resolver.prepare(fresh, plus=[998]),
            resolver.prepare(2),
        ]
        first, unknown, example, last = resolver.resolve(queries)
    assert vectors(first).shape == vectors(last).shape == (1, 12)
    assert isinstance(unknown, ItemNotFoundError)
    assert isinstance(example, ItemNotFoundError) and "998" in str(example)


def test_left_out_are_the_ids_it_was_made_from(engine, photos, fresh):
    with engine.query_resolver() as resolver:
        assert resolver.left_out(resolver.prepare(3, plus=[5, fresh], minus=[7])) == [3, 5]
        assert resolver.left_out(resolver.prepare(photos / "blue" / "3.png", crop=(0, 0, 8, 8))) == []
        assert resolver.left_out(resolver.prepare(3, flip=True, crop=(0, 0, 8, 8))) == [3]
        assert resolver.left_out(resolver.prepare_vector(np.zeros(12), plus=[1])) == [1]


def test_a_query_outlives_its_snapshot(engine, fresh, tmp_path):
    """Prepared for a service, it is decoded in any case; what it is made from may be indexed or removed meanwhile."""
    with engine.query_resolver(serving=True) as resolver:
        prepared = [resolver.prepare(fresh), resolver.prepare(5, flip=True), resolver.prepare(6)]
        before = resolver.resolve(prepared)
    engine.add(fresh)
    engine.remove([6])
    with engine.query_resolver(serving=True) as resolver:
        after = resolver.resolve(prepared)
    assert np.array_equal(vectors(before[0]), vectors(after[0]))
    assert np.array_equal(vectors(before[1]), vectors(after[1]))
    assert isinstance(after[2], ItemNotFoundError)


def test_an_index_of_another_model(engine, fresh):
    pixels = np.zeros((16, 16, 3), np.uint8)
    item = engine.item(1)
    with engine.query_resolver() as resolver:
        stored = vectors(resolver.resolve([resolver.prepare(1)])[0])
        for image, reason in (
            (PreparedImage(pixels=pixels, weights_sha256="0" * 64), "another model"),
            (PreparedImage(item=1, digest=item.digest, mirrored=pixels, weights_sha256="0" * 64), "another model"),
            (PreparedImage(item=1, digest=b"x" * 32, pixels=pixels), "item has changed since"),
            (PreparedImage(digest=b"x" * 32), "no longer has the features"),
            (PreparedImage(vector=np.zeros(7, np.float32)), "another dimension"),
        ):
            error = resolver.resolve([PreparedQuery(image)])[0]
            assert isinstance(error, OutdatedQueryError) and reason in str(error)
        known = PreparedImage(digest=item.digest, pixels=pixels, weights_sha256="0" * 64)  # nothing to compute
        assert np.array_equal(vectors(resolver.resolve([PreparedQuery(known)])[0]), stored)


def test_threads_keep_the_order(engine, tmp_path):
    pictures = [draw(tmp_path / f"{number}.png", 200 + number) for number in range(40)]
    mixed = [Image.open(p) if n % 3 == 0 else p.read_bytes() if n % 3 == 1 else p for n, p in enumerate(pictures)]
    with engine.query_resolver() as resolver:
        found = [vectors(each)[0] for each in resolver.resolve(resolver.prepare_many(mixed))]
    assert np.array_equal(np.stack(found), engine.features(pictures))


def test_the_first_failing_picture_is_named(engine, tmp_path, fresh):
    bad = [tmp_path / f"bad{number}.png" for number in range(2)]
    for path in bad:
        path.write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"bad0\.png: not an image"):
        engine.search_many([fresh, *bad])
    with engine.query_resolver(serving=True) as resolver, pytest.raises(ImageError, match=r"^not an image"):
        resolver.prepare(bad[0].read_bytes())


def test_the_largest_picture(engine):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    with engine.query_resolver(serving=True, max_pixels=1000) as resolver, pytest.raises(ImageTooLargeError):
        resolver.prepare(buffer.getvalue())


def test_file_objects(engine, photos, fresh):
    with fresh.open("rb") as file:
        assert engine.search(file) == engine.search(fresh)
    with fresh.open("rb") as first, (photos / "blue" / "0.png").open("rb") as second:
        assert engine.search_many([first, second]) == engine.search_many([fresh, photos / "blue" / "0.png"])
    assert engine.search(io.BytesIO(fresh.read_bytes())) == engine.search(fresh)
    assert engine.search(1, plus=io.BytesIO(fresh.read_bytes())) == engine.search(1, plus=fresh)


def test_bad_file_objects(engine, fresh):
    with fresh.open("r", encoding="latin-1") as text, pytest.raises(UsageError, match="not open in binary mode"):
        engine.search(text)
    with fresh.open("rb") as file:
        pass
    with pytest.raises(ImageError, match="cannot be read"):
        engine.search(file)
    with tempfile.SpooledTemporaryFile() as unnamed:  # as of an upload; its name is None
        unnamed.write(b"no picture")
        unnamed.seek(0)
        with pytest.raises(ImageError, match=r"^the image given as a file: not an image"):
            engine.search(unnamed)
    with pytest.raises(ImageError, match="given as a file: not an image"):
        engine.search(io.BytesIO(b"not an image"))


def test_bad_vectors(engine):
    with engine.query_resolver() as resolver:
        for bad, reason in (
            (np.zeros(3), "3 dimensions, but the index has 12"),
            ([np.nan] * 12, "not finite"),
            (["a"] * 12, "not made of real numbers"),
        ):
            with pytest.raises(UsageError, match=reason):
                resolver.prepare_vector(bad)
        for options, reason in (({"flip": True}, "cannot be mirrored"), ({"crop": (0, 0, 1, 1)}, "cannot be cropped")):
            with pytest.raises(UsageError, match=reason):
                resolver.prepare_vector(np.zeros(12), **options)


def test_as_list():
    single = ["cat.jpg", b"data", 7, np.int64(7), Path("cat.jpg"), io.BytesIO(), np.zeros((2, 2, 3)), ("cat.jpg", 2.0)]
    for picture in single:
        assert as_list(picture)[0] is picture
    assert as_list(("a", "b")) == ["a", "b"]
    assert as_list(range(2)) == [0, 1]
