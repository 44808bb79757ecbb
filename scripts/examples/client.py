"""Searches a service by a picture: python scripts/examples/client.py http://127.0.0.1:8000 cat.jpg"""

import os
import sys
import time
from pathlib import Path

import httpx

url, path = sys.argv[1:]
headers = {"X-API-Key": os.environ.get("SIMSEARCH_API_KEY", "")}
with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
    for _ in range(5):
        answer = client.post("/v1/search", files={"image": Path(path).read_bytes()}, data={"k": 6})
        if answer.status_code != 429:  # busy: it says when to ask again
            break
        time.sleep(float(answer.headers["retry-after"]))
if answer.is_error:
    sys.exit(f"error: {answer.json()['error']['message']}")
for match in answer.json()["matches"]:
    print(f"{match['distance']:8.3f}  {match['similarity']:6.1%}  {match['path']}")
