"""The web page in a real browser: Debian's Chromium, without a screen. Every way to use it, on a desk and on a phone."""

import base64
import io
import re
import shutil

import pytest
from PIL import Image, ImageOps

import simsearch
from tests.helpers.live import process

playwright = pytest.importorskip("playwright.sync_api", reason="the [test] extra is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, tiny_weights):
    """A folder of 60 drawings, and two indexes: of all, and of the first twenty."""
    from simsearch.images.samples import generate

    folder = tmp_path_factory.mktemp("site")
    generate.generate(folder / "drawn", 60)
    simsearch.build(folder / "drawn", folder / "all", model=str(tiny_weights)).close()
    some = sorted(path for path in (folder / "drawn").iterdir() if path.is_dir())[:10]
    simsearch.build(some, folder / "some", model=str(tiny_weights)).close()
    return folder


@pytest.fixture(scope="module")
def site(drawn):
    with process("-i", drawn / "all", "-i", drawn / "some") as (_, url, _):
        yield url, sorted((drawn / "drawn").rglob("*.jpg"))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser, url, phone=False):
    """A fresh page, which must neither complain nor ask anyone else for anything."""
    size = {"width": 390, "height": 800} if phone else {"width": 1280, "height": 900}
    page = browser.new_page(viewport=size, color_scheme="dark" if phone else "light")
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
    playwright.expect(page.locator("#results li")).to_have_count(18)
    yield page
    assert page.complaints == []
    assert all(url.startswith((site[0], "blob:", "data:")) for url in page.asked)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def results(page, count):
    playwright.expect(page.locator("#status")).to_contain_text(f"{count} match")
    playwright.expect(page.locator("#results li")).to_have_count(count)
    playwright.expect(page.locator("#results[aria-busy]")).to_have_count(0)
    return page.locator("#results .open")


def options(page):
    if page.locator("#options").get_attribute("open") is None:
        page.click("#options summary")


def accessible(page):
    from axe_playwright_python.sync_playwright import Axe

    assert [violation["id"] for violation in Axe().run(page).response["violations"]] == []


@both
def test_choosing_a_picture(page, site):
    accessible(page)
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files(site[1][0])
    first = results(page, 12).first
    playwright.expect(page.locator("#results img")).to_have_count(12)
    playwright.expect(first).to_have_attribute(
        "aria-label", re.compile(r"^Match 1: .+, distance 0, similarity 100\.0 %")
    )
    playwright.expect(page.locator("#name")).to_have_text(site[1][0].name)
    playwright.expect(page.locator("#status")).to_contain_text("exact search")
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
    results(page, 12)
    playwright.expect(page.locator("#name")).to_have_text("given.jpg")
    playwright.expect(page.locator("#shown")).to_be_visible()
    assert page.evaluate("document.body.className") == ""
    page.evaluate(GIVE, ["drop", data, "notes.txt", "text/plain"])
    playwright.expect(page.get_by_role("alert")).to_contain_text("notes.txt is not a picture")


def test_clicking_on_results_and_going_back(page):
    page.locator("#results .open").nth(2).click()  # one of those to begin with
    name = page.locator("#name").inner_text()
    second = results(page, 12).nth(1)
    second.click()
    playwright.expect(page.locator("#name")).not_to_have_text(name)
    playwright.expect(page.locator("#shown")).to_have_attribute("alt", re.compile(r"The query: .+\.jpg"))
    page.go_back()
    playwright.expect(page.locator("#name")).to_have_text(name)
    results(page, 12)
    page.go_back()
    page.go_back()
    assert page.url == "about:blank"


@both
def test_cropping_by_dragging_and_by_typing(page):
    page.locator("#results .open").nth(3).click()
    results(page, 12)
    playwright.expect(page.locator("#shown")).to_be_visible()
    with page.expect_request("**/v1/search*") as sent:
        page.locator("#shown").scroll_into_view_if_needed()
        box = page.locator("#shown").bounding_box()
        page.mouse.move(box["x"] + 10, box["y"] + 10)
        page.mouse.down()
        page.mouse.move(box["x"] + 50, box["y"] + 40)
        page.mouse.move(box["x"] + 90, box["y"] + 70)
        page.mouse.up()
    part = page.input_value("#crop")
    assert re.fullmatch(r"\d+,\d+,\d+,\d+", part)
    assert ",".join(map(str, sent.value.post_data_json["crop"])) == part
    playwright.expect(page.locator("#box")).to_be_visible()
    results(page, 12)
    page.fill("#crop", "0 0 40 40")
    page.press("#crop", "Enter")
    playwright.expect(page.locator("#crop")).to_have_value("0,0,40,40")
    results(page, 12)
    page.fill("#crop", "much of it")
    page.press("#crop", "Tab")
    playwright.expect(page.get_by_role("alert")).to_contain_text("four whole numbers")
    page.click("#whole")
    playwright.expect(page.locator("#box")).to_be_hidden()
    results(page, 12)


@both
def test_filters_numbers_and_distances(page, site):
    options(page)
    page.set_input_files("#file", site[1][0])
    results(page, 12)
    page.fill("#k", "3")
    page.press("#k", "Enter")
    results(page, 3)
    page.fill("#filter", "label=apple; width>10")
    page.press("#filter", "Enter")
    labels = results(page, 2).locator(".label").all_inner_texts()
    assert labels == ["apple", "apple"]
    page.fill("#filter", "label=nothing")
    page.press("#filter", "Enter")
    playwright.expect(page.locator("#status")).to_contain_text("No match")
    page.fill("#filter", "nonsense")
    page.press("#filter", "Enter")
    playwright.expect(page.get_by_role("alert")).to_contain_text("is not FIELD=VALUE")
    playwright.expect(page.locator("#again")).to_be_hidden()  # asking again would not help
    accessible(page)
    page.fill("#filter", "")
    page.press("#filter", "Enter")
    results(page, 3)
    page.focus("#max")
    page.keyboard.press("Home")
    results(page, 1)  # the picture itself, at no distance
    playwright.expect(page.locator("#maxshown")).to_have_text("at most 0")
    page.keyboard.press("End")
    results(page, 3)
    playwright.expect(page.locator("#max")).to_have_attribute("aria-valuetext", "any")
    page.check("#dedup")
    results(page, 3)
    page.click("#clear")
    playwright.expect(page.locator("#go")).to_be_disabled()
    playwright.expect(page.locator("#results .rank")).to_have_count(0)


@both
def test_mirrored_ones_too(page, site):
    """A picture and its mirror image: the checkbox makes the one find the other."""
    options(page)
    with Image.open(site[1][0]) as image:
        buffer = io.BytesIO()
        ImageOps.mirror(image).save(buffer, "PNG")
    page.set_input_files("#file", {"name": "mirrored.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    before = results(page, 12).first.get_attribute("aria-label")
    box = page.get_by_role("checkbox", name="Mirrored ones too")
    box.check()
    playwright.expect(results(page, 12).first).not_to_have_attribute("aria-label", before)
    playwright.expect(page.locator("#results .open").first).to_have_attribute("title", str(site[1][0]))
    accessible(page)
    page.locator("#results .open").nth(1).click()  # of an item, it goes as JSON
    results(page, 12)
    with page.expect_request("**/v1/search*") as sent:
        box.uncheck()
    assert "flip" not in sent.value.post_data_json
    results(page, 12)
    with page.expect_request("**/v1/search*") as sent:
        box.focus()
        page.keyboard.press("Space")
    assert sent.value.post_data_json["flip"] is True
    results(page, 12)
    page.click("#clear")
    playwright.expect(box).not_to_be_checked()


@both
def test_more_like_these_not_those(page, site):
    page.locator("#results .open").nth(3).click()
    results(page, 12)
    before = page.locator("#results .small:last-child").all_inner_texts()
    with page.expect_request("**/v1/search*") as sent:
        page.get_by_role("button", name="More like match 4:").click()
    assert len(sent.value.post_data_json["plus"]) == 1
    results(page, 12)
    with page.expect_request("**/v1/search*") as sent:
        page.get_by_role("button", name="Less like match 9:").click()
    assert len(sent.value.post_data_json["minus"]) == 1
    results(page, 12)
    playwright.expect(page.locator("#results .small:last-child")).not_to_have_text(before)
    playwright.expect(page.locator("#liked button")).to_have_count(2)
    playwright.expect(page.locator("#liked img")).to_have_count(2)
    accessible(page)
    page.get_by_role("button", name=re.compile("^Remove: more like")).click()
    playwright.expect(page.locator("#liked button")).to_have_count(1)
    page.click("#forget")
    playwright.expect(page.locator("#likedfield")).to_be_hidden()
    results(page, 12)
    playwright.expect(page.locator("#results .small:last-child")).to_have_text(before)
    page.set_input_files("#file", site[1][0])  # a form carries them as well
    results(page, 12)
    page.get_by_role("button", name="Less like match 2:").click()
    results(page, 12)


def test_several_indexes(page, site):
    options(page)
    page.set_input_files("#file", site[1][-1])
    results(page, 12)
    page.fill("#k", "100")
    page.press("#k", "Enter")
    results(page, 60)
    page.select_option("#index", "some")
    results(page, 20)
    page.locator("#results .open").first.click()
    results(page, 19)
    page.select_option("#index", "all")  # an item of one index is none of another
    playwright.expect(page.locator("#go")).to_be_disabled()
    playwright.expect(page.locator("#results li")).to_have_count(18)


def test_keyboard_alone(browser, site):
    page = visit(browser, site[0])
    playwright.expect(page.locator("#results img")).to_have_count(18)
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", f"{seen[-1]} does not show that it has the focus"
        if seen[-1] == "open":
            break
    assert "choose" in seen
    assert seen[-1] == "open"
    page.keyboard.press("Enter")
    results(page, 12)
    page.get_by_role("button", name="More like match 2:").focus()
    page.keyboard.press("Space")
    playwright.expect(page.locator("#liked button")).to_have_count(1)
    results(page, 12)
    assert page.complaints == []
    page.close()


def test_a_busy_service(page, site):
    answers = [429, 429]

    def busy(route):
        if answers:
            error = '{"error": {"code": "too_many_requests", "message": "too many searches at once"}}'
            route.fulfill(
                status=answers.pop(), headers={"retry-after": "1"}, content_type="application/json", body=error
            )
        else:
            route.continue_()

    page.route("**/v1/search*", busy)
    page.set_input_files("#file", site[1][0])
    playwright.expect(page.locator("#status")).to_contain_text("busy; trying again in 1 s")
    results(page, 12)
    assert answers == []
    answers += [429] * 4
    page.click("#go")
    playwright.expect(page.get_by_role("alert")).to_contain_text("The service is busy", timeout=15_000)
    page.click("#again")
    results(page, 12)


def test_errors_of_the_service(page, site):
    answers = [503]

    def failing(route):
        if answers and answers[0] == 0:
            answers.pop()
            route.abort()
        elif answers:
            error = '{"error": {"code": "timeout", "message": "no answer within 30 s"}}'
            route.fulfill(status=answers.pop(), content_type="application/json", body=error)
        else:
            route.continue_()

    page.route("**/v1/search*", failing)
    page.set_input_files("#file", site[1][0])
    alert = page.get_by_role("alert")
    playwright.expect(alert).to_contain_text("No answer within 30 s.")
    playwright.expect(page.locator("#results li")).to_have_count(0)
    page.click("#again")
    results(page, 12)
    playwright.expect(alert).to_be_hidden()
    answers.append(0)
    page.click("#go")
    playwright.expect(alert).to_contain_text("The service cannot be reached.")
    page.set_input_files("#file", {"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG nothing"})
    playwright.expect(alert).to_contain_text(re.compile("Not an image|cannot be decoded", re.IGNORECASE))
    playwright.expect(page.locator("#stage")).to_be_hidden()  # nor can the browser show it


def test_the_key(browser, drawn, site):
    with process("-i", drawn / "some", "--api-key", "sesame-of-the-page") as (_, url, log):
        page = visit(browser, url)
        alert = page.get_by_role("alert")
        playwright.expect(alert).to_contain_text("needs an API key")
        playwright.expect(page.locator("#key")).to_be_focused()
        accessible(page)
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        playwright.expect(alert).to_contain_text("not valid")
        page.fill("#key", "sesame-of-the-page")
        page.press("#key", "Enter")
        playwright.expect(page.locator("#results img")).to_have_count(18)
        playwright.expect(alert).to_be_hidden()
        page.set_input_files("#file", site[1][0])
        results(page, 12)
        playwright.expect(page.locator("#results img")).to_have_count(12)
        page.reload()  # the tab remembers it
        playwright.expect(page.locator("#results img")).to_have_count(18)
        page.close()
    assert not [line for line in log if "sesame" in line]


def test_the_reference_page(browser, site):
    page = visit(browser, site[0] + "docs/plain")
    playwright.expect(page.locator("h2").first).to_be_visible()
    accessible(page)
    assert page.complaints == []
    page.close()


def test_swagger_ui_works_by_itself(browser, site):
    pytest.importorskip("fastapi_offline", reason="the [serve] extra is not whole")
    page = visit(browser, site[0] + "docs")
    playwright.expect(page.locator(".opblock")).not_to_have_count(0)
    page.click(".opblock-summary-path a:text('/health'), .opblock-summary:has-text('/health') button >> nth=0")
    page.click("button:text('Try it out')")
    page.click("button:text('Execute')")
    playwright.expect(page.locator(".live-responses-table tbody .response-col_status").first).to_contain_text("200")
    page.get_by_text("The same as a plain page").click()
    playwright.expect(page.locator("h1")).to_contain_text("simsearch")
    page.get_by_text("openapi.json").click()
    assert page.complaints == []
    assert all(url.startswith((site[0], "data:")) for url in page.asked)
    page.close()
