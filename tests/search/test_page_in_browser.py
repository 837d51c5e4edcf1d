"""The page in a browser."""

import os
import time

import numpy as np
import pytest
from chromium import Chromium
from chromium import find_chromium
from PIL import Image

for needed in ("starlette", "httpx", "uvicorn"):
    pytest.importorskip(needed)

from page_server import find


@pytest.fixture(scope="module")
def browser(site, tmp_path_factory):
    if find_chromium() is None:
        missing = "There is no chromium: apt-get install chromium"
        if os.environ.get("ALIGN_REQUIRE_CHROMIUM") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def shown(browser):
    return browser.run(
        "[...document.querySelectorAll('.tile img')].map(i => i.src"
        ".split('/').pop()).join()"
    )


def test_type_drop_adjust(library, site, browser, tmp_path):
    browser.open(str(site.base_url))
    browser.wait("document.activeElement.id == 'query'")
    browser.type("a red bus")
    browser.wait("document.querySelectorAll('.tile').length == 30")
    captions = "[...document.querySelectorAll('.about span')]"
    captions = browser.run(f"{captions}.map(span => span.textContent)")
    assert library.caption in captions
    words = [r["row"] for r in find(site, {"text": "a red bus", "weight": 2})]
    assert shown(browser) == ",".join(map(str, words))

    browser.drop(library.images / "04.jpg")
    browser.wait("document.querySelectorAll('.part img').length == 1")
    browser.wait("document.querySelectorAll('#guesses li').length == 3")
    row = library.names.index("04.jpg")
    parts = [{"text": "a red bus", "weight": 2}, {"row": row, "weight": 1}]
    both = ",".join(str(r["row"]) for r in find(site, *parts))
    src = "[...document.querySelectorAll('.tile img')]"
    order = f"{src}.map(i => i.src.split('/').pop()).join()"
    browser.wait(f"{order} == '{both}'")

    # The slider of the image to the other end.
    browser.run(
        "(() => { const s = document.querySelector('.part input[type=range]');"
        " s.value = -3; s.dispatchEvent(new Event('input')); })()"
    )
    parts[1]["weight"] = -3
    away = ",".join(str(r["row"]) for r in find(site, *parts))
    assert away != both
    browser.wait(f"{order} == '{away}'")

    browser.press("ArrowDown")
    browser.run("document.querySelector('.tile').focus()")
    browser.press("ArrowRight")
    assert (
        browser.run(
            "[...document.querySelectorAll('.tile')]"
            ".indexOf(document.activeElement)"
        )
        == 1
    )
    browser.press("Enter")
    browser.wait("document.getElementById('detail').open")
    browser.press("Escape")
    browser.wait("!document.getElementById('detail').open")
    browser.press("/")
    assert browser.run("document.activeElement.id") == "query"
    browser.screenshot(tmp_path / "page.png")
    photo = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert len(np.unique(photo.reshape(-1, 3), axis=0)) > 1000
    assert browser.errors == []


def test_phone_and_dark(site, browser):
    browser.resize(390, 844, phone=True)
    browser.scheme("dark")
    browser.open(str(site.base_url))
    browser.run("document.getElementById('query').focus()")
    browser.type("a dog")
    browser.wait("document.querySelectorAll('.tile').length == 30")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    # With a further part the words have a slider, which must leave room.
    browser.run("document.querySelector('.tile').click()")
    browser.run("document.getElementById('more').click()")
    browser.wait("document.querySelectorAll('.part img').length == 1")
    width = "document.getElementById('query').offsetWidth"
    assert browser.run(width) >= 200
    assert browser.run("document.documentElement.scrollWidth") <= 390
    color = browser.run("getComputedStyle(document.body).backgroundColor")
    assert color == "rgb(20, 22, 26)"
    assert browser.errors == []


SLOW_INDEX = """
(() => {
  const real = fetch;
  window.fetch = async (path, options) => {
    if (path === "/api/index")
      await new Promise((answer) => { window.answerIndex = answer; });
    return real(path, options);
  };
})()
"""


def test_what_is_typed_before_the_server_answers_stays(site, browser):
    browser.resize(1280, 900)
    script = "Page.addScriptToEvaluateOnNewDocument"
    script = browser.call(script, source=SLOW_INDEX)
    try:
        browser.open("about:blank")
        browser.open(f"{site.base_url}#row=1+3")
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", **script)
    browser.run("$('query').focus()")
    browser.type("a dog")
    browser.run("addWords(-2)")
    browser.type("night")
    browser.run("$('names').value = 'a dog, a cat'")
    browser.run("answerIndex()")
    browser.wait("limits.count == 30")
    browser.wait("document.querySelectorAll('#guesses li').length == 2")
    assert browser.run("$('query').value") == "a dog"
    assert browser.run("document.activeElement.value") == "night"
    parts = [
        {"text": "a dog", "weight": 2},
        {"row": 3, "weight": 1},
        {"text": "night", "weight": -2},
    ]
    wanted = ",".join(str(result["row"]) for result in find(site, *parts))
    src = "[...document.querySelectorAll('.tile img')]"
    browser.wait(f"{src}.map(i => i.src.split('/').pop()).join() == '{wanted}'")
    assert browser.errors == []


# Labels with the word "late" are answered late, and images are forgotten or
# refused as often as a test says.
FETCH = """
(() => {
  const real = fetch;
  window.uploads = window.forgotten = window.refused = 0;
  const no = (status) => new Response('{"error": "no"}', {status});
  window.fetch = async (path, options) => {
    if (path === "/api/image") {
      window.uploads++;
      if (refused-- > 0) return no(422);
    }
    if (path === "/api/labels") {
      if (forgotten-- > 0) return no(410);
      if (options.body.includes("late"))
        await new Promise((done) => setTimeout(done, 500));
    }
    return real(path, options);
  };
})()
"""


def test_labels_that_come_late_or_not_at_all(library, site, browser):
    browser.resize(1280, 900)
    browser.open(str(site.base_url))
    browser.wait("$('names').value != ''")
    browser.run(FETCH)
    # Uploaded again where it is forgotten.
    browser.run("forgotten = 1")
    browser.drop(library.images / "04.jpg")
    browser.wait("document.querySelectorAll('#guesses li').length == 3")
    assert browser.run("uploads") == 2

    # An answer to an earlier question does not replace a later one.
    browser.run("$('names').value = 'late'; guess(); 0")
    browser.run("$('names').value = 'soon'; guess()")
    time.sleep(1)
    assert "soon" in browser.run("$('guesses').textContent")

    browser.run("forgotten = refused = 1; guess()")
    browser.wait("$('status').textContent == 'no'")
    assert browser.errors == []


def rows(browser):
    return [int(row) for row in shown(browser).split(",") if row]


def test_a_search_is_in_the_address(library, site, browser):
    browser.resize(1280, 900)
    address = str(site.base_url)
    browser.open(address)
    browser.run("localStorage.clear()")
    browser.open(address)
    # Something to see, spread over the index, before anything is asked.
    browser.wait("document.querySelectorAll('.tile').length == 24")
    assert rows(browser) == [i * 30 // 24 for i in range(24)]
    assert browser.run("document.querySelector('.about b').textContent") == ""
    browser.run("document.querySelectorAll('.tile')[3].click()")
    browser.wait("document.getElementById('detail').open")
    browser.run("document.getElementById('more').click()")
    browser.wait("document.querySelectorAll('.tile').length == 30")
    browser.run("document.getElementById('query').focus()")
    browser.type("a red bus & more")
    browser.run("addWords(-2)")
    browser.type("night")
    parts = [
        {"text": "a red bus & more", "weight": 2},
        {"row": 3, "weight": 1},
        {"text": "night", "weight": -2},
    ]
    found = [r["row"] for r in find(site, *parts)]
    wanted = ",".join(map(str, found))
    src = "[...document.querySelectorAll('.tile img')]"
    order = f"{src}.map(i => i.src.split('/').pop()).join()"
    browser.wait(f"{order} == '{wanted}'")
    sent = browser.run("location.href")
    assert "#" in sent

    # Somebody else opens it.
    browser.open("about:blank")
    browser.open(sent)
    browser.wait(f"{order} == '{wanted}'")
    assert browser.run("location.href") == sent
    assert browser.run("document.getElementById('query').value") == (
        "a red bus & more"
    )

    # What stood for a while is offered again, and may be forgotten.
    browser.wait("localStorage.getItem('recent')")
    browser.run("$('query').value = ''; parts.splice(0); drawParts(); later(0)")
    browser.wait("!$('empty').hidden && !$('recent').hidden")
    words = browser.run("document.querySelector('.recent a').textContent")
    assert words == "a red bus & more + an image − night"
    browser.run("document.querySelector('.recent a').click()")
    browser.wait(f"{order} == '{wanted}'")
    browser.run("document.querySelector('.recent button').click()")
    assert browser.run("localStorage.getItem('recent')") is None
    assert browser.errors == []


def test_an_address_that_is_nonsense_is_left_alone(site, browser):
    address = str(site.base_url)
    browser.open("about:blank")
    browser.open(f"{address}#row=x+y&text=9e9e9+<b>&w=q&row=1+-3&text=1+a%00b")
    browser.wait("document.querySelectorAll('.tile').length > 0")
    assert browser.run("document.querySelectorAll('.part b').length") == 0
    assert browser.errors == []
