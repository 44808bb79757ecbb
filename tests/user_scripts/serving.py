"""Mounts a search in an app of its own."""

from fastapi import FastAPI

import simsearch


def make(engine: simsearch.Engine) -> FastAPI:
    app = FastAPI()
    app.mount("/similar", simsearch.create_app(engine, relative=True, api_keys=["secret"], max_k=50, timeout=5))
    app.mount("/several", simsearch.create_app({"photos": engine, "same": engine}, writable=True))

    @app.get("/like/{number}")
    def like(number: int) -> list[str]:
        return [match.path for match in engine.search_by_id(number, k=3, dedup=True)]

    return app
