"""The command line as a user sees it: output, exit codes, errors. On a tiny network."""

import csv
import io
import json
import os
import re
import subprocess
import sys

import click
import numpy as np
import pytest
from PIL import Image, ImageChops

from simsearch.cli import inspect
from simsearch.cli.main import help_texts, main
from simsearch.reports import text


def test_build_says_what_it_did(run, pictures, index):
    (pictures / "red" / "0.png").unlink()
    (pictures / "red" / "bad.png").write_bytes(b"")
    result = run("build", pictures)
    assert result.code == 0
    assert "11 items; 1 removed, 11 unchanged, 1 failed" in result.out
    assert "info --failures" in result.err
    failures = run("info", "--failures")
    assert "bad.png: empty file" in failures.out
    assert run("info", "--failures", "--format", "json").json[0]["reason"] == "empty file"


def test_build_counts_formats_it_cannot_read(run, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    odd = {
        "a.jxl": b"\xff\x0a\0\0aaaa",
        "b.JXL": b"\0\0\0\x0cJXL \r\n\x87\n",
        "c.cr3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        "d.raf": b"FUJIFILMCCD-RAW 0201",
        "e.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "f.mp4": b"\0\0\0\x18ftypmp42",
        "video": b"\x1a\x45\xdf\xa3",
    }
    for name, data in odd.items():
        (pictures / "red" / name).write_bytes(data)
    result = run("build", pictures)
    assert "12 items; 12 unchanged, 4 failed" in result.out
    assert "note: 2 left out: videos, which are not read" in result.err
    assert "note: 1 left out: SVG drawings, which are not read" in result.err
    assert "note: 2 failed: JPEG XL needs the [jxl] extra: " in result.err
    assert "note: 1 failed: a camera's raw file (Canon CR3) needs the [raw] extra: " in result.err
    failures = run("info", "--failures")
    assert "d.raf: a camera's raw file (Fujifilm RAF) needs the [raw] extra: " in failures.out
    assert "2: JPEG XL needs the [jxl] extra" in failures.err
    found = run("build", pictures, "--format", "json").json
    assert found["left_out"] == {"videos, which are not read": 2, "SVG drawings, which are not read": 1}
    assert sorted(found["missing_extras"].values()) == [1, 1, 2]


def test_build_without_images_says_so(run, tmp_path, tiny_weights):
    (tmp_path / "empty").mkdir()
    done = run("build", tmp_path / "empty", "-i", tmp_path / "new", "--model", tiny_weights)
    assert (done.code, done.err) == (
        0,
        "note: there is nothing to search yet; build again when the source has images\n",
    )


def test_build_json_and_dry_run(run, pictures):
    Image.new("RGB", (50, 50)).save(pictures / "blue" / "new.png")
    dry = run("build", pictures, "--dry-run")
    assert "would read 1 image, remove 0, leave 12; nothing was changed" in dry.out
    assert run("build", pictures, "--format", "json").json["added"] == 1
    assert run("build", "--format", "json").json["unchanged"] == 13


def test_build_goes_on_with_tune(run, pictures, index):
    done = run("build", pictures, "--recall", "1")
    assert done.out.splitlines()[1:] == [f"{index}: exact search; it is fast enough for 12 items"]
    built, tuned = run("build", pictures, "--recall", "0.9", "--format", "json").out.splitlines()
    assert json.loads(built)["unchanged"] == 12 and json.loads(tuned)["kind"] == "exact"


def test_a_dry_run_makes_no_index(run, pictures, tmp_path, tiny_weights):
    result = run("build", pictures, "-i", tmp_path / "new", "--model", tiny_weights, "--dry-run")
    assert "would read 12 images" in result.out
    assert not (tmp_path / "new").exists()


def test_query_table(run, pictures):
    result = run("query", pictures / "red" / "1.png", "-k", 3)
    lines = result.out.splitlines()
    assert result.code == 0
    assert lines[0] == str(pictures / "red" / "1.png")
    assert lines[1].split() == ["rank", "distance", "similarity", "id", "label", "path"]
    assert lines[2].split()[0] == "1"
    assert lines[2].endswith("red/1.png")
    assert len(lines) == 5


def test_query_json_is_the_contract(run, pictures, tiny_weights):
    (answer,) = run("query", pictures / "red" / "1.png", "--format", "json").json
    assert list(answer) == ["query", "model", "metric", "exact", "took_ms", "matches"]
    assert answer["model"] == str(tiny_weights)
    assert (answer["metric"], answer["exact"]) == ("euclidean", True)
    assert len(answer["matches"]) == 6
    for rank, match in enumerate(answer["matches"], 1):
        assert list(match) == ["rank", "id", "path", "label", "distance", "similarity", "metadata"]
        assert match["rank"] == rank
        assert 0 <= match["similarity"] <= 1
        assert os.path.exists(match["path"])
    distances = [match["distance"] for match in answer["matches"]]
    assert distances == sorted(distances)


def test_query_other_forms(run, pictures):
    query = pictures / "blue" / "1.png"
    lines = run("query", query, "id:1", "--format", "jsonl").out.splitlines()
    assert [json.loads(line)["query"] for line in lines] == [str(query), "id:1"]
    rows = list(csv.DictReader(io.StringIO(run("query", query, "--format", "csv").out)))
    assert rows[0]["path"] == str(query)
    paths = run("query", query, "--format", "paths").out.splitlines()
    assert paths == [row["path"] for row in rows]
    assert run("query", query, "-0").out == "".join(path + "\0" for path in paths)
    assert run("query", query, "--format", "paths", "--relative").out.splitlines()[0] == "blue/1.png"
    assert run("query", query, "-0", "--format", "json").code == 2


def test_query_by_id_omits_item_by_path_does_not(run, pictures):
    by_path = run("query", pictures / "blue" / "0.png", "-k", 1, "--format", "json").json[0]["matches"][0]
    assert by_path["distance"] < 0.01
    assert by_path["id"] not in [
        m["id"] for m in run("query", f"id:{by_path['id']}", "--format", "json").json[0]["matches"]
    ]


def test_query_from_standard_input(run, pictures):
    data = (pictures / "green" / "2.png").read_bytes()
    found = run("query", "-", "-k", 1, "--format", "paths", stdin=data)
    assert found.out.strip().endswith("green/2.png")


def test_filters(run, pictures):
    query = pictures / "red" / "0.png"
    found = run("query", query, "--filter", "label=blue", "-k", 9, "--format", "json").json[0]["matches"]
    assert [match["label"] for match in found] == ["blue"] * 4
    found = run("query", query, "--filter", "label!=red", "--filter", "path~*/1.png", "--format", "json").json[0][
        "matches"
    ]
    assert sorted(match["label"] for match in found) == ["blue", "green"]
    bad = run("query", query, "--filter", "label")
    assert bad.code == 2
    assert "'label'" in bad.err


def test_no_match_exits_1(run, pictures):
    result = run("query", pictures / "red" / "0.png", "--filter", "label=violet")
    assert result.code == 1
    assert "no match" in result.out
    assert run("query", "id:1", "--max-distance", "0", "--format", "json").json[0]["matches"] == []


def test_crop_flip_plus_minus_dedup(run, pictures):
    query = pictures / "red" / "0.png"
    assert run("query", query, "--crop", "10,10,60,60", "--flip", "--dedup", "--exact").code == 0
    assert run("query", query, "--plus", pictures / "blue" / "0.png", "--minus", "id:1", "-k", 2).code == 0
    for bad in ("1,2,3", "a,b,c,d", "0,0,500,500", "0,0,0,5", "-1,0,5,5"):
        result = run("query", query, f"--crop={bad}")
        assert result.code == 2
        assert bad in result.err


def test_html_and_montage(run, pictures, tmp_path):
    result = run(
        "query", pictures / "red" / "0.png", "id:2", "--html", tmp_path / "r.html", "--montage", tmp_path / "m.png"
    )
    assert result.code == 0
    with Image.open(tmp_path / "m.png") as montage:
        assert montage.width > 800
    assert (tmp_path / "r.html").read_text().count("data:image/jpeg;base64") == 14
    part = "--crop", "0,50%,50%,50%"
    assert run("query", pictures / "red" / "0.png", "id:2", *part, "--montage", tmp_path / "part.png").code == 0
    with Image.open(tmp_path / "m.png") as whole, Image.open(tmp_path / "part.png") as marked:
        changed = ImageChops.difference(whole.convert("RGB"), marked.convert("RGB")).getbbox()
    assert changed is not None and changed[0] < 200  # the queries, at the left, have the part marked
    bad = run("query", "id:1", "--montage", tmp_path / "m.doc")
    assert bad.code == 2
    assert ".doc" in bad.err
    assert bad.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query", "nowhere.jpg"], "nowhere.jpg"),
        (["query", "id:99999"], "99999"),
        (["query", "id:x"], "id:x"),
        (["query", "id:1", "-k", "0"], "0"),
        (["query", "id:1", "--max-distance", "-1"], "-1"),
        (["query", "id:1", "--device", "tpu"], "tpu"),
        (["query", "id:1", "--plus", "nowhere.jpg"], "nowhere.jpg"),
        (["query"], "IMAGE"),
        (["build", "nowhere"], "nowhere"),
        (["build", "torchvision/Nonesuch"], "Nonesuch"),
        (["build", "x", "--model", "alexnot"], "x"),
        (["remove", "nowhere/*"], "nowhere/*"),
        (["add", "nowhere"], "nowhere"),
        (["info", "-i", "no/index"], "no/index"),
        (["verify", "-i", "no/index"], "no/index"),
        (["export", "-i", "no/index", "-o", "out"], "no/index"),
        (["frobnicate"], "frobnicate"),
        (["query", "id:1", "--frob"], "--frob"),
        (["query", "id:1", "--html", "."], ". cannot be written: it is a folder"),
        (["query", "id:1", "--montage", "."], "no montage format"),
        (["query", "id:1", "--show", "--format", "json"], "--show needs the format table"),
        (["query", "id:1", "-0", "--format", "json"], "--print0 prints paths, not json"),
        (["query", "id:1", "--max-distance", "nan"], "not negative, not nan"),
        (["query", "id:1", "--crop", "0,0,0,0"], "crop 0,0,0,0 has no area"),
        (["query", "id:1", "--min-similarity", "2"], "0<=x<=1"),
        (["query", "http://127.0.0.1:9/x.jpg"], "http://127.0.0.1:9/x.jpg: Connection refused"),
        (["build", ".", "--exclude", ""], "an empty exclude pattern"),
        (["export", "-o", __file__], "it is not a folder"),
        (["info", ""], "an empty name"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(run, arguments, said):
    result = run(*arguments)
    assert result.code == 2
    errors = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in result.err


def test_an_undecodable_query_exits_2(run, tmp_path):
    (tmp_path / "x.jpg").write_text("no picture")
    result = run("query", tmp_path / "x.jpg")
    assert result.code == 2
    assert "x.jpg: not an image" in result.err
    assert run("query", "-", stdin=b"").code == 2


def test_debug_shows_a_traceback(run):
    for arguments in (["--debug", "info", "-i", "no/index"], ["info", "-i", "no/index", "--debug"]):
        result = run(*arguments)
        assert result.code == 2
        assert "Traceback" in result.err
        assert "error: there is no index at no/index" in result.err
        assert result.err.count("hint: ") == 1


def test_other_model_is_refused_naming_both(run, index, tiny_weights, tmp_path):
    recorded = json.loads((index / "meta.json").read_text())["weights_sha256"]
    for arguments in (["query", "id:1"], ["build"], ["add", tmp_path / "pictures"]):
        result = run(*arguments, "--model", "alexnet")
        assert result.code == 2
        from simsearch.models import registry

        assert recorded in result.err
        assert registry.find_weights("alexnet").sha256 in result.err


def test_remove_asks(run, index, pictures, monkeypatch):
    refused = run("remove", "red/*", stdin=b"")
    assert refused.code == 2
    assert "removing 4 items must be confirmed" in refused.err
    assert "red/0.png" in refused.out
    assert "6 items; 6 removed" in run("remove", "-y", "id:1", pictures / "red" / "0.png", "*/1.png", "blue/2.png").out
    assert run("verify").code == 0
    assert (pictures / "red" / "0.png").exists()


def test_info_verify_export(run, tmp_path, monkeypatch):
    facts = run("info", "--format", "json").json
    for key in ("items", "failures", "model", "weights_sha256", "dimension", "metric", "engine", "search", "bytes"):
        assert key in facts
    assert set(facts["search"]) >= {"kind", "recall", "parameters"}
    assert (facts["items"], facts["labels"]) == (12, 3)
    assert facts["label_counts"] == {"blue": 4, "green": 4, "red": 4}
    assert re.search(r"^labels +3: blue 4, green 4, red 4$", run("info").out, re.M)
    monkeypatch.setattr(inspect, "LABELS", 2)
    assert re.search(r"^labels +3: blue 4, green 4, and 1 more$", run("info").out, re.M)
    assert "ok, 12 items" in run("verify").out
    assert run("verify", "--format", "json").json["problems"] == []
    assert run("export", "-o", tmp_path / "out").code == 0
    features = np.load(tmp_path / "out" / "features.npy")
    assert (features.shape, features.dtype) == ((12, 32), np.float32)
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert list(items[0]) == ["id", "path", "label", "metadata"]
    assert len(items) == 12


def test_damage_exits_3(run, index):
    (index / "features" / "000000.f16").unlink()
    assert run("verify").code == 3
    assert run("query", "id:1").code == 3


def test_moved_images_are_found_with_root(run, pictures, tmp_path):
    pictures.rename(tmp_path / "elsewhere")
    found = run("query", "id:1", "--format", "paths", "--root", tmp_path / "elsewhere").out.splitlines()
    assert all(os.path.exists(path) for path in found)
    assert "12 unchanged" in run("build", "--root", tmp_path / "elsewhere").out
    assert all(os.path.exists(path) for path in run("query", "id:1", "--format", "paths").out.splitlines())


def test_names_that_are_no_text(run, pictures, tmp_path):
    odd = os.fsdecode(os.fsencode(pictures / "red") + b"/a\nb\xff.png")
    Image.new("RGB", (70, 70), "red").save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", odd)
    assert "1 added" in run("build", pictures).out
    done = subprocess.run(
        [sys.executable, "-m", "simsearch", "query", odd, "-k", "1", "-0"], capture_output=True, check=True
    )
    assert done.stdout == os.fsencode(odd) + b"\0"
    matches = run("query", odd, "-k", 1, "--format", "json").json[0]["matches"]
    assert os.fsencode(matches[0]["path"]) == os.fsencode(odd)
    assert "a\\nb" in run("query", odd, "-k", 1).out


def test_cold_query_imports_no_torch(run, pictures, index):
    code = "import sys; from simsearch.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit as e: assert e.code == 0"
    code += "\nprint(sorted(m for m in ('torch', 'torchvision', 'rich') if m in sys.modules), file=sys.stderr)"
    for arguments in (
        ["query", str(pictures / "red" / "0.png")],
        ["query", "id:1"],
        ["build", str(pictures)],
        ["info"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]", arguments


def test_a_closed_pipe_is_no_error(pictures, index):
    command = f"{sys.executable} -m simsearch query {pictures}/*/*.png -i {index} --format jsonl | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode in {0, 141}
    assert "Traceback" not in done.stderr


def test_version_everywhere(run):
    import simsearch

    for arguments in ([], *([name] for name in main.commands)):
        assert simsearch.__version__ in run(*arguments, "--version").out


def test_models_and_sample(run, tmp_path):
    assert "alexnet" in run("models").out
    assert "sha256" in run("models", "--verbose").out
    assert run("models", "--format", "json").json[0]["dimension"] == 4096
    assert "9 pictures" in run("sample", tmp_path / "drawn", "-n", 9).out
    assert run("sample", tmp_path / "drawn").code == 2


def test_first_use_of_weights_is_noted(run, pictures, tmp_path, tiny_weights, monkeypatch):
    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path / "cache"))
    noted = []
    for name in ("one", "two"):
        done = run("build", pictures, "-i", tmp_path / name, "--model", tiny_weights)
        noted.append([line for line in done.err.splitlines() if "unpacking" in line])
    assert noted == [[f"note: unpacking the weights of {tiny_weights} into the cache, once"], []]


def test_command_list_shows_own_short_help():
    """The table's texts, which stand in for the commands until one is used, are the first sentences of their help."""
    with click.Context(main) as context:
        for name in main.list_commands(context):
            real, listed = main.commands[name], main.lazy_commands.short_helps()[name]
            assert real.name == name
            assert real.get_short_help_str(200).startswith(listed.removesuffix("."))


def test_no_summary_is_cut_off():
    listings = [page for page in help_texts().values() if "\nCommands:\n" in page]
    assert len(listings) == 2  # curate and eval
    for page in listings:
        listed = page.partition("\nCommands:\n")[2]
        assert listed.endswith(".\n")
        assert "..." not in listed


def test_every_option_has_help():
    for name in help_texts():
        command: click.Command = main
        for word in name.split():
            assert isinstance(command, click.Group)
            command = command.commands[word]
        for option in command.params:
            assert getattr(option, "help", "argument") or option.param_type_name == "argument", f"{name} {option.name}"


# -- the end of the process


@pytest.mark.parametrize(
    ("does", "code", "out"),
    [
        ("print('x' * 100_000, end='')", 0, "x" * 100_000),
        ("sys.exit(3)", 3, ""),
        ("sys.exit(None)", 0, ""),
        ("sys.exit('a text')", 1, ""),
        ("1 / 0", 1, ""),
        ("threading.Thread(target=lambda: (time.sleep(0.3), print('waited for'))).start()", 0, "waited for\n"),
        ("atexit.register(print, 'done at exit')", 0, "done at exit\n"),
        ("ThreadPoolExecutor(2).submit(lambda: (time.sleep(0.3), print('by a pool'))); sys.exit(1)", 1, "by a pool\n"),
        ("os.close(1)", 0, ""),
    ],
)
def test_program_ends_at_once_with_all_done(does: str, code: int, out: str) -> None:
    script = f"""
import atexit, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import simsearch.__main__ as program
def does():
    {does}
program.main = does
program.run()
print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert "Traceback" not in done.stderr or "ZeroDivisionError" in done.stderr


def test_the_program_in_a_pipe_that_is_closed() -> None:
    """As before `head`: no error, whatever is left in the buffers."""
    command = [sys.executable, "-m", "simsearch", "build", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in {0, 1}  # 1 is what click says


def test_bad_query_does_not_stop_others(run, pictures, tmp_path):
    bad = tmp_path / "bad.png"
    good = [pictures / "red" / f"{number}.png" for number in range(2)]
    bad.write_bytes(good[0].read_bytes()[:300])
    result = run("query", good[0], bad, "id:999", good[1], tmp_path / "none.png", "-k", 1, "--format", "json")
    assert result.code == 2
    assert [answer["query"] for answer in result.json] == list(map(str, good))
    assert [line.partition(":")[0] for line in result.err.splitlines()] == ["error"] * 3
    assert "bad.png" in result.err and "999" in result.err and "none.png" in result.err
    result = run("query", bad, "--format", "json")
    assert (result.code, result.json) == (2, [])
    assert run("query", good[0], "--filter", "nonsense").err.count("error:") == 1


def test_bad_picture_does_not_stop_classify(run, pictures, tmp_path, tiny_weights):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    good = pictures / "red" / "0.png"
    for form in ("text", "json", "jsonl"):
        result = run("classify", tmp_path / "bad.png", good, "-m", tiny_weights, "-k", 1, "--format", form)
        assert (result.code, result.err.count("error:")) == (2, 1)
        assert str(good) in result.out


def test_csv_cells_are_no_formulas(run, tmp_path, pictures):
    table = tmp_path / "m.csv"
    labels = ["=1+1", "+x", "-x", "@x", "plain", "a=b"]
    rows = [f"pictures/red/{n % 4}.png,{label}" for n, label in enumerate(labels[:4])]
    rows += [f"pictures/blue/{n}.png,{label}" for n, label in enumerate(labels[4:])]
    table.write_text("path,label\n" + "\n".join(rows) + "\n")
    assert run("build", table).code == 0
    found = csv.DictReader(io.StringIO(run("query", "id:1", "-k", 50, "--format", "csv").out))
    assert {row["label"] for row in found} == {"red", "blue", "green", "'=1+1", "'+x", "'-x", "'@x", "plain", "a=b"}


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_beginnings_of_formulas(start):
    written = text.to_csv([[start + "1", f"a{start}=1", 1, -1.5, "-"]])
    assert list(csv.reader(io.StringIO(written, newline=""))) == [["'" + start + "1", f"a{start}=1", "1", "-1.5", "-"]]


def test_notes_of_what_was_left_out(run, pictures):
    result = run("build", pictures, "--exclude", "rde", "--exclude", "blue/")
    assert result.code == 0
    assert "note: --exclude rde matched nothing" in result.err
    assert "blue" not in result.err


def test_unknown_field_is_an_error(run):
    result = run("query", "id:1", "--filter", "lable=red")
    assert (result.code, result.out) == (2, "")
    assert "no item has a field 'lable'" in result.err and "did you mean label?" in result.err
    assert run("query", "id:1", "--filter", "bytes<10MB").code == 2


def test_info_of_paths_says_why_they_are_missing(run, pictures):
    (pictures / "red" / "bad.png").write_bytes(b"")
    (pictures / "red" / "notes.txt").write_text("hello")
    run("build", pictures)
    good, bad, notes = (pictures / "red" / name for name in ("0.png", "bad.png", "notes.txt"))
    found = run("info", good)
    assert (found.code, found.out.rpartition("/")[2]) == (0, "0.png: item 9, label red\n")
    found = run("info", good, bad, notes, pictures / "red")
    assert found.code == 1
    lines = [line.rpartition("/")[2] for line in found.out.splitlines()]
    assert lines == [
        "0.png: item 9, label red",
        "bad.png: not indexed: empty file",
        "notes.txt: not indexed: it is not an image",
        "red: 4 items",
        "bad.png: not indexed: empty file",
    ]
    assert run("info", notes, "--format", "json").json == [
        {"path": str(notes), "items": [], "failures": [], "reason": "it is not an image"}
    ]
    refused = run("info", notes, "--failures")
    assert (refused.code, refused.err.splitlines()[0]) == (2, "error: --failures and PATH exclude each other")
