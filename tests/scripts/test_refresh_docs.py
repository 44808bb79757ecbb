"""scripts/refresh_docs.py puts what commands print now in place of what the documentation shows."""

from __future__ import annotations

import runpy

from tests import test_docs
from tests.helpers.scripts import SCRIPTS

PAGE = """Text with 12 photos.

```console
$ simsearch query cat.jpg \\
    -k 2
0.000  photos/cat-001.jpg
0.512  photos/cat-009.jpg
...
$ simsearch info
items 600
photos of weights that are gone
```

<!-- not run: minutes -->
```console
$ simsearch info
items 600
```
"""


def test_lines_are_replaced_by_those_of_the_same_form() -> None:
    refreshed = runpy.run_path(str(SCRIPTS / "refresh_docs.py"), run_name="imported")["refreshed"]
    outputs = [
        ("simsearch build", ["items 1"]),
        (
            "simsearch query cat.jpg      -k 2",
            ["note: first", "0.000  photos/cat-001.jpg", "0.498  photos/cat-004.jpg", "0.6 x"],
        ),
        ("simsearch info", ["note: new", "items 601"]),
    ]
    after, lost = refreshed(PAGE, outputs, test_docs)
    changed = PAGE.replace("0.512  photos/cat-009.jpg", "0.498  photos/cat-004.jpg").replace("600", "601", 1)
    assert after == changed
    assert lost == ["photos of weights that are gone"]


def test_page_is_unchanged_by_the_outputs_it_shows() -> None:
    refreshed = runpy.run_path(str(SCRIPTS / "refresh_docs.py"), run_name="imported")["refreshed"]
    for page in test_docs.PAGES:
        text = page.read_text()
        shown = [pair for block in test_docs.blocks(page) if not block.reason for pair in test_docs.commands(block)]
        assert refreshed(text, shown, test_docs) == (text, []), page
