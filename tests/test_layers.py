"""The architecture: imports point down only, names are complete, and starting up is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import simsearch
from simsearch import errors

PACKAGE = Path(simsearch.__file__).parent

LAYERS = [
    {
        "__main__",
        "cli",
        "cli.build",
        "cli.console",
        "cli.evaluate",
        "cli.inspect",
        "cli.lazy",
        "cli.main",
        "cli.maintain",
        "cli.model_cards",
        "cli.models",
        "cli.options",
        "cli.params",
        "cli.progress",
        "cli.push",
        "cli.query",
        "cli.query_args",
        "cli.search_options",
        "cli.serve",
    },
    {"terminal"},
    {"reports.html", "reports.montage"},
    {"reports", "reports.tiles"},
    {"serving"},
    {"server.protocol", "server.app"},
    {"routes"},
    {"service"},
    {"answers", "batching", "server.request_body", "gallery", "uploads", "webpage", "output"},
    {"server.openapi"},
    {"server.schemas"},
    {"server.middleware", "served", "fetch"},
    {"server"},
    {"telemetry", "settings"},
    {"fit"},
    {"ranges"},
    {"evaluate_search", "robustness"},
    {"push", "cluster"},
    {"train", "evaluate", "pictures", "api", "sample", "duplicates", "merging", "tuning", "compacting"},
    {"batches"},
    {"augment", "pruning", "trainset", "losses", "world", "computing"},
    {"presets"},
    {"milvus"},
    {"engine", "sync", "planning", "verify", "export"},
    {"search.query_vectors"},
    {"search.searcher", "finding"},
    {"search", "search.feedback", "search.options", "search.queries", "search.results"},
    {"snapshot", "frozen", "holdings"},
    {"verify", "export"},
    {"upkeep"},
    {"coded"},
    {"structure", "collection", "expressions"},
    {"storage.index"},
    {"storage.model"},
    {"storage.protocols"},
    {"storage.components"},
    {"descriptors", "contents"},
    {"extract", "index", "store", "roots", "calibration", "metrics"},
    {"reader"},
    {"filters"},
    {"mapped", "rows", "resident", "loading"},
    {"meta"},
    {"shards", "projection"},
    {"storage.folder"},
    {"storage"},
    {"halves"},
    {"models.torchvision_models"},
    {"models.torch_runtime"},
    {"models.runtime"},
    {"models.quantised", "models.precision", "models.jpegs", "models.replays"},
    {"models.networks"},
    {"models.alexnet", "models.lenet", "models.convnet", "models.dbn"},
    {"models.network"},
    {"models"},
    {"models.weights", "models.graphs", "models.codes"},
    {"models.compress", "models.configs", "models.tables"},
    {"opening"},
    {"archives", "manifests", "datasets"},
    {"sources", "sample_objects", "addresses"},
    {"images", "recipe", "cache", "files", "machine", "sample_scenes"},
    {"sample_canvas"},
    {"errors"},
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
# Looked up by name when it is needed: the package's lazy names, a source's class, a model's runtime.
LATE = {("models", "models.runtime"), ("models", "models.torch_runtime"), ("models", "models.precision"),
        ("models", "models.torchvision_models")}  # fmt: skip


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


def imports(path):
    """(module of simsearch, whether it is imported when this one is)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "simsearch":
            base = node.module.removeprefix("simsearch").lstrip(".")
            for alias in node.names:
                joined = f"{base}.{alias.name}".lstrip(".")
                target = joined if joined in RANK else base
                if target:
                    yield target, id(node) in top, id(node) in typing_only


def test_every_module_has_a_layer():
    assert {name for name, _ in modules()} - set(RANK) == set()


@pytest.mark.parametrize(("name", "path"), [pytest.param(n, p, id=n) for n, p in modules()])
def test_imports_point_down(name, path):
    for target, _, typing_only in imports(path):
        if target == name or typing_only or (name, target) in LATE:
            continue
        assert RANK[target] >= RANK[name], f"{name} imports {target}, which lies above it"


def test_late_imports_are_late():
    for name, path in modules():
        for target, at_top, typing_only in imports(path):
            if (name, target) in LATE and not typing_only:
                assert not at_top or RANK[target] >= RANK[name]


def test_all_is_what_is_visible():
    assert sorted(simsearch.__all__) == sorted(dir(simsearch))
    for name in simsearch.__all__:
        assert getattr(simsearch, name) is not None
    with pytest.raises(AttributeError):
        _ = simsearch.nothing


def test_errors_all_and_tree():
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert sorted(defined) == sorted(errors.__all__)
    for name in defined:
        assert issubclass(getattr(errors, name), errors.SimsearchError)
        assert name in (errors.__doc__ or "")


def loaded_after(code):
    probe = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_package_imports_nothing_heavy():
    assert not {"torch", "faiss", "numpy", "PIL", "onnxruntime"} & loaded_after("import simsearch")


def test_help_imports_nothing_heavy():
    code = "from simsearch.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass"
    assert not {"torch", "faiss", "numpy", "PIL", "onnxruntime", "rich", "jinja2"} & loaded_after(code)


@pytest.mark.parametrize(
    "command", ["train", "models", "serve", "demo", "completion", "query", "build", "eval", "tune"]
)
def test_help_of_a_command_imports_no_torch(command):
    code = f"from simsearch.cli.main import main\ntry:\n    main([{command!r}, '--help'])\nexcept SystemExit: pass"
    assert not {"torch", "faiss", "onnxruntime", "rich", "fastapi", "jinja2"} & loaded_after(code)


def test_completion_imports_no_command():
    code = "import click\nfrom simsearch.cli.main import main\nmain.shell_complete(click.Context(main), '')"
    loaded = loaded_after(code)
    assert not {"torch", "faiss", "numpy", "PIL", "onnxruntime", "rich", "jinja2"} & loaded
    assert not {name for name in loaded if name.startswith("simsearch.cli.") and name.endswith(("query", "build"))}


def test_no_print_or_exit_below_command_line():
    for name, path in modules():
        if RANK[name] == 0:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"print", "sys.exit", "exit"}, f"{name} calls {called}"
