"""A client that openapi-python-client generates from the document works."""

import importlib
import io
import json
import subprocess
import sys

import pytest

import simsearch
from tests.helpers.client import png
from tests.helpers.live import serving

pytest.importorskip("openapi_python_client", reason="the [dev] extra is not installed")


@pytest.fixture
def generated(engine, tmp_path, monkeypatch):
    """The app, and the package of the client."""
    app = simsearch.create_app(engine, writable=True, allow_cleanup=True, move_to=str(tmp_path / "moved"))
    (tmp_path / "openapi.json").write_text(json.dumps(app.openapi()))
    (tmp_path / "config.json").write_text('{"post_hooks": []}')
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--path", "openapi.json"]
    options = ["--output-path", "generated_client", "--config", "config.json"]
    subprocess.run([*command, *options], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.syspath_prepend(tmp_path)
    yield app, importlib.import_module("generated_client")
    for name in [name for name in sys.modules if name.startswith("generated_client")]:
        del sys.modules[name]


@pytest.mark.slow
def test_generated_client(generated, engine, photos):
    app, package = generated

    def module(name):
        return importlib.import_module(f"generated_client.{name}")

    models, types = module("models"), module("types")
    with serving(app) as port, package.Client(base_url=f"http://127.0.0.1:{port}") as client:
        answer = module("api.search.search").sync(client=client, body=models.SearchById(id=1, k=3))
        assert [match.id for match in answer.matches] == [match.id for match in engine.search_by_id(1, 3)]
        image = types.File(payload=io.BytesIO((photos / "amber" / "0.png").read_bytes()), file_name="0.png")
        answer = module("api.search.search").sync(client=client, body=models.SearchForm(image=image, k=1))
        assert (answer.matches[0].id, answer.matches[0].distance) == (1, 0.0)
        error = module("api.items.item").sync(999, client=client)
        assert error.error.code == "no_such_item"
        assert module("api.items.item").sync(1, client=client).label == "amber"
        assert module("api.items.image").sync_detailed(1, client=client).content == engine.read(1)
        image = types.File(payload=io.BytesIO(png()), file_name="new.png")
        added = module("api.items.add").sync(client=client, body=models.AddForm(image=image, label="new"))
        assert added.label == "new"
        assert module("api.items.remove").sync_detailed(added.id, client=client).status_code == 204
        groups = module("api.duplicates.duplicates").sync(client=client, max_distance=100.0)
        (group,) = groups.groups
        keep, go = ([item.id for item in part] for part in (group.items[:1], group.items[1:3]))
        wanted = models.CleanUpRequest.from_dict(
            {"groups": [{"group": group.group, "keep": keep, "go": go}], "max_distance": 100}
        )
        plan = module("api.duplicates.clean_up").sync(client=client, body=wanted)
        assert (plan.dry_run, plan.files, len(plan.items)) == (True, 2, 3)
        assert module("api.duplicates.clean_ups").sync(client=client).clean_ups == []
