"""The web page in a real browser: Debian's Chromium, without a screen. Every way to use it, on a desk and on a phone."""

import base64
import contextlib
import io
import re
import shutil

import pytest
from PIL import Image, ImageOps

import simsearch
from tests.helpers.live import process
from tests.helpers.pictures import draw

playwright = pytest.importorskip("playwright.sync_api", reason="the [test] extra is not installed")
expect = playwright.expect
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

MANY = 130
"""Items of an index that takes three pages."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, tiny_weights):
    """60 drawings, and four indexes: of all, of the first twenty, of 130 small pictures, and of none."""
    from simsearch.images.samples import generate

    folder = tmp_path_factory.mktemp("site")
    generate.generate(folder / "drawn", 60)
    simsearch.build(folder / "drawn", folder / "all", model=str(tiny_weights)).close()
    some = sorted(path for path in (folder / "drawn").iterdir() if path.is_dir())[:10]
    simsearch.build(some, folder / "some", model=str(tiny_weights)).close()
    for n in range(MANY):
        draw(folder / "small" / f"{n % 3}" / f"{n:03}.png", n)
        with Image.open(folder / "small" / f"{n % 3}" / f"{n:03}.png") as image:
            image.resize([(60, 40), (40, 60), (80, 30), (50, 50)][n % 4]).save(
                folder / "small" / f"{n % 3}" / f"{n:03}.png"
            )
    table = folder / "small" / "table.csv"
    lines = [f"{n % 3}/{n:03}.png,kind {n % 3},{2000 + n % 7},Ort {n % 2}" for n in range(MANY)]
    table.write_text("path,label,year,place\n" + "\n".join(lines))
    simsearch.build(table, folder / "many", model=str(tiny_weights)).close()
    with simsearch.build(some, folder / "empty", model=str(tiny_weights)) as engine:
        engine.remove(["*"])
    return folder


@pytest.fixture(scope="module")
def site(drawn):
    with process("-i", drawn / "all", "-i", drawn / "some", "-i", drawn / "many") as (_, url, _):
        yield url, sorted((drawn / "drawn").rglob("*.jpg"))


def visit(browser, url, phone=False):
    """A fresh page, which must neither complain nor ask anyone else for anything."""
    size = {"width": 390, "height": 800} if phone else {"width": 1280, "height": 900}
    page = browser.new_page(
        viewport=size, color_scheme="dark" if phone else "light", has_touch=phone, reduced_motion="reduce"
    )
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "console", lambda message: page.complaints.append(message.text) if "Content Security" in message.text else None
    )
    page.goto(url)
    return page


both = pytest.mark.parametrize("page", ["desk", "phone, dark"], indirect=True)


@pytest.fixture
def page(request, browser, site):
    page = visit(browser, site[0], getattr(request, "param", "desk") != "desk")
    browsing(page, 60)
    yield page
    assert page.complaints == []
    assert all(url.startswith((site[0], "blob:", "data:")) for url in page.asked)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def browsing(page, count):
    """Waits for the browse view of that many pictures, of which the first are loaded."""
    expect(page.locator("#status")).to_contain_text(f"{count} picture")
    expect(page.locator(".item").first).to_be_visible()
    expect(page.locator(".item img.here").first).to_be_visible()


def results(page, count=None):
    """Waits for the matches of a search; their links."""
    expect(page.locator("#results.matches .item")).to_have_count(count if count is not None else 59)
    expect(page.locator("#results[aria-busy]")).to_have_count(0)
    expect(page.locator("#skeleton")).to_be_hidden()
    return page.locator("#results .open")


def wait_until(page, expression):
    """Waits until an expression is true. (`wait_for_function` needs a policy that allows eval.)"""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def labels(page):
    """The items that are shown, in order."""
    return page.locator("#results .item").evaluate_all("tiles => tiles.map(tile => tile.dataset.id)")


def search_from(page, place):
    """Searches by one of the pictures that are shown."""
    page.locator(".item").nth(place).hover()
    page.locator(".item").nth(place).locator(".quick button").first.click()


def filters(page):
    if page.locator("#filters").is_hidden():
        page.click("#filter-button")


def accessible(page):
    from axe_playwright_python.sync_playwright import Axe

    settled(page)
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []


def settled(page):
    """Waits until nothing fades any more: half transparent text has less contrast."""
    ending = "document.getAnimations().filter(a => a.effect.getComputedTiming().iterations < Infinity)"
    page.evaluate(f"Promise.allSettled({ending}.map(a => a.finished))")


def searches(page):
    return sum("/v1/search" in url for url in page.asked)


# -- browsing


@both
def test_browsing(page, site):
    accessible(page)
    filters(page)
    accessible(page)
    expect(page.locator("#results .group h2").first).to_have_text(re.compile(r"^\w+ \d{4}$"))
    page.locator("#labels button").first.click()
    expect(page.locator("#labels [aria-pressed=true]")).to_have_count(1)
    expect(page.locator("#status")).to_contain_text("2 pictures of 60")
    page.select_option("#sort", "id")
    expect(page.locator("#results .group")).to_have_count(0)
    page.locator("#labels button").first.click()
    browsing(page, 60)


def test_rows_are_justified(page):
    """Rows fill the width and keep the pictures' shapes."""
    page.select_option("#index", "many")
    browsing(page, MANY)
    for width in (1280, 700, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        boxes = page.locator(".item").evaluate_all(
            "tiles => tiles.map(t => { const b = t.getBoundingClientRect();"
            " return [b.top, b.left, b.right, b.height, b.width / b.height / t.dataset.shape]; })"
        )
        left, right = page.locator("#results").evaluate(
            "r => { const b = r.getBoundingClientRect(); return [b.left, b.right]; }"
        )
        lines: dict[int, list[list[float]]] = {}
        for top, *rest in boxes:
            lines.setdefault(round(top), []).append(rest)
        assert len(lines) >= 3
        for line in list(lines.values())[:-1]:
            assert line[0][0] == pytest.approx(left, abs=1)
            assert line[-1][1] == pytest.approx(right, abs=1.5)
            assert len({height for _, _, height, _ in line}) == 1
        assert all(shape == pytest.approx(1, abs=0.06) for line in lines.values() for *_, shape in line)


def test_more_is_loaded_as_one_scrolls(page):
    page.select_option("#index", "many")
    browsing(page, MANY)
    for _ in range(12):
        page.mouse.wheel(0, 3000)
        page.wait_for_timeout(100)
    expect(page.locator(".item")).to_have_count(MANY)
    assert len(set(labels(page))) == MANY
    page.evaluate("scrollTo(0, 0)")
    search_from(page, 3)
    expect(page.locator("#results.matches .item").first).to_be_visible()
    for _ in range(12):
        page.mouse.wheel(0, 3000)
        page.wait_for_timeout(100)
    results(page, MANY - 1)
    expect(page.locator("#status")).to_have_text(f"{MANY - 1} matches, nearest first.")
    assert len(set(labels(page))) == MANY - 1


def test_fields_and_folders(page):
    page.select_option("#index", "many")
    browsing(page, MANY)
    filters(page)
    page.select_option("#folder", "2")
    expect(page.locator("#status")).to_contain_text("43 pictures of 130")
    page.select_option("#field", "year")
    page.select_option("#operator", ">=")
    page.fill("#value", "2005")
    with page.expect_request("**/v1/items?*") as sent:
        page.press("#value", "Enter")
    assert "filter=year%3E%3D2005" in sent.value.url
    expect(page.locator("#status")).to_contain_text("12 pictures of 130")
    expect(page.locator("#chosen button")).to_have_text(["year>=2005", "in 2"])
    accessible(page)
    page.locator("#chosen button").first.click()
    page.locator("#chosen button").first.click()
    browsing(page, MANY)
    page.select_option("#field", "path")
    page.fill("#value", "/00")
    page.press("#value", "Enter")
    expect(page.locator("#status")).to_contain_text("10 pictures of 130")
    page.select_option("#field", "place")
    page.select_option("#operator", "=")
    page.fill("#value", "Ort 0")
    page.press("#value", "Enter")
    expect(page.locator("#status")).to_contain_text("5 pictures of 130")


def test_skeletons_while_loading(browser, site):
    page = browser.new_page()
    waiting = []
    page.route("**/v1/items?limit*", lambda route: waiting.append(route))
    with page.expect_request("**/v1/items?limit*"):
        page.goto(site[0])
    expect(page.locator("#skeleton i").first).to_be_visible()
    waiting[0].continue_()
    expect(page.locator(".item")).to_have_count(60)
    expect(page.locator("#skeleton")).to_be_hidden()
    page.close()


# -- searching


@both
def test_choosing_a_picture(page, site):
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files(site[1][0])
    first = results(page, 60).first
    expect(first).to_have_attribute("aria-label", re.compile(r"^Match 1: .+, copy, distance 0$"))
    expect(page.locator("#name")).to_have_text(site[1][0].name)
    expect(page.locator("#results .group h2").first).to_have_text("Copies")
    page.click("footer summary")
    expect(page.locator("#technical")).to_contain_text("exact")
    accessible(page)


GIVE = """([kind, data, name, type]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type}));
  if (kind === "paste") return dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer}));
  for (const event of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(event, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_dropping_and_pasting(page, site, kind):
    data = base64.b64encode(site[1][3].read_bytes()).decode()
    page.evaluate(GIVE, [kind, data, "given.jpg", "image/jpeg"])
    results(page, 60)
    expect(page.locator("#name")).to_have_text("given.jpg")
    expect(page.locator("#shown")).to_be_visible()
    assert page.evaluate("document.body.className") == ""
    page.evaluate(GIVE, ["drop", data, "notes.txt", "text/plain"])
    expect(page.get_by_role("alert")).to_contain_text("notes.txt is not a picture")
    results(page, 60)


def drag(page):
    """Drags a box over the query's picture."""
    expect(page.locator("#shown")).to_be_visible()
    wait_until(page, "query.size")
    box = page.locator("#shown").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 30, box["y"] + 20)
    page.mouse.move(box["x"] + 60, box["y"] + 50)
    page.mouse.up()


@both
def test_cropping_by_dragging_and_typing(page):
    search_from(page, 3)
    results(page)
    with page.expect_request("**/v1/search*") as sent:
        drag(page)
    filters(page)
    part = page.input_value("#crop")
    assert re.fullmatch(r"\d+,\d+,\d+,\d+", part)
    assert ",".join(map(str, sent.value.post_data_json["crop"])) == part
    expect(page.locator("#box")).to_be_visible()
    results(page)
    page.fill("#crop", "0 0 40 40")
    page.press("#crop", "Enter")
    expect(page.locator("#crop")).to_have_value("0,0,40,40")
    results(page)
    with page.expect_request("**/v1/search*") as sent:
        page.fill("#crop", "0,50%,50%,50%")
        page.press("#crop", "Enter")
    x, y, width, height = sent.value.post_data_json["crop"]
    assert (x, abs(y - height) <= 1) == (0, True) and width > 9
    expect(page.locator("#crop")).to_have_value(f"{x},{y},{width},{height}")
    results(page)
    page.fill("#crop", "much of it")
    page.press("#crop", "Tab")
    expect(page.get_by_role("alert")).to_contain_text("or percent such as 50%")
    page.click("#whole")
    expect(page.locator("#box")).to_be_hidden()
    results(page)


@both
def test_filters_of_a_search(page, site):
    page.set_input_files("#file", site[1][0])
    results(page, 60)
    page.locator("#labels button", has_text="apple").click()
    names = results(page, 2).evaluate_all("links => links.map(link => link.getAttribute('aria-label'))")
    assert all("apple" in name for name in names)
    expect(page.locator("#status")).to_have_text("2 matches, nearest first.")
    filters(page)
    page.fill("#max_distance", "0")
    page.press("#max_distance", "Enter")
    results(page, 1)
    expect(page.locator("#chosen button")).to_have_text(["distance at most 0"])
    page.locator("#chosen button").click()
    results(page, 2)
    page.select_option("#min_similarity", "0.75")
    expect(page.locator("#results .item")).not_to_have_count(0)
    with page.expect_request("**/v1/search*"):
        page.check("#dedup")
    assert page.evaluate("location.search").endswith("&min_similarity=0.75&dedup=1&filter=label%3Dapple")
    page.select_option("#field", "label")
    page.fill("#value", "nothing of the kind")
    page.locator("#labels [aria-pressed=true]").click()
    page.press("#value", "Enter")
    expect(page.locator("#state h2")).to_have_text("No pictures meet these conditions")
    expect(page.locator("#state p")).to_contain_text("No item meets label=nothing of the kind; the labels are apple,")
    accessible(page)
    page.locator("#state button").click()
    expect(page.locator("#results .item")).not_to_have_count(0)


@both
def test_mirrored_ones_too(page, site):
    """A picture and its mirror image: the checkbox makes the one find the other."""
    with Image.open(site[1][0]) as image:
        buffer = io.BytesIO()
        ImageOps.mirror(image).save(buffer, "PNG")
    page.set_input_files("#file", {"name": "mirrored.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    before = results(page, 60).first.get_attribute("aria-label")
    filters(page)
    box = page.get_by_role("checkbox", name="Mirrored ones too")
    box.check()
    expect(page.locator("#results .open").first).not_to_have_attribute("aria-label", before)
    expect(page.locator("#results .open").first).to_have_attribute("title", str(site[1][0]))
    expect(page.locator("#chosen button")).to_have_text(["Mirrored ones too"])
    box.uncheck()
    expect(page.locator("#results .open").first).to_have_attribute("aria-label", before)


@both
def test_more_like_these_not_those(page):
    search_from(page, 3)
    results(page)
    before = labels(page)
    with page.expect_request("**/v1/search*") as sent:
        page.locator(".item").nth(3).hover()
        page.locator(".item").nth(3).locator("[data-vote=plus]").dispatch_event("click")
    assert sent.value.post_data_json["plus"] == [int(before[3])]
    expect(page.locator("#liked img")).to_have_count(1)
    results(page, 58)
    tile = page.locator(f'.item[data-id="{before[8]}"]')
    with page.expect_request("**/v1/search*") as sent:
        tile.locator("[data-vote=minus]").dispatch_event("click")
    assert sent.value.post_data_json["minus"] == [int(before[8])]
    expect(page.locator("#liked img")).to_have_count(2)
    results(page, 58)
    accessible(page)
    page.get_by_role("button", name=re.compile("^Remove: more like")).click()
    expect(page.locator("#liked button")).to_have_count(1)
    page.click("#forget")
    expect(page.locator("#likedfield")).to_be_hidden()
    for place, number in enumerate(before[:10]):  # the answer comes later
        expect(page.locator(".item").nth(place)).to_have_attribute("data-id", number)
    results(page)
    assert labels(page) == before


def test_several_indexes(page, site):
    page.set_input_files("#file", site[1][-1])
    results(page, 60)
    page.select_option("#index", "some")
    results(page, 20)  # the picture stays
    search_from(page, 0)
    results(page, 19)
    page.select_option("#index", "all")  # an item of one index is none of another
    browsing(page, 60)


def test_empty_first_index_is_passed_over(browser, drawn, site):
    with process("-i", drawn / "empty", "-i", drawn / "some") as (_, url, _):
        page = visit(browser, url)
        browsing(page, 20)
        expect(page.locator("#index")).to_have_value("some")
        page.select_option("#index", "empty")
        expect(page.locator("#state h2")).to_have_text("Nothing is indexed here yet")
        expect(page.locator("#state code")).to_contain_text("simsearch build")
        accessible(page)
        page.set_input_files("#file", site[1][0])
        expect(page.locator("#status")).to_have_text("No matches.")
        page.close()


def test_phone_has_a_strip_and_a_camera(browser, site):
    page = visit(browser, site[0], phone=True)
    browsing(page, 60)
    assert page.locator("#camera").get_attribute("capture") == "environment"
    page.set_input_files("#camera", site[1][0])
    results(page, 60)
    box = page.locator("#query").bounding_box()
    assert box["height"] < 200
    assert page.locator(".item").first.bounding_box()["y"] < 500
    cut = "all => all.filter(each => each.scrollWidth > each.clientWidth + 1 || each.getBoundingClientRect().right > each.closest('.item').getBoundingClientRect().right).length"
    assert page.locator(".caption .far").count() == 60
    assert page.locator(".caption .far").evaluate_all(cut) == 0  # distances are whole, names may be cut off
    page.close()


# -- addresses and the history


def test_address_in_another_browser(page, browser, site):
    search_from(page, 3)
    results(page)
    drag(page)
    results(page)
    page.locator("#labels button").nth(4).click()
    page.select_option("#min_similarity", "0.3")
    page.wait_for_load_state("networkidle")
    expect(page.locator("#results[aria-busy]")).to_have_count(0)
    address = page.evaluate("location.search")
    for part in ("id=", "crop=", "filter=label", "min_similarity=0.3"):
        assert part in address
    other = visit(browser, page.url)
    expect(other.locator("#name")).to_have_text(page.locator("#name").inner_text())
    expect(other.locator("#status")).to_have_text(page.locator("#status").inner_text())
    assert labels(other) == labels(page)
    expect(page.locator("#private")).to_be_hidden()
    other.close()
    page.reload()
    expect(page.locator("#box")).to_be_visible()


def test_chosen_picture_survives_a_reload(page, browser, site):
    page.set_input_files("#file", site[1][5])
    results(page, 60)
    before = labels(page)
    page.reload()
    results(page, 60)
    assert labels(page) == before
    expect(page.locator("#name")).to_have_text(site[1][5].name)
    expect(page.locator("#shown")).to_be_visible()
    expect(page.locator("#private")).to_contain_text("works in this browser only")
    other = visit(browser, page.url)  # where nobody has the picture
    expect(other.get_by_role("alert")).to_contain_text("Choose it again")
    expect(other.locator("#private")).to_be_hidden()
    other.close()


def test_going_back(page):
    browse = labels(page)
    search_from(page, 2)
    first = page.locator("#name").inner_text()
    results(page)
    search_from(page, 1)
    expect(page.locator("#name")).not_to_have_text(first)
    results(page)
    page.go_back()
    expect(page.locator("#name")).to_have_text(first)
    results(page)
    page.go_back()
    browsing(page, 60)
    expect(page.locator("#query")).to_be_hidden()
    assert labels(page) == browse
    page.go_forward()
    expect(page.locator("#name")).to_have_text(first)
    results(page)
    page.click("#clear")
    browsing(page, 60)


def test_two_quick_backs_leave_no_results(page):
    """The answer to a search that was gone back from must not appear under an empty query."""
    search_from(page, 2)
    results(page)
    search_from(page, 1)
    results(page)
    waiting = []
    page.route("**/v1/search*", lambda route: waiting.append(route))
    page.evaluate("kept.clear(); history.back(); setTimeout(() => history.back(), 60)")
    expect(page.locator("#query")).to_be_hidden()
    for route in waiting:
        with contextlib.suppress(playwright.Error):  # cancelled
            route.continue_()
    browsing(page, 60)
    page.wait_for_timeout(300)
    expect(page.locator("#results.matches")).to_have_count(0)
    expect(page.locator("#results .item")).to_have_count(60)


def test_going_back_keeps_the_part(page):
    search_from(page, 2)
    results(page)
    drag(page)
    expect(page.locator("#box")).to_be_visible()
    results(page)
    part = page.locator("#crop").input_value()
    search_from(page, 1)
    expect(page.locator("#box")).to_be_hidden()
    results(page)
    page.go_back()
    expect(page.locator("#box")).to_be_visible()
    expect(page.locator("#crop")).to_have_value(part)
    results(page)
    page.go_back()
    expect(page.locator("#box")).to_be_hidden()


def test_enter_searches_once(page, site):
    page.set_input_files("#file", site[1][0])
    results(page, 60)
    filters(page)
    before = searches(page)
    page.fill("#max_distance", "0")
    page.press("#max_distance", "Enter")
    results(page, 1)
    page.press("#max_distance", "Enter")
    page.press("#max_distance", "Tab")
    page.wait_for_timeout(300)
    assert searches(page) == before + 1


def test_place_is_kept_when_going_back(page):
    page.evaluate("scrollTo(0, 700)")
    page.wait_for_timeout(400)
    search_from(page, 30)
    results(page)
    assert page.evaluate("scrollY") < 100
    page.go_back()
    browsing(page, 60)
    wait_until(page, "Math.abs(scrollY - 700) < 60")


# -- the large view


@both
def test_large_view(page, site):
    order = labels(page)
    page.locator(".item a").nth(1).click()
    view = page.locator("#view")
    expect(view).to_be_visible()
    expect(view.locator("img")).to_be_visible()
    assert f"view={order[1]}" in page.url
    expect(page.locator("#about")).to_contain_text(re.compile(r"Size\d+ × \d+, [\d.]+ KB"))
    expect(page.locator("#about")).to_contain_text(re.compile(r"Date\d+ \w+ \d{4}"))
    accessible(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile(f"view={order[2]}$"))
    page.click("#previous")
    page.click("#previous")
    page.wait_for_url(re.compile(f"view={order[0]}$"))
    expect(page.locator("#previous")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(view).to_be_hidden()
    assert "view" not in page.url
    assert page.evaluate("document.activeElement.parentElement.dataset.id") == order[0]
    page.locator(".item a").nth(3).click()
    expect(view).to_be_visible()
    page.go_back()
    expect(view).to_be_hidden()
    browsing(page, 60)


def test_large_view_gives_file_and_path(page, site):
    page.locator(".item a").nth(1).click()
    number = page.url.rpartition("=")[2]
    with page.context.expect_page() as opened:
        page.click("#open")
    opened.value.wait_for_load_state()
    assert opened.value.url.endswith(f"/v1/items/{number}/image?index=all")
    opened.value.close()
    with page.expect_download() as download:
        page.click("#save")
    path = page.locator("#about dd").last.inner_text()
    assert download.value.suggested_filename == path.rpartition("/")[2]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == path
    page.click("#from-here")
    expect(page.locator("#view")).to_be_hidden()
    results(page)
    assert page.url.endswith(f"?id={number}")
    page.locator(".item a").first.click()
    expect(page.locator("#about")).to_contain_text(re.compile("Match(Copies|Close|Similar|Weak), distance"))
    page.locator("#view [data-vote=plus]").click()
    expect(page.locator("#liked button")).to_have_count(1)
    results(page, 58)


def test_swiping(browser, site):
    page = visit(browser, site[0], phone=True)
    browsing(page, 60)
    order = labels(page)
    page.locator(".item a").first.tap()
    expect(page.locator("#view img")).to_be_visible()
    swipe = """([from, to]) => { const stage = document.getElementById("viewstage");
      for (const [kind, x] of [["pointerdown", from], ["pointerup", to]]) stage.dispatchEvent(
        new PointerEvent(kind, {clientX: x, clientY: 200, pointerType: "touch", isPrimary: true, bubbles: true})); }"""
    page.evaluate(swipe, [300, 60])
    page.wait_for_url(re.compile(f"view={order[1]}$"))
    page.evaluate(swipe, [60, 300])
    page.wait_for_url(re.compile(f"view={order[0]}$"))
    page.close()


def test_large_view_goes_on_to_the_next_page(page):
    page.select_option("#index", "many")
    browsing(page, MANY)
    page.locator(".item a").nth(59).click()
    expect(page.locator("#view")).to_be_visible()
    page.click("#next")
    wait_until(page, "shown.items.length > 60 && now.view === shown.items[60].id")


# -- the keyboard, errors, the key


RING = """() => {
  const it = document.activeElement, s = getComputedStyle(it), reach = parseFloat(s.outlineWidth) + parseFloat(s.outlineOffset);
  let clip = it.parentElement;
  while (clip !== document.body && getComputedStyle(clip).overflowY === "visible") clip = clip.parentElement;
  const box = it.getBoundingClientRect(), edge = clip === document.body ? {top: -9e9, bottom: 9e9} : clip.getBoundingClientRect();
  return [s.outlineStyle, parseFloat(s.outlineWidth), box.top - reach >= edge.top && box.bottom + reach <= edge.bottom];
}"""
"""The style and width of the ring around what has the focus, and whether nothing cuts it off above and below."""


@both
def test_keyboard_alone(page):
    seen = []
    for _ in range(120):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        style, width, inside = page.evaluate(RING)
        assert (style, width) == ("solid", 3), f"{seen[-1]} does not show that it has the focus"
        assert inside, f"the ring of {seen[-1]} is cut off"
        if seen[-1] == "open":
            break
    assert "choose" in seen
    assert seen[-1] == "open"
    page.keyboard.press("Enter")
    expect(page.locator("#view")).to_be_visible()
    page.keyboard.press("Enter")  # the first button searches
    results(page)


def fail_with(page, answers):
    """Lets searches fail with the statuses in a list, 0 for no answer."""

    def failing(route):
        if not answers:
            route.continue_()
        elif (status := answers.pop(0)) == 0:
            route.abort()
        else:
            message = {429: "too many searches at once", 503: "no answer within 30 s"}[status]
            body = f'{{"error": {{"code": "x", "message": "{message}"}}}}'
            route.fulfill(status=status, headers={"retry-after": "1"}, content_type="application/json", body=body)

    page.route("**/v1/search*", failing)


def test_a_busy_service(page, site):
    answers = [429, 429]
    fail_with(page, answers)
    page.set_input_files("#file", site[1][0])
    expect(page.locator("#status")).to_contain_text("busy; trying again in 1 s")
    results(page, 60)
    assert answers == []
    answers += [429] * 4
    page.select_option("#min_similarity", "0.3")
    expect(page.get_by_role("alert")).to_contain_text("The service is busy", timeout=15_000)
    page.click("#again")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_results_stay_when_an_error_comes(page, site):
    answers: list[int] = []
    fail_with(page, answers)
    page.set_input_files("#file", site[1][0])
    results(page, 60)
    before = labels(page)
    alert = page.get_by_role("alert")
    for status, words in ((503, "No answer within 30 s."), (0, "The service cannot be reached.")):
        answers.append(status)
        search_from(page, 4)
        expect(alert).to_contain_text(words)
        expect(page.locator("#status")).to_contain_text("results from before")
        assert labels(page) == before
        accessible(page)
        name = page.locator("#name").inner_text()
        page.click("#again")  # with the same query
        expect(alert).to_be_hidden()
        results(page)
        expect(page.locator("#name")).to_have_text(name)
        page.go_back()
        results(page, 60)


def test_pictures_that_cannot_be_read(page):
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG nothing"}
    page.set_input_files("#file", broken)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(re.compile("not an image|cannot be decoded|damaged", re.IGNORECASE))
    expect(page.locator("#again")).to_be_hidden()  # asking again would not help
    expect(page.locator("#stage")).to_be_hidden()  # nor can the browser show it
    expect(page.locator("#results .item")).to_have_count(60)
    page.click("#dismiss")
    expect(alert).to_be_hidden()


def test_missing_items_and_indexes(browser, site):
    page = visit(browser, site[0] + "?id=9999")
    expect(page.get_by_role("alert")).to_contain_text("no item 9999")
    page.goto(site[0] + "?index=nothing")
    expect(page.get_by_role("alert")).to_contain_text("no index called nothing")
    browsing(page, 60)
    page.goto(site[0] + "?view=9999")
    expect(page.get_by_role("alert")).to_contain_text("no item 9999")
    expect(page.locator("#view")).to_be_hidden()
    page.goto(site[0] + "?filter=nonsense")
    expect(page.get_by_role("alert")).to_contain_text("is not FIELD=VALUE")
    accessible(page)
    page.locator("#state button").click()  # a way on from an address that shows nothing
    browsing(page, 60)
    assert page.evaluate("location.search") in {"", "?"}
    expect(page.locator("#state")).to_be_hidden()
    page.goto(site[0] + "?sort=nonsense&min_similarity=7&max_distance=-3")  # values that nobody can mean are left out
    browsing(page, 60)
    expect(page.get_by_role("alert")).to_be_hidden()
    page.close()


@both
def test_distances_that_are_none(page):
    search_from(page, 3)
    results(page)
    filters(page)
    asked = searches(page)
    page.fill("#max_distance", "-5")
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("A distance is a number that is not negative.")
    expect(alert).to_be_in_viewport()  # on a phone the filters fill the screen
    assert searches(page) == asked
    results(page)


def test_list_that_cannot_go_on(browser, site):
    page = visit(browser, site[0] + "?index=many")
    browsing(page, MANY)
    page.route("**/v1/items?limit*", lambda route: route.abort())
    for _ in range(20):
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(50)
    end = page.locator("#end")
    expect(end).to_contain_text("The service cannot be reached.")
    expect(end).to_be_in_viewport()  # where one looks
    accessible(page)
    before = len(labels(page))
    page.unroute("**/v1/items?limit*")
    end.get_by_role("button").click()
    wait_until(page, f"document.querySelectorAll('.item').length > {before}")
    expect(end.get_by_role("button")).to_have_count(0)
    page.close()


def test_neighbours_are_loaded_before_they_are_asked_for(page):
    page.locator(".item a").nth(3).click()
    expect(page.locator("#viewstage img")).to_be_visible()
    ids = labels(page)
    wanted = [f"/v1/items/{ids[place]}/thumbnail?size=1024" for place in (2, 4)]
    for _ in range(50):
        if all(any(each in url for url in page.asked) for each in wanted):
            break
        page.wait_for_timeout(50)
    assert [each for each in wanted if not any(each in url for url in page.asked)] == []


def test_phone_tools_fit_one_row(browser, site):
    page = visit(browser, site[0], phone=True)
    browsing(page, 60)
    tops = page.locator("#tools > :visible:not(#labels)").evaluate_all(
        "tools => tools.map(tool => Math.round(tool.getBoundingClientRect().top + tool.getBoundingClientRect().height / 2))"
    )
    assert len(tops) == 4 and max(tops) - min(tops) < 10
    for role, name in (("link", "Map"), ("link", "Duplicates"), ("button", "Filters")):
        expect(page.get_by_role(role, name=name, exact=True)).to_be_visible()
    page.set_viewport_size({"width": 320, "height": 568})
    assert (
        page.locator("header button:visible").evaluate_all(
            "buttons => buttons.filter(button => button.scrollWidth > button.clientWidth).map(button => button.id)"
        )
        == []
    )
    assert page.evaluate("document.querySelector('.bar').scrollWidth <= innerWidth")
    page.close()


def test_service_that_is_gone(browser, site):
    page = browser.new_page()
    page.route("**/v1/indexes", lambda route: route.abort())
    page.goto(site[0])
    expect(page.locator("#state h2")).to_have_text("The service cannot be reached")
    accessible(page)
    page.unroute("**/v1/indexes")
    page.locator("#state button").click()
    browsing(page, 60)
    page.close()


def test_the_key(browser, drawn, site):
    with process("-i", drawn / "some", "--api-key", "sesame-of-the-page") as (_, url, log):
        page = visit(browser, url)
        expect(page.locator("#state h2")).to_contain_text("needs an API key")
        expect(page.locator("#key")).to_be_focused()
        accessible(page)
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        expect(page.locator("#state")).to_contain_text("not valid")
        page.fill("#key", "sesame-of-the-page")
        page.press("#key", "Enter")
        browsing(page, 20)
        expect(page.locator("#state")).to_be_hidden()
        page.set_input_files("#file", site[1][0])
        results(page, 20)
        expect(page.locator(".item img.here")).to_have_count(20)
        page.locator(".item a").first.click()
        expect(page.locator("#view img")).to_be_visible()
        with page.expect_download() as download:
            page.click("#save")
        assert download.value.suggested_filename.endswith(".jpg")
        page.reload()  # the tab remembers it
        expect(page.locator("#view img")).to_be_visible()
        page.close()
    assert not [line for line in log if "sesame" in line]


def test_the_reference_page(browser, site):
    page = visit(browser, site[0] + "docs/plain")
    expect(page.locator("h2").first).to_be_visible()
    accessible(page)
    assert page.complaints == []
    page.close()


def test_swagger_ui_works_by_itself(browser, site):
    pytest.importorskip("fastapi_offline", reason="the [serve] extra is not whole")
    page = visit(browser, site[0] + "docs")
    expect(page.locator(".opblock")).not_to_have_count(0)
    page.click(".opblock-summary-path a:text('/health'), .opblock-summary:has-text('/health') button >> nth=0")
    page.click("button:text('Try it out')")
    page.click("button:text('Execute')")
    expect(page.locator(".live-responses-table tbody .response-col_status").first).to_contain_text("200")
    page.get_by_text("The same as a plain page").click()
    expect(page.locator("h1")).to_contain_text("simsearch")
    page.get_by_text("openapi.json").click()
    assert page.complaints == []
    assert all(url.startswith((site[0], "data:")) for url in page.asked)
    page.close()


@pytest.mark.parametrize(("index", "shown"), [("all", True), ("empty", False)])
def test_search_is_offered_where_there_is_something(browser, drawn, index, shown):
    with process("-i", drawn / index) as (_, url, _):
        page = visit(browser, url, phone=True)
        expect(page.locator(".item" if shown else "#state h2").first).to_be_visible()
        for name in ("#choose", "#camera-button"):
            (expect(page.locator(name)).to_be_visible if shown else expect(page.locator(name)).to_be_hidden)()
        page.close()
