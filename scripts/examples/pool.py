"""Searches by many pictures in a pool of processes: python scripts/examples/pool.py INDEX PICTURE…

Each worker opens the index once. The features are files that are mapped into memory, so all workers share one copy.
They are started by `spawn`: threads and open files of a parent do not survive a fork.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import simsearch
from simsearch.errors import ImageError

engine: simsearch.Engine


def start(index: str) -> None:
    """Runs once in each worker."""
    global engine
    engine = simsearch.open(index, device="cpu")
    engine.load_model()


def nearest(path: str) -> tuple[str, str, float]:
    """The picture, the path of the item most like it, and their distance; or what is wrong with the picture."""
    try:
        match = engine.search(path, k=1)[0]
    except ImageError as error:  # one bad file is no reason to lose the others
        return path, f"error: {error}", float("nan")
    return path, match.path, match.distance


def main() -> None:
    index, *paths = sys.argv[1:]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, start, (index,)) as pool:
        for path, found, distance in pool.map(nearest, paths, chunksize=4):
            print(f"{path}\t{found}\t{distance:.3f}")


if __name__ == "__main__":
    main()
