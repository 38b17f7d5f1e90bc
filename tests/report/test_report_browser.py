"""The page of `metabin report` in a real browser: installed Chromium, driven by Playwright."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from tiny_run import draw_folder, pixel_nets, tiny_config

pytest.importorskip("jinja2", reason="the report is a jinja2 template")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")
QUIET = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 800}
HOSTILE = "<img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The page of a real run on two domains, one of them with a hostile name."""
    from metabin_jax.report import write_report
    from metabin_jax.training.train import train

    root = tmp_path_factory.mktemp("browser")
    config = tiny_config(draw_folder(root / "data", domains=("east", "north", "south", "west", HOSTILE)))
    config.data.eval_domains = ("west", HOSTILE)
    with pixel_nets():
        train(config, root / "run")
        return write_report(config, root / "run", root / "report.html")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=BROWSER, args=[*QUIET, *["--no-sandbox"] * (os.geteuid() == 0)]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, page_file):
    """Opens the page; whatever it asks for or complains of afterwards fails the test."""
    contexts, complaints, requests = [], [], []

    def open_page(viewport=DESKTOP, file=page_file, **settings):
        contexts.append(browser.new_context(viewport=viewport, **settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()] * len(contexts)


def background(page):
    red, *_ = map(int, page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"))
    return "light" if red > 128 else "dark"


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_the_theme_follows_the_system_and_the_button(opened, scheme, other):
    page = opened(color_scheme=scheme)
    assert background(page) == scheme
    button = page.get_by_role("button", name=f"{other} theme")
    button.click()
    assert background(page) == other
    page.get_by_role("button", name=f"{scheme} theme").click()
    assert background(page) == scheme
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_nothing_is_wider_than_a_phone(opened):
    page = opened(PHONE)
    for _ in range(2):
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"]
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    # The lists scroll by themselves, and the measurement can fail.
    page.evaluate("document.querySelector('.scroll').style.overflowX = 'visible'")
    assert page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]


def test_what_is_cut_off_fades_until_the_end(opened):
    """The table of rho opens by its fold and keeps the names of its layers; the fade then lies beside the last one."""
    page = opened(PHONE)
    table, ranked = (page.get_by_role("region", name=name) for name in ("rho per layer, table", "Random 1"))
    assert not table.is_visible()
    page.get_by_text("Share of each layer's channels").click()
    for region in (table, ranked.first):
        fade, before, after = region.evaluate(
            """e => {
              const fade = parseFloat(getComputedStyle(e, '::after').width);
              const last = [...e.querySelectorAll('li, td')].at(-1);
              const room = () => e.getBoundingClientRect().right - last.getBoundingClientRect().right;
              const before = room();
              e.scrollLeft = e.scrollWidth;
              return [fade, before, room()];
            }"""
        )
        assert fade > 30 and before < 0 and after >= fade - 0.1
    name, region = (where.bounding_box() for where in (table.get_by_role("rowheader").first, table))
    assert name["x"] == region["x"]


def test_a_section_opens_by_click_and_by_its_link(opened):
    page = opened()
    field = page.get_by_role("rowheader", name="optimizer.alpha")
    assert not field.is_visible()
    page.get_by_role("heading", name="Config").click()
    assert field.is_visible()
    git = page.get_by_role("rowheader", name="python")
    assert not git.is_visible()
    page.get_by_role("link", name="Environment").click()
    assert git.is_visible()


def test_the_keyboard_reaches_everything(opened):
    page = opened(PHONE)
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the results")
    assert skip.evaluate("e => e === document.activeElement && e.getBoundingClientRect().top >= 0")
    reached, invisible = [], []
    for _ in range(100):
        page.keyboard.press("Tab")
        kind, outline = page.evaluate(
            "(e => [e.id || e.className || e.tagName, getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        if kind == "BODY":
            break
        reached.append(kind)
        invisible += [kind] * (outline == "none")
        if kind == "scroll" and reached.count("scroll") == 1:
            page.keyboard.press("ArrowRight")
            sync_api.expect(page.locator(".scroll").first).not_to_have_js_property("scrollLeft", 0)
    assert reached[0] == "theme"
    assert {"A", "SUMMARY", "scroll"} <= set(reached)
    assert reached.count("scroll") == 8  # the random queries of two domains: the other groups and rho are closed
    assert invisible == []
    skip.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_images_have_a_text_and_names_stay_text(opened):
    page = opened()
    assert page.title() == "run: run report"
    images = page.evaluate("[...document.images].map(i => [i.alt, i.naturalWidth, i.src.slice(0, 22)])")
    assert len(images) > 100
    assert {(width, start) for _, width, start in images} == {(32, "data:image/jpeg;base64")}
    assert all("identity" in alt and "camera" in alt for alt, _, _ in images)
    assert page.get_by_role("heading", name=f"Domain {HOSTILE}").is_visible()
    unnamed = page.evaluate("[...document.querySelectorAll('main svg[role=img]')].filter(s => !s.ariaLabel).length")
    assert unnamed == 0


def test_the_text_can_be_read(opened):
    """WCAG's contrast of 4.5, in both themes, between the text's colours and what is behind them."""
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        pairs = page.evaluate(
            """[...document.querySelectorAll('p, a, td, th, b, button, figcaption, svg text, small, .share')].map(e => {
              const style = getComputedStyle(e), svg = e.closest('svg');
              const panel = getComputedStyle(e.closest('button, .share') || svg || document.body);
              return JSON.stringify([svg ? style.fill : style.color, panel.backgroundColor]);
            })"""
        )
        assert len(set(pairs)) > 5
        for pair in sorted(set(pairs)):
            text, behind = (luminance(colour) for colour in json.loads(pair))
            light, dark = max(text, behind), min(text, behind)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


def luminance(colour):
    mixed = colour.startswith("color(srgb ")  # what color-mix gives
    red_green_blue = np.array([float(part) for part in re.findall("[0-9.]+", colour)]) / (1 if mixed else 255)
    linear = np.where(red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]
