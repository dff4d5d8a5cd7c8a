"""The page in Chromium against a server process: it shows the answers of the API."""

from __future__ import annotations

import re
import shutil
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from serve_load import ADMIN, start_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install --no-install-recommends chromium"
)
FLAGS = [
    "--no-sandbox",  # The sandbox is not available to root or in containers.
    "--disable-gpu",
    "--disable-dev-shm-usage",  # Shared memory is small in containers.
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=15_000)
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


@pytest.fixture(scope="module")
def address(runs):
    """A server of both runs without keys; one title is hostile."""
    with start_server(str(runs.films), str(runs.by_user)) as (_, address):
        item = {"title": HOSTILE, "attributes": {"genres": ["<b>Drama</b>"], "year": 1994}}
        answer = httpx.put(f"{address}/v1/items/104", json=item, headers={"x-api-key": ADMIN})
        assert answer.status_code == 200, answer.text
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Watch:
    """Requests and errors of a page."""

    def __init__(self, page: Page) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)

    def _console(self, message) -> None:
        # The browser reports each answer of 4xx, even if the page handles it.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.errors.append(message.text)


@pytest.fixture
def page(browser):
    """A page that calls its own server only and writes nothing to the console."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    watch = Watch(page)
    yield page
    here = urlsplit(page.url).netloc
    assert {urlsplit(url).netloc for url in watch.requests} == {here}
    assert watch.errors == []
    context.close()


def fragment_of(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).fragment)


def titles(page: Page, panel: str = "A") -> list[str]:
    shown = page.locator(f".panel.{panel} .rows .title")
    expect(shown.first).to_be_visible()
    expect(page.locator(f".panel.{panel}")).to_have_attribute("aria-busy", "false")
    return [re.sub(r" #\d+$", "", text) for text in shown.all_inner_texts()]


def recommend(address: str, **body) -> list[dict]:
    answer = httpx.post(f"{address}/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def names(items: list[dict]) -> list[str]:
    return [item["title"] or f"Item {item['item']}" for item in items]


def choose(page: Page, words: str, name: str) -> None:
    page.get_by_role("combobox", name="Add an item").fill(words)
    page.locator("#matches").get_by_role("option", name=name).first.click()


def test_history_is_built_by_clicks(page, address):
    page.goto(address)
    expect(page.get_by_text("Add items to the history, or choose a user.")).to_be_visible()
    popular = httpx.get(f"{address}/v1/items", params={"limit": 12}).json()["items"]
    expect(page.locator(".offers button")).to_have_text(names(popular))
    choose(page, "11th film", "The 11th Film")
    assert titles(page) == names(recommend(address, history=[111]))
    assert fragment_of(page) == {"item": ["111"]}
    first = page.locator(".rows li").first
    added = first.get_attribute("data-item")
    first.get_by_role("button", name="Add").click()
    expect(page.locator("ol.history li")).to_have_count(2)
    both = recommend(address, history=[111, added])
    expect(page.locator(".rows .title").first).to_contain_text(names(both)[0])
    assert titles(page) == names(both)
    assert fragment_of(page) == {"item": ["111", added]}
    numbers = page.locator(".rows li").first.locator("dd").all_inner_texts()
    assert numbers[0] == f"{both[0]['score']:.2f}"
    assert float(numbers[1].removesuffix(" %")) == pytest.approx(
        100 * both[0]["probability"], rel=0.06
    )
    assert numbers[2] == str(both[0]["popularity"])
    # The address restores the query; the back button returns to the one before.
    page.reload()
    assert titles(page) == names(both)
    expect(page.locator("ol.history li").first).to_contain_text("The 11th Film")
    page.go_back()
    expect(page.locator("ol.history li")).to_have_count(1)
    page.go_forward()
    page.get_by_role("button", name="Remove The 11th Film").click()
    expect(page.locator("ol.history li")).to_have_count(1)
    assert fragment_of(page) == {"item": [added]}
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("The history is empty.")).to_be_visible()
    assert fragment_of(page) == {}


def test_number_of_items_and_seen_items(page, address):
    page.goto(f"{address}/#item=111&item=112")
    expect(page.locator(".rows > li")).not_to_have_count(0)
    page.get_by_label("Number of items").fill("3")
    page.get_by_label("Number of items").press("Enter")
    expect(page.locator(".rows > li")).to_have_count(3)
    page.get_by_label("Number of items").fill("30")
    page.get_by_label("Leave out seen items").uncheck()
    expect(page.locator(".rows > li")).to_have_count(30)
    every = names(recommend(address, history=[111, 112], k=30, filter_seen=False))
    assert titles(page) == every
    assert "The 11th Film" in every
    assert fragment_of(page) == {"item": ["111", "112"], "k": ["30"], "seen": ["shown"]}


def test_two_models_side_by_side(page, address):
    page.goto(address)
    choose(page, "u3", "User u3")
    expect(page.locator("#history")).to_contain_text("User u3, 8 interactions")
    page.get_by_label("Compare with").select_option("by-user")
    ours, theirs = titles(page, "A"), titles(page, "B")
    deep = {
        model: names(recommend(address, user="u3", model=model, k=100))
        for model in ("films", "by-user")
    }
    assert ours == deep["films"][:10]
    assert theirs == deep["by-user"][:10]
    shared = set(ours) & set(theirs)
    steps = sorted(abs(ours.index(title) - theirs.index(title)) for title in shared)
    overlap = page.locator("#overlap").inner_text()
    alone = 10 - len(shared)
    assert overlap.startswith(
        f"{len(shared)} in both lists, {alone} only in A, {alone} only in B "
        f"(Jaccard {len(shared) / (20 - len(shared)):.2f})"
    )
    middle = (steps[(len(steps) - 1) // 2] + steps[len(steps) // 2]) / 2
    assert f"median rank difference of the shared items: {middle:g}" in overlap
    for panel, rival, own in (("A", "by-user", "films"), ("B", "films", "by-user")):
        letter = "B" if panel == "A" else "A"
        texts = page.locator(f".panel.{panel} .versus").all_text_contents()
        for rank, (title, text) in enumerate(zip(deep[own][:10], texts, strict=True), 1):
            theirs_rank = deep[rival].index(title) + 1
            step = rank - theirs_rank
            words = f"{step} higher" if step > 0 else f"{-step} lower" if step else "the same"
            assert text.startswith(f"rank of {letter}: {theirs_rank} ")
            assert text.endswith(f", {words}")
    # The user's history can be edited; the second model then shows its error.
    page.get_by_role("button", name="Use as a history").click()
    expect(page.locator("ol.history li")).to_have_count(8)
    alert = page.locator(".panel.B").get_by_role("alert")
    expect(alert).to_contain_text("only supports users of its training data; name a user")
    expect(page.locator(".panel.A .rows li").first).to_be_visible()


def test_errors_are_shown_and_removed(page, address):
    page.goto(f"{address}/#item=111&item=999")
    alert = page.locator("#panels").get_by_role("alert")
    expect(alert).to_contain_text("No item '999' in model 'films'.")
    expect(alert).to_contain_text("unknown_item in history.1")
    expect(page.locator("ol.history li.missing")).to_contain_text("is not in this model")
    page.get_by_role("button", name="Remove Item 999").click()
    expect(alert).to_have_count(0)
    assert titles(page) == names(recommend(address, history=[111]))
    page.route("**/v1/recommend", lambda route: route.abort())
    page.get_by_label("Number of items").fill("4")
    page.get_by_label("Number of items").press("Enter")
    expect(alert).to_contain_text("The server does not respond: check that it is running.")
    page.unroute("**/v1/recommend")
    busy = {"error": {"code": "overloaded", "message": "9 queries are waiting", "field": None}}
    page.route(
        "**/v1/recommend",
        lambda route: route.fulfill(status=503, json=busy, headers={"retry-after": "2"}),
    )
    alert.get_by_role("button", name="Try again").click()
    expect(alert).to_contain_text("9 queries are waiting. Try again in 2 seconds.")
    page.unroute("**/v1/recommend")
    alert.get_by_role("button", name="Try again").click()
    expect(page.locator(".rows > li")).to_have_count(4)
    page.goto(f"{address}/#user=u3&model=gone")
    expect(page.locator("#notice").get_by_role("alert")).to_contain_text("no model gone")
    assert titles(page) == names(recommend(address, user="u3"))


def test_popular_items_are_offered_for_an_unknown_user(page, address):
    body = {"user": "stranger", "fallback": "popular", "k": 3}
    answer = httpx.post(f"{address}/v1/recommend", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    expected = answer.json()["items"]
    page.goto(f"{address}/#user=stranger&k=3")
    panel = page.locator("#panels")
    expect(panel.locator(".alert")).to_contain_text("unknown_user")
    panel.get_by_role("button", name="Popular items", exact=True).click()
    expect(panel).to_contain_text("popular items, not chosen by the model")
    expect(shown := panel.locator("ol.rows > li")).to_have_count(3)
    found = [shown.nth(n).get_attribute("data-item") for n in range(3)]
    assert found == [str(item["item"]) for item in expected]
    assert "fallback=popular" in page.url
    page.reload()
    expect(panel.locator(".facts")).to_contain_text("not chosen by the model")


def test_keyboard_only(page, address):
    page.goto(address)
    expect(page.get_by_role("combobox", name="Add an item")).to_be_enabled()
    press = page.keyboard.press
    focused = page.locator(":focus")
    press("Tab")
    expect(focused).to_have_text("Skip to the recommendations")
    press("Enter")
    expect(focused).to_have_id("results")
    page.reload()
    search = page.get_by_role("combobox", name="Add an item")
    expect(search).to_be_enabled()
    for _ in range(10):
        press("Tab")
        if search.evaluate("element => element === document.activeElement"):
            break
    page.keyboard.insert_text("1 film")
    expect(page.locator("#matches [role=option]").first).to_be_visible()
    press("ArrowUp")
    press("ArrowDown")
    press("ArrowDown")
    active = page.locator('[role="option"][aria-selected="true"]')
    expect(active).to_have_count(1)
    assert search.get_attribute("aria-activedescendant") == active.get_attribute("id")
    name = active.locator(".label").inner_text()
    press("Escape")
    expect(page.locator("#matches")).to_be_hidden()
    press("ArrowDown")
    expect(page.locator("#matches [role=option]").first).to_be_visible()
    press("ArrowDown")
    press("ArrowDown")
    press("Enter")
    expect(page.locator("ol.history li")).to_contain_text(name)
    expect(search).to_be_focused()
    first = page.locator(".rows li").first
    expect(first).to_be_visible()
    while not first.get_by_role("button", name="Add").evaluate(
        "element => element === document.activeElement"
    ):
        press("Tab")
    assert focused.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    press("Enter")
    expect(page.locator("ol.history li")).to_have_count(2)
    # The row was removed: the focus is on the row at its position.
    expect(page.locator(".panel")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".rows li").first.get_by_role("button", name="Add")).to_be_focused()
    press("Tab")
    press("Enter")
    expect(page.get_by_role("dialog", name="Similar to")).to_be_visible()
    press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".rows li").first.get_by_role("button", name="Show")).to_be_focused()
    while not page.locator("#canvas").evaluate("element => element === document.activeElement"):
        press("Tab")
    press("ArrowRight")
    selected = page.locator("#selected strong")
    expect(selected).not_to_be_empty()
    before = selected.inner_text()
    press("ArrowLeft")
    press("ArrowUp")
    expect(selected).not_to_have_text(before)
    press("+")
    title = selected.inner_text()
    press("Enter")
    expect(page.locator("ol.history li").last).to_contain_text(title)


def test_map(page, address):
    page.goto(f"{address}/#item=111&user=")
    expect(page.locator("#map-facts")).to_contain_text("The 30 most popular items of films")
    page.locator("summary").click()
    table = page.get_by_role("region", name="Marked items")
    expect(table.locator("tbody tr")).to_have_count(11)
    items = {names([item])[0]: item for item in httpx.get(f"{address}/v1/map").json()["items"]}
    places = {title: (item["x"], item["y"]) for title, item in items.items()}
    row = table.get_by_role("row", name="The 11th Film in the history")
    cells = [float(cell) for cell in row.get_by_role("cell").all_inner_texts()[2:]]
    assert cells == pytest.approx(places["The 11th Film"], abs=6e-4)
    # The leftmost item lies at the left margin, the rightmost at the right one.
    box = page.locator("#canvas").bounding_box()
    for choice, x in ((min, 14), (max, box["width"] - 14)):
        title = choice(places, key=lambda title: places[title][0])
        ys = [place[1] for place in places.values()]
        share = (max(ys) - places[title][1]) / (max(ys) - min(ys))
        y = 14 + share * (box["height"] - 28)
        page.locator("#canvas").hover(position={"x": x, "y": y})
        expect(page.locator("#tip")).to_contain_text(title)
        tip = page.locator("#tip").bounding_box()
        assert tip["width"] > 2 * tip["height"]  # one line of text
        assert box["x"] <= tip["x"] <= box["x"] + box["width"] - tip["width"]
    page.locator("#canvas").click(position={"x": x, "y": y})
    page.locator("#selected").get_by_role("button", name="Similar").click()
    dialog = page.get_by_role("dialog", name=f"Similar to {title}")
    body = {"item": items[title]["item"], "k": 10}
    near = httpx.post(f"{address}/v1/similar", json=body).json()["items"]
    expect(dialog.locator(".title")).to_have_count(10)
    assert [t.split(" #")[0] for t in dialog.locator(".title").all_inner_texts()] == names(near)
    dialog.get_by_role("button", name="Add").first.click()
    expect(page.locator("ol.history li")).to_have_count(2)


def test_map_label_ends_with_the_list_under_the_pointer(page, address):
    page.goto(f"{address}/#item=111&user=")
    expect(page.locator("#map-facts")).to_contain_text("The 30 most popular items of films")
    page.locator(".rows li").first.hover()
    expect(page.locator("#tip")).to_be_visible()
    page.get_by_role("button", name="Clear").evaluate("button => button.click()")
    expect(page.locator(".rows li")).to_have_count(0)
    expect(page.locator("#tip")).to_be_hidden()


def test_text_of_the_data_is_never_html(page, address):
    page.goto(f"{address}/#item=104&item=111&seen=shown&k=30")
    expect(page.locator("ol.history li").first).to_contain_text(HOSTILE)
    row = page.locator('.rows li[data-item="104"]')
    expect(row.locator(".title")).to_contain_text(HOSTILE)
    expect(row.locator(".chips li").first).to_have_text("<b>Drama</b>")
    page.get_by_role("combobox", name="Add an item").fill("onerror")
    expect(page.locator("#matches [role=option]").first).to_contain_text(HOSTILE)
    page.get_by_role("combobox", name="Add an item").press("Escape")
    row.get_by_role("button", name="Show items").click()
    expect(page.get_by_role("dialog", name="Similar to")).to_contain_text(HOSTILE)
    assert page.locator("main img, main script, dialog img, dialog script").count() == 0
    assert page.title() == "candid"


def test_browser_refuses_to_turn_text_into_html(browser, address):
    policy = httpx.get(address).headers["content-security-policy"]
    assert "unsafe" not in policy
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        name = page.evaluate(
            "() => { try { document.body.innerHTML = 'x' } catch (error) { return error.name } }"
        )
        assert name == "TypeError"


@pytest.mark.parametrize("fragment", ["", "#item=104&item=111&compare=by-user", "#user=u3"])
def test_narrow_screen_has_no_horizontal_scroll(page, address, fragment):
    page.set_viewport_size({"width": 320, "height": 640})
    page.goto(f"{address}/{fragment}")
    expect(page.locator("#map-facts")).not_to_be_empty()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    if "user" in fragment:
        titles(page)
        page.locator(".rows li").first.get_by_role("button", name="Show").click()
        expect(page.get_by_role("dialog").locator(".rows li").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        dialog = page.get_by_role("dialog")
        assert dialog.evaluate("element => element.scrollWidth - element.clientWidth") <= 0


CONTRASTS = """() => {
  const rgba = (text) => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const v = c[i] / 255;
    return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }, 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return rgba(getComputedStyle(document.body).backgroundColor);
  };
  const poor = [];
  let looked = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, noscript, option, .hidden-text")) continue;
    looked += 1;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push([walker.currentNode.data.trim(), ratio]);
  }
  return [looked, poor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_motion(page, address, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(f"{address}/#item=104&item=111&compare=by-user")
    titles(page)
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator("#map-facts")).not_to_be_empty()
    page.get_by_role("combobox", name="Add an item").fill("film")
    expect(page.locator("#matches [role=option]").first).to_be_visible()
    page.keyboard.press("ArrowDown")
    looked, poor = page.evaluate(CONTRASTS)
    assert looked > 60
    assert poor == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) > 128) == (scheme == "light")
    durations = page.locator("button, .panel").evaluate_all(
        "all => all.map((element) => getComputedStyle(element).transitionDuration)"
    )
    assert set(durations) == {"0s"}


def test_key_is_prompted_for_and_stored_with_the_tab(page, server):
    address = server[1]
    page.goto(f"{address}/#user=u3")
    dialog = page.get_by_role("dialog", name="This server needs a key")
    expect(dialog).to_contain_text("this server needs a key")
    page.keyboard.type("another key")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("the server does not accept this key")
    page.get_by_label("Key", exact=True).fill("a key to read")
    dialog.get_by_role("button", name="Submit").click()
    assert len(titles(page)) == 10
    expect(dialog).to_be_hidden()
    page.reload()
    assert len(titles(page)) == 10
    expect(dialog).to_be_hidden()
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
    page.evaluate("sessionStorage.clear()")
    page.reload()
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.locator("#panels").get_by_role("alert")).to_contain_text("This server needs a key")


def test_ids_beyond_the_precision_of_javascript(page, address):
    far = {"item": 9007199254740993, "title": "Far", "popularity": 1, "attributes": {}}
    matches = {"model": "films", "items": [far]}
    page.route("**/v1/items?*", lambda route: route.fulfill(json=matches))
    page.goto(address)
    choose(page, "far", "Far")
    assert fragment_of(page) == {"item": ["9007199254740993"]}
    expect(page.locator("#panels").get_by_role("alert")).to_contain_text("'9007199254740993'")
