"""A client that calls the service in this process."""

import asyncio
import io

from PIL import Image


class Client:
    """Calls an app in this process."""

    def __init__(self, app, base="http://127.0.0.1"):
        self.app, self.base = app, base

    def __call__(self, method, path, **options):
        import httpx  # tests without it are skipped

        async def go():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url=self.base) as client:
                return await client.request(method, path, **options)

        return asyncio.run(go())

    def search(self, **body):
        return self("POST", "/v1/search", json=body)


def upload(data, name="q.png"):
    return {"image": (name, data, "image/png")}


def code(response):
    return response.status_code, response.json()["error"]["code"]


def png(size=(16, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()
