"""Duplicates in the web page, in a real browser: looked at, chosen, moved away and brought back."""

import contextlib
import json
import re
import shutil

import pytest
from PIL import Image

import simsearch
from simsearch.search.copy_threshold import Threshold
from simsearch.server import near_groups
from tests.helpers.live import serving
from tests.search.test_duplicates import scenes
from tests.server.test_page import CHROMIUM, accessible, playwright, visit, wait_until

expect = playwright.expect
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture
def copies(photos):
    """The 24 pictures; amber/0.png also twice as large and once more, blue/0.png also as z/blue.png."""
    (photos / "z").mkdir()
    with Image.open(photos / "amber" / "0.png") as image:
        image.resize((32, 32), Image.Resampling.NEAREST).save(photos / "z" / "large.png")
    shutil.copy(photos / "amber" / "0.png", photos / "z" / "copy.png")
    shutil.copy(photos / "blue" / "0.png", photos / "z" / "blue.png")
    return photos


@pytest.fixture
def engine(copies, tmp_path, colours, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    with simsearch.build(copies, tmp_path / "index", model=colours) as engine:
        yield engine


@pytest.fixture
def open_page(browser, engine, tmp_path):
    """Opens the page of a service with these options; by default one that moves duplicates to tmp_path/moved."""
    with contextlib.ExitStack() as stack:

        def open_(address="?duplicates=1", phone=False, **options):
            if not options:
                options = {"writable": True, "allow_cleanup": True, "move_to": str(tmp_path / "moved")}
            port = stack.enter_context(serving(simsearch.create_app(engine, **options)))
            page = visit(browser, f"http://127.0.0.1:{port}/{address}", phone)
            stack.callback(page.close)
            stack.callback(lambda: check(page))
            return page

        def check(page):
            assert page.complaints == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        yield open_


def groups(page, count):
    expect(page.locator(".dups")).to_have_count(count)
    expect(page.locator("#results[aria-busy]")).to_have_count(0)
    return page.locator(".dups")


def member(page, name):
    """The picture of that name; several names may be alike, so a folder may stand before it."""
    folder, _, file = name.rpartition("/")
    found = page.locator(".member", has=page.locator(".name", has_text=re.compile(f"^{re.escape(file)}$")))
    return found.filter(has=page.locator(".folder", has_text=re.compile(f"{re.escape(folder)}$"))) if folder else found


def test_only_copies_are_chosen_in_advance(tmp_path, colours, browser, monkeypatch):
    """By their pixels: beyond the limit too, and not what only another picture of the group links."""
    scenes(tmp_path / "p", 4)
    with Image.open(tmp_path / "p" / "1.png") as image:
        for number, width in enumerate((152, 148, 140)):
            image.crop((0, 0, width, 120)).save(tmp_path / "p" / f"1-{number}.png")
    monkeypatch.setattr(near_groups, "copy_threshold", lambda *_, **__: Threshold(0.0, {}, 1e3))
    with simsearch.build(tmp_path / "p", tmp_path / "index", model=colours) as engine:
        app = simsearch.create_app(engine, writable=True, allow_cleanup=True, move_to=str(tmp_path / "moved"))
        with serving(app) as port:
            page = visit(browser, f"http://127.0.0.1:{port}/?duplicates=1", False)
            groups(page, 1)
            expect(page.locator(".member.goes .name")).to_have_text(["1-0.png", "1-1.png"])
            expect(page.locator(".member.stays .name")).to_have_text(["1.png", "1-2.png"])
            page.close()


def move_all(page):
    page.click("#move")
    expect(page.locator("#confirm-do")).to_be_enabled()
    page.click("#confirm-do")


@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone, dark"])
def test_groups_side_by_side(open_page, phone):
    page = open_page("", phone)
    page.click("#to-duplicates")
    groups(page, 2)
    assert page.url.endswith("duplicates=1")
    expect(page.locator("#status")).to_have_text("2 groups of near-identical pictures, 5 in all.")
    first = page.locator(".dups").first
    expect(first.locator("h3")).to_have_text("3 pictures")
    kept = first.locator(".member").first
    expect(kept.locator(".name")).to_have_text("large.png")
    expect(kept.locator("dd.best").first).to_have_text("32 × 32")
    expect(kept.get_by_label("Keep")).to_be_checked()
    expect(first.locator(".goes")).to_have_count(2)
    expect(first.locator(".member").nth(1).locator("dl")).to_contain_text("distance")
    expect(page.locator("#move")).to_contain_text("Move 3 pictures (")
    expect(page.locator("img.here").first).to_be_visible()
    accessible(page)
    page.reload()
    groups(page, 2)
    assert page.title() == "Duplicates · simsearch"
    page.click("#to-all")
    expect(page.locator(".item")).to_have_count(27)
    expect(page.locator("#cleanbar")).to_be_hidden()
    page.go_back()
    groups(page, 2)


def test_choosing(open_page):
    page = open_page()
    first = groups(page, 2).first
    member(page, "z/copy.png").get_by_label("Keep").check()
    expect(page.locator("#move")).to_contain_text("Move 2 pictures")
    expect(first.locator(".act")).to_have_text("Move 1")
    member(page, "z/copy.png").get_by_label("Keep").focus()
    page.keyboard.press("ArrowRight")  # the radio buttons' own way
    expect(page.locator("#move")).to_contain_text("Move 3 pictures")
    page.keyboard.press("k")
    expect(page.locator("#move")).to_contain_text("Move 2 pictures")
    page.keyboard.press("m")
    member(page, "large.png").locator("a.open").focus()
    page.keyboard.press("Delete")
    expect(first.locator(".sum")).to_have_text("One picture has to stay")
    expect(first.locator(".act")).to_be_hidden()
    expect(page.locator("#move")).to_contain_text("Move 1 picture (")
    accessible(page)
    first.get_by_text("Keep all").click()
    expect(first.locator(".goes")).to_have_count(0)
    expect(first.locator(".sum")).to_have_text("All stay")
    page.select_option("#rule", "shortest-path")
    expect(page.locator(".member").first.locator(".name")).to_have_text("copy.png")
    assert "keep=shortest-path" in page.url
    expect(page.locator(".goes")).to_have_count(3)


def test_move_and_undo(open_page, copies, tmp_path, engine):
    page = open_page()
    groups(page, 2)
    page.click("#move")
    expect(page.locator("#confirm-title")).to_contain_text("Move 3 pictures (")
    expect(page.locator("#confirm-text")).to_contain_text(str(tmp_path / "moved"))
    expect(page.locator("#confirm-text")).to_contain_text("Undo")
    expect(page.locator("#confirm-cancel")).to_be_focused()
    accessible(page)
    page.keyboard.press("Escape")
    expect(page.locator("#confirm")).to_be_hidden()
    assert not (tmp_path / "moved").exists()
    move_all(page)
    expect(page.locator("#notice-text")).to_contain_text("3 pictures (")
    expect(page.locator("#state h2")).to_have_text("No duplicates")
    expect(page.locator("#notice-command")).to_contain_text("simsearch restore /")
    accessible(page)
    assert len(list((tmp_path / "moved").rglob("*.png"))) == 3 and len(engine) == 24
    page.click("#undo")
    expect(page.locator("#notice-text")).to_have_text("3 pictures are back in place.")
    groups(page, 2)
    assert (copies / "z" / "blue.png").exists() and len(engine) == 27


def test_one_group_and_an_earlier_clean_up(open_page, copies):
    page = open_page()
    groups(page, 2).nth(1).locator(".act").click()
    expect(page.locator("#confirm-do")).to_have_text("Move 1 picture")
    expect(page.locator("#confirm-do")).to_be_enabled()
    page.click("#confirm-do")
    expect(page.locator("#notice")).to_be_visible()
    groups(page, 1)
    page.reload()
    groups(page, 1)
    page.click("#past summary")
    expect(page.locator("#past li")).to_contain_text("1 picture moved away")
    accessible(page)
    page.click("#past li button")
    groups(page, 2)
    assert (copies / "z" / "blue.png").exists()
    expect(page.locator("#past")).to_be_hidden()


def test_no_duplicates_after_all(open_page, engine):
    page = open_page(writable=True)
    expect(groups(page, 2).first.locator(".choice")).to_have_count(0)
    page.locator(".dups").first.get_by_text("Not duplicates").click()
    groups(page, 1)
    assert len(engine.duplicates()) == 1
    page.click("#undo")
    groups(page, 2)
    expect(page.locator("#notice")).to_be_hidden()


def test_page_that_only_shows(open_page):
    page = open_page(relative=True)
    groups(page, 2)
    expect(page.locator("#readonly code")).to_have_text("simsearch duplicates -i default --keep largest --trash")
    expect(page.locator("#cleanbar")).to_be_hidden()
    expect(page.locator(".dups button")).to_have_count(0)
    expect(page.locator(".mark").first).to_have_text("Suggested to keep")
    accessible(page)
    page.fill("#reach", "0")
    page.press("#reach", "Enter")
    expect(page.locator("#readonly code")).to_contain_text("--max-distance 0")
    assert "max_distance=0" in page.url


def test_trash(open_page, tmp_path):
    page = open_page(writable=True, allow_cleanup=True)
    groups(page, 2)
    expect(page.locator("#move")).to_contain_text("Trash 3 pictures")
    move_all(page)
    expect(page.locator("#notice-text")).to_contain_text("were moved to the trash.")
    assert len(list((tmp_path / "share" / "Trash" / "files").iterdir())) == 3
    page.click("#undo")
    groups(page, 2)


def test_progress_of_the_comparison(open_page):
    page = open_page("")
    answers = [{"done": 0, "total": 0}, {"done": 1200, "total": 40000}]

    def pending(route):
        if not answers:
            route.continue_()
            return
        body = json.dumps(answers.pop(0))
        route.fulfill(status=202, body=body, content_type="application/json")

    page.route("**/v1/duplicates?*", pending)
    page.click("#to-duplicates")
    expect(page.locator("#status")).to_contain_text("Measuring")
    expect(page.locator("#comparing")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("1,200 of 40,000 pictures")
    accessible(page)
    groups(page, 2)
    expect(page.locator("#comparing")).to_be_hidden()


def test_errors_keep_the_groups(open_page, copies, engine):
    page = open_page()
    groups(page, 2)

    def fail(route):
        body = json.dumps({"error": {"code": "index_locked", "message": "another process is writing to the index"}})
        route.fulfill(status=503, body=body, content_type="application/json")

    page.route("**/v1/duplicates/clean-up?*", lambda route: fail(route) if route.request.method == "POST" else None)
    page.click("#move")
    expect(page.get_by_role("alert")).to_contain_text("Another process is writing")
    groups(page, 2)
    page.unroute_all()
    engine.remove(str(copies / "z" / "blue.png"))
    page.click("#move")
    expect(page.get_by_role("alert")).to_contain_text("These groups had changed, so nothing was done")
    groups(page, 1)
    assert (copies / "z" / "copy.png").exists()


def test_file_that_is_left(open_page, copies):
    page = open_page()
    groups(page, 2)
    (copies / "z" / "copy.png").write_bytes((copies / "rose" / "1.png").read_bytes())
    page.click("#move")
    expect(page.locator("#confirm-title")).to_contain_text("Move 2 pictures")
    expect(page.locator(".reasons")).to_contain_text("changed")
    page.click("#confirm-do")
    expect(page.locator("#notice-left")).to_contain_text("1 picture stayed")


def test_no_duplicates(open_page):
    page = open_page("?duplicates=1&max_distance=0")
    groups(page, 2)  # copies to the last byte, and one that is only scaled
    move_all(page)
    expect(page.locator("#state h2")).to_have_text("No duplicates")
    accessible(page)


def test_large_view_of_a_member(open_page):
    page = open_page()
    groups(page, 2)
    member(page, "large.png").locator("a.open").click()
    expect(page.locator("#viewname")).to_have_text("large.png")
    expect(page.locator("#about")).to_contain_text("Keep, distance 0")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewname")).to_have_text(re.compile("0.png|copy.png"))
    accessible(page)
    page.keyboard.press("Escape")
    expect(page.locator("#view")).to_be_hidden()
    wait_until(page, "document.activeElement.classList.contains('open')")
    member(page, "large.png").locator("a.open").click()
    page.click("#from-here")
    expect(page.locator("#results.matches .item").first).to_be_visible()
    expect(page.locator("#to-all")).to_be_hidden()
