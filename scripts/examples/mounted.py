"""A shop's FastAPI app with a similarity search, page and all, under /similar, and the engine in a route of its own.

uvicorn --app-dir scripts/examples mounted:app      # with the index at $SIMSEARCH_INDEX, else indexes/default
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, UploadFile
from fastapi.concurrency import run_in_threadpool

import simsearch
from simsearch.errors import ImageError, ItemNotFoundError

engine = simsearch.open(os.environ.get("SIMSEARCH_INDEX", "indexes/default"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await run_in_threadpool(engine.load_model)  # now, and not while the first customer waits
    yield
    engine.close()


app = FastAPI(title="shop", lifespan=lifespan)
app.mount("/similar", simsearch.create_app(engine, relative=True))


@app.get("/products/{number}/similar")
async def similar(number: int, k: int = 4) -> list[dict[str, object]]:
    """The products that look most like one; near-identical pictures count once."""
    try:
        matches = await run_in_threadpool(engine.search_by_id, number, k, dedup=True)
    except ItemNotFoundError:
        raise HTTPException(404, "no such product") from None
    return [{"product": match.id, "kind": match.label, "similarity": match.similarity} for match in matches]


@app.post("/lookalikes")
def lookalikes(image: UploadFile, k: int = 4) -> list[dict[str, object]]:
    """The products that look most like a customer's picture. FastAPI runs a route without `async` in a thread."""
    try:
        matches = engine.search(image.file, k, dedup=True)
    except ImageError as error:
        raise HTTPException(422, str(error)) from None
    return [{"product": match.id, "kind": match.label, "similarity": match.similarity} for match in matches]
