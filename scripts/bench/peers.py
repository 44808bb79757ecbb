"""Search methods behind one small interface, as ann-benchmarks has it: build, save, load, set, query, batch.

Vectors are float32 (n, D), mapped from a file; answers are positions in them. Parameters are each library's defaults or
those of its documentation; `settings` is what trades speed for recall.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

THREADS = os.cpu_count() or 1


class Method:
    """settings: what `set` takes, from fast to exact. module: what must be importable."""

    module = "faiss"
    settings: tuple[Any, ...] = (None,)

    def build(self, vectors: np.ndarray, folder: Path) -> None: ...

    def load(self, folder: Path, dimension: int) -> None: ...

    def set(self, setting: Any) -> None: ...

    def query(self, query: np.ndarray, k: int) -> np.ndarray:
        return self.batch(query[None], k)[0]

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray: ...


class Faiss(Method):
    """A factory string; {lists} is 4 times the root of the number of vectors."""

    def __init__(self, factory: str, parameter: str | None = None, settings: tuple[Any, ...] = (None,)) -> None:
        self.factory, self.parameter, self.settings = factory, parameter, settings

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        import faiss

        index = faiss.index_factory(vectors.shape[1], self.factory.format(lists=int(4 * len(vectors) ** 0.5)))
        if not index.is_trained:
            index.train(np.ascontiguousarray(vectors))
        for start in range(0, len(vectors), 8192):
            index.add(np.ascontiguousarray(vectors[start : start + 8192]))
        faiss.write_index(index, str(folder / "index"))

    def load(self, folder: Path, dimension: int) -> None:
        import faiss

        self.index = faiss.read_index(str(folder / "index"))

    def set(self, setting: Any) -> None:
        import faiss

        if self.parameter:
            faiss.ParameterSpace().set_index_parameter(self.index, self.parameter, setting)

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.search(queries, k)[1]


class Autofaiss(Faiss):
    module = "autofaiss"

    def __init__(self) -> None:
        super().__init__("")

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        import autofaiss
        import faiss

        index, _ = autofaiss.build_index(
            np.ascontiguousarray(vectors),
            save_on_disk=False,
            metric_type="l2",
            max_index_memory_usage="8G",
            current_memory_available="12G",
            nb_cores=THREADS,
            verbose=logging.ERROR,
        )
        faiss.write_index(index, str(folder / "index"))


class Hnswlib(Method):
    module = "hnswlib"
    settings = (20, 40, 80, 120, 200, 400)

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        import hnswlib

        index = hnswlib.Index("l2", vectors.shape[1])
        index.init_index(len(vectors), ef_construction=200, M=16)
        for start in range(0, len(vectors), 8192):
            index.add_items(vectors[start : start + 8192], num_threads=THREADS)
        index.save_index(str(folder / "index"))

    def load(self, folder: Path, dimension: int) -> None:
        import hnswlib

        self.index = hnswlib.Index("l2", dimension)
        self.index.load_index(str(folder / "index"))

    def set(self, setting: Any) -> None:
        self.index.set_ef(setting)

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.knn_query(queries, k, num_threads=1 if len(queries) == 1 else THREADS)[0]


class Usearch(Method):
    module = "usearch.index"
    settings = (16, 32, 64, 128, 256, 512)

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        from usearch.index import Index

        index = Index(ndim=vectors.shape[1], metric="l2sq", dtype="f16")
        for start in range(0, len(vectors), 8192):
            part = np.ascontiguousarray(vectors[start : start + 8192])
            index.add(np.arange(start, start + len(part), dtype=np.uint64), part, threads=THREADS)
        index.save(str(folder / "index"))

    def load(self, folder: Path, dimension: int) -> None:
        from usearch.index import Index

        self.index = Index.restore(str(folder / "index"))

    def set(self, setting: Any) -> None:
        self.index.expansion_search = setting

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray:
        return np.asarray(self.index.search(queries, k, threads=THREADS).keys).reshape(len(queries), -1).astype(int)


class Scann(Method):
    module = "scann"
    settings = ((10, 40), (20, 40), (20, 100), (40, 100), (80, 100), (80, 200), (160, 200), (320, 400))
    """Leaves searched, candidates re-ranked."""

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        from scann.scann_ops.py import scann_ops_pybind

        leaves = int(2 * len(vectors) ** 0.5)
        builder = scann_ops_pybind.builder(np.ascontiguousarray(vectors), 10, "squared_l2")
        builder = builder.tree(leaves, max(1, leaves // 10), training_sample_size=min(len(vectors), 100_000))
        searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
        searcher.serialize(str(folder))

    def load(self, folder: Path, dimension: int) -> None:
        from scann.scann_ops.py import scann_ops_pybind

        self.index = scann_ops_pybind.load_searcher(str(folder))

    def set(self, setting: Any) -> None:
        self.leaves, self.ranked = setting

    def query(self, query: np.ndarray, k: int) -> np.ndarray:
        return self.index.search(query, k, self.ranked, self.leaves)[0]

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.search_batched_parallel(queries, k, self.ranked, self.leaves)[0]


class LeanVec(Method):
    """Scalable Vector Search: a Vamana graph over 8-bit codes of 128 components, ranked again by 8-bit codes of all."""

    module = "svs"
    settings = (10, 20, 30, 40, 60, 100, 200)

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        import svs

        raw = folder / "vectors.fvecs"
        svs.write_vecs(np.ascontiguousarray(vectors), str(raw))
        loader = svs.LeanVecLoader(
            svs.VectorDataLoader(str(raw), svs.DataType.float32, vectors.shape[1]),
            128,
            svs.LeanVecKind.lvq8,
            svs.LeanVecKind.lvq8,
        )
        parameters = svs.VamanaBuildParameters(alpha=1.2, graph_max_degree=32, window_size=100)
        index = svs.Vamana.build(parameters, loader, svs.DistanceType.L2, num_threads=THREADS)
        raw.unlink()
        index.save(*(str(folder / part) for part in ("config", "graph", "data")))

    def load(self, folder: Path, dimension: int) -> None:
        import svs

        graph, data = svs.GraphLoader(str(folder / "graph")), svs.LeanVecLoader(str(folder / "data"))
        self.index = svs.Vamana(str(folder / "config"), graph, data, svs.DistanceType.L2, num_threads=1)

    def set(self, setting: Any) -> None:
        self.index.search_window_size = setting

    def query(self, query: np.ndarray, k: int) -> np.ndarray:
        if self.index.num_threads != 1:
            self.index.num_threads = 1
        return self.index.search(query, k)[0][0]

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self.index.num_threads != THREADS:
            self.index.num_threads = THREADS
        return self.index.search(queries, k)[0]


class Vamana(LeanVec):
    """The same library's graph over float16 vectors, for processors that it refuses LeanVec."""

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        import svs

        parameters = svs.VamanaBuildParameters(alpha=1.2, graph_max_degree=32, window_size=100)
        index = svs.Vamana.build(parameters, vectors.astype(np.float16), svs.DistanceType.L2, num_threads=THREADS)
        index.save(*(str(folder / part) for part in ("config", "graph", "data")))

    def load(self, folder: Path, dimension: int) -> None:
        import svs

        graph, data = svs.GraphLoader(str(folder / "graph")), svs.VectorDataLoader(str(folder / "data"))
        self.index = svs.Vamana(str(folder / "config"), graph, data, svs.DistanceType.L2, num_threads=1)


class Panorama(Faiss):
    """FAISS's exact search that sums squared distances level by level over rotated vectors, and stops early."""

    def __init__(self) -> None:
        super().__init__("")

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        import faiss

        some = np.sort(np.random.default_rng(0).choice(len(vectors), min(8192, len(vectors)), replace=False))
        axes = np.linalg.eigh(np.cov(vectors[some].T.astype(np.float32)))[1][:, ::-1]
        np.save(folder / "axes.npy", axes.astype(np.float32))
        index = faiss.IndexFlatL2Panorama(vectors.shape[1], 16)
        for start in range(0, len(vectors), 8192):
            index.add(np.ascontiguousarray(vectors[start : start + 8192] @ axes.astype(np.float32)))
        faiss.write_index(index, str(folder / "index"))

    def load(self, folder: Path, dimension: int) -> None:
        super().load(folder, dimension)
        self.axes = np.ascontiguousarray(np.load(folder / "axes.npy"))

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.search(np.ascontiguousarray(queries @ self.axes), k)[1]


class SymphonyQG(Method):
    """A graph over RaBitQ codes, ranked by the full vectors along the way."""

    module = "rabitqlib"
    settings = (40, 60, 80, 120, 160, 320)

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        import rabitqlib

        index = rabitqlib.SymqgIndex(vectors.shape[1], 32, "l2")
        index.build(np.ascontiguousarray(vectors), 200, THREADS)
        index.save(str(folder / "index"))

    def load(self, folder: Path, dimension: int) -> None:
        import rabitqlib

        self.index = rabitqlib.SymqgIndex.load(str(folder / "index"))

    def set(self, setting: Any) -> None:
        self.effort = setting

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray:
        answers = self.index.search(queries, k, self.effort, 1 if len(queries) == 1 else THREADS)
        ids = next(part for part in answers if np.asarray(part).dtype.kind in "iu")
        return np.asarray(ids).astype(np.int64).reshape(len(queries), -1)


class NgtQg(Method):
    """NGT's graph over quantized vectors. The library answers one query at a time."""

    module = "ngtpy"
    settings = (0.02, 0.05, 0.1, 0.15, 0.2)

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        import shutil
        import subprocess

        import ngtpy

        tool = shutil.which("qbg")
        if tool is None:
            raise RuntimeError("NGT's program qbg, which makes quantized graphs, is not installed")
        path = str(folder / "index")
        ngtpy.create(path, vectors.shape[1], distance_type="L2")
        index = ngtpy.Index(path)
        index.batch_insert(np.ascontiguousarray(vectors), THREADS)
        index.save()
        index.close()
        subprocess.run([tool, "create-qg", path], check=True, capture_output=True)
        subprocess.run([tool, "build-qg", path], check=True, capture_output=True)

    def load(self, folder: Path, dimension: int) -> None:
        import ngtpy

        self.index = ngtpy.QuantizedIndex(str(folder / "index"))

    def set(self, setting: Any) -> None:
        self.index.set(epsilon=setting)

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray:
        found = [[number for number, _ in self.index.search(query, k)] for query in queries]
        return np.array([each + [-1] * (k - len(each)) for each in found])


class Simsearch(Method):
    """An index that holds the vectors already, as `build` leaves it; what is built here is what `tune` makes.

    whole: answer with matches (paths, labels, metadata) instead of ids. exact: without the structure. scan: without the
    sketch as well.
    """

    module = "simsearch"

    def __init__(self, whole: bool = False, exact: bool = False, scan: bool = False) -> None:
        self.whole, self.exact, self.scan = whole, exact, scan
        if not exact:
            pairs = ((12, 20), (12, 40), (16, 40), (20, 40), (20, 60), (20, 80), (30, 120), (40, 160))
            self.settings = ("as tuned", *(pairs[4::2] if whole else pairs))

    def build(self, vectors: np.ndarray, folder: Path) -> None:
        import simsearch
        from simsearch.indexing import tune

        if not self.exact:
            with simsearch.open(folder, device="cpu") as engine:
                tune.tune(engine.index, 0.99)

    def load(self, folder: Path, dimension: int) -> None:
        import simsearch

        self.engine = simsearch.open(folder, device="cpu")
        with self.engine.reading() as reader:
            ids, rows = reader.ids_and_rows()
            self.flat: Any = self.engine.snapshot(reader).flat
        self.places = np.full(int(ids.max()) + 1, -1)
        self.places[ids[np.argsort(rows)]] = np.arange(len(ids))
        self.structure = self.engine.structure
        self.tuned = self.structure.setting if self.structure else None

    def set(self, setting: Any) -> None:
        if self.structure is not None and self.tuned is not None:
            chosen = self.tuned
            if setting != "as tuned" and setting is not None:
                chosen = replace(chosen, candidates=setting[0], effort=setting[1])
            self.structure.setting = chosen

    def query(self, query: np.ndarray, k: int) -> np.ndarray:
        if self.whole:
            found = self.engine.search_by_vector(query, k, exact=self.exact)
            return self.places[[match.id for match in found]]
        return self.batch(query[None], k)[0]

    def batch(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self.scan:  # of an index without removed items, whose rows are in the order of its ids
            return np.array([near.rows[:k] for near in self.flat.scan(queries, k, None)])
        if self.whole:
            return np.array(
                [
                    self.places[[match.id for match in found]]
                    for found in self.engine.search_by_vectors(queries, k, exact=self.exact)
                ]
            )
        return self.places[self.engine.neighbours(queries, k, exact=self.exact)[0]]


EFFORTS = (20, 40, 80, 160, 320)
METHODS: dict[str, Method] = {
    "simsearch": Simsearch(),
    "simsearch, matches": Simsearch(whole=True),
    "simsearch, exact": Simsearch(exact=True),
    "simsearch, scan": Simsearch(exact=True, scan=True),
    "faiss Flat": Faiss("Flat"),
    "faiss Panorama": Panorama(),
    "faiss IVF,Flat": Faiss("IVF{lists},Flat", "nprobe", (4, 8, 16, 32, 64, 128)),
    "faiss HNSW32": Faiss("HNSW32", "efSearch", EFFORTS),
    "SymphonyQG": SymphonyQG(),
    "NGT QG": NgtQg(),
    "hnswlib": Hnswlib(),
    "usearch f16": Usearch(),
    "scann": Scann(),
    "svs LeanVec": LeanVec(),
    "svs Vamana f16": Vamana(),
    "autofaiss": Autofaiss(),
}


def absent(method: Method) -> str | None:
    """Why a method cannot be used here, or None."""
    import importlib

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(method.module)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
