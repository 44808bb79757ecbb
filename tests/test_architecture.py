"""The architecture: imports point down only, names are complete, and starting up is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import simsearch
from simsearch import errors

PACKAGE = Path(simsearch.__file__).parent


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


def own_imports_in_functions(path):
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "simsearch":
                    yield f"{function.name} imports {node.module}"


@pytest.mark.parametrize(("name", "path"), [pytest.param(n, p, id=n) for n, p in modules()])
def test_no_own_import_in_a_function(name, path):
    """The direction of imports is checked by import-linter (`scripts/check`); this keeps them where it sees them."""
    assert not list(own_imports_in_functions(path))


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
    "command", ["train", "models", "serve", "demo", "completion", "query", "build", "eval", "tune", "duplicates"]
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
        if name == "__main__" or name.split(".")[0] == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"print", "sys.exit", "exit"}, f"{name} calls {called}"
