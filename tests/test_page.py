"""The page in headless Chromium, over its DevTools protocol: by keyboard, on a phone, and without any other host."""

import json

import numpy as np
import pytest
from chromium import CHROMIUM, Tab

from semid_lib import web
from semid_lib.recommender import Recommender

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is tested in a real browser only")


class PageTab(Tab):
    """A tab with the page of the service."""

    def titles(self) -> list[str]:
        return self.js("[...document.querySelectorAll('#cards h3')].map((title) => title.textContent)")

    def cards(self, words: str) -> list[str]:
        """Titles of the cards once the status line says so."""
        self.wait(f"document.querySelector('#status').textContent.includes({json.dumps(words)})")
        return self.titles()


@pytest.fixture
def tab(browser):
    opened = PageTab(browser)
    yield opened
    opened.send("Page.close")


@pytest.fixture
def url(recommender_to_serve, serve) -> str:
    return serve(web.create_app(recommender_to_serve))


def test_a_history_is_built_by_keyboard_and_answered_as_by_the_library(tab, url, recommender_to_serve, shop):
    ids, titles = shop.items["item_id"].tolist(), shop.items["title"].tolist()

    def expected(history, **more):
        found = recommender_to_serve.recommend([history], **more).item_ids[0].tolist()
        return [titles[ids.index(item_id)] for item_id in found if item_id >= 0]

    tab.open(url)
    assert tab.cards("10 items to start with") == expected([])
    for _ in range(20):
        tab.press("Tab")
        if tab.js("document.activeElement.id") == "title":
            break
    else:
        pytest.fail("Tab does not lead to the search for titles")
    tab.type("row 17")
    tab.wait("document.querySelectorAll('#suggestions button').length === 1")
    tab.press("ArrowDown")
    tab.press("Enter")
    assert tab.cards("10 items after a history of 1") == expected([ids[17]])
    assert tab.js("document.activeElement.id") == "title"  # ready for the next
    tab.type("row 2")
    tab.wait("document.querySelectorAll('#suggestions button').length === 8")
    tab.press("ArrowDown", 3)
    tab.press("ArrowUp", 2)
    tab.press("Enter")
    assert tab.cards("history of 2") == expected([ids[17], ids[2]])
    assert tab.js("document.querySelector('#history').innerText").split("\n")[0] == "item in row 17"
    tab.js("document.querySelector('#history button').focus()")
    tab.press(" ")
    assert tab.cards("history of 1") == expected([ids[2]])
    tab.choose("#category", "Clocks")
    clocks = expected([ids[2]], allowed=np.arange(40) % 4 == 0)
    tab.wait(f"document.querySelectorAll('#cards h3')[0].textContent === {json.dumps(clocks[0])}")
    assert tab.titles() == clocks
    tab.js("document.querySelector('#cards .hide').click()")
    tab.wait(f"document.querySelectorAll('#cards h3')[0].textContent === {json.dumps(clocks[1])}")
    assert clocks[0] not in tab.titles() and "1 item is hidden" in tab.js("document.body.innerText")
    tab.js("document.querySelector('#unhide').focus()")
    tab.press("Enter")
    tab.wait(f"document.querySelectorAll('#cards h3')[0].textContent === {json.dumps(clocks[0])}")
    assert tab.js("document.activeElement.id") == "results-heading"
    assert all(asked.startswith(url) for asked in tab.requests) and tab.complaints == []


def test_what_was_typed_before_is_not_suggested(tab, url):
    tab.open(url).cards("to start with")
    found = "document.querySelector('#found').textContent"
    tab.js("document.querySelector('#title').focus()")
    tab.type("row 17")
    tab.wait(f"{found} === '1 title'")
    tab.type("zzz")
    tab.press("Enter")  # at once: the list of "row 17" is gone, that of "row 17zzz" not yet here
    tab.wait(f"{found} === 'no title holds these words'")
    assert tab.js("document.querySelectorAll('#history li').length") == 0
    tab.js(
        "const now = fetch;"
        " fetch = (...all) => now(...all).then((one) => new Promise((go) => setTimeout(go, 300, one)))"
    )
    asked = len(tab.requests)
    tab.choose("#title", "row 3")
    tab.js("document.querySelector('#title').dispatchEvent(new Event('input'))")
    while len(tab.requests) == asked:
        tab.js("0")
    tab.press("Escape")  # while the answer is on its way
    tab.js("new Promise((go) => setTimeout(go, 600))")
    assert tab.js("document.querySelectorAll('#suggestions li').length") == 0 and tab.js(found) == ""


def test_an_error_leaves_no_answer_to_another_question(tab, url):
    tab.open(url).cards("to start with")
    tab.js("fetch = () => Promise.reject(new Error('the line is cut'))")
    tab.js("document.querySelector('#recommend').click()")
    assert tab.cards("the line is cut") == []


def test_a_second_start_and_half_an_item_do_no_harm(tab, url):
    tab.open(url).cards("10 items to start with")
    n_options = tab.js("document.querySelectorAll('#category option').length")
    tab.js("start()")
    assert tab.js("document.querySelectorAll('#category option').length") == n_options
    tab.choose("#k", "2.5")
    assert len(tab.cards("2 items to start with")) == 2
    tab.choose("#k", "1")
    assert len(tab.cards("1 item to start with")) == 1


def test_search_and_why(tab, url, shop):
    tab.open(url).cards("to start with")
    tab.js("document.querySelector('#query').focus()")
    tab.type("row 17")
    tab.press("Enter")
    assert tab.cards("for “row 17”")[0] == "item in row 17"
    tab.js("document.querySelector('#cards .add').click()")
    tab.cards("after a history of 1")
    tab.choose("#k", "39")
    tab.cards("39 items after")
    shared = [(shop.ids.unique[17] == code).cumprod().sum() for code in shop.ids.unique]
    marked = tab.js(
        "[...document.querySelectorAll('#cards .card')].map((card) =>"
        " [card.querySelector('h3').textContent, card.querySelectorAll('.code.prefix').length])"
    )
    for title, n_marked in marked:  # the shared prefix is coloured, or the first code alone
        assert n_marked == max(1, shared[shop.items["title"].tolist().index(title)])
    related = next(at for at, (title, _) in enumerate(marked) if shared[int(title.split()[-1])])
    tab.js(f"document.querySelectorAll('#cards summary')[{related}].focus()")
    tab.press("Enter")
    why = f"document.querySelectorAll('#cards .why')[{related}].innerText"
    tab.wait(f"{why}.includes('more under')")
    assert "begins with the same" in tab.js(why) and "item in row 17" in tab.js(why)
    tab.js(f"document.querySelectorAll('#cards .why')[{related}].querySelector('button').focus()")
    tab.press("Enter")
    tab.cards("after a history of 2")
    assert tab.js("document.activeElement.id") == "results-heading"
    assert tab.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # by keyboard it is seen
    assert all(asked.startswith(url) for asked in tab.requests) and tab.complaints == []


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(tab, recommender_to_serve, serve, width):
    recommender_to_serve.items.loc[0, "title"] = "Supercalifragilistic" * 9
    url = serve(web.create_app(recommender_to_serve))
    tab.open(url, width)
    tab.cards("to start with")
    tab.choose("#k", "40")
    tab.cards("40 items")
    tab.js("document.querySelectorAll('#cards .add')[0].click()")
    tab.cards("history of 1")
    assert tab.js("document.documentElement.scrollWidth") <= width
    small = tab.js(
        "[...document.querySelectorAll('button, select, input:not([type=checkbox])')]"
        ".filter((one) => one.offsetHeight && one.offsetHeight < 32).map((one) => one.textContent)"
    )
    assert small == []  # for a finger


def test_everything_has_a_name_and_news_are_spoken(tab, url):
    tab.open(url).cards("to start with")
    tab.js("document.querySelector('#cards .add').click()")
    tab.cards("history of 1")
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "searchbox", "combobox", "checkbox", "spinbutton", "link", "heading"}
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert len(controls) > 40
    assert [node["role"]["value"] for node in controls if not node["name"]["value"].strip()] == []
    assert tab.js("document.querySelector('#status').getAttribute('aria-live')") == "polite"
    assert tab.js("document.documentElement.lang") == "en"
    assert tab.js("[...document.querySelectorAll('main h1, h1')].length") == 1


def test_titles_are_text_and_never_code(tab, recommender_to_serve, serve):
    evil = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    recommender_to_serve.items["title"] = evil
    url = serve(web.create_app(recommender_to_serve))
    tab.open(url).cards("to start with")
    assert set(tab.titles()) == {evil}
    tab.js("document.querySelector('#cards .add').click()")
    tab.cards("history of 1")
    assert tab.js("document.title") == "Recommendations by semantic IDs"
    assert tab.js("document.querySelectorAll('img').length") == 0
    tab.js(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'document.title = 1' }))"
    )
    assert tab.js("document.title") == "Recommendations by semantic IDs"  # the policy forbids it


def test_a_token_is_asked_for_and_kept_for_the_tab(tab, recommender_to_serve, serve):
    url = serve(web.create_app(recommender_to_serve, token="sesame"))
    tab.open(url)
    tab.wait("document.activeElement.id === 'token'")
    tab.type("sesame")
    tab.press("Enter")
    assert len(tab.cards("10 items to start with")) == 10
    assert tab.js("document.querySelector('#token-form').hidden") is True


def test_a_catalogue_without_histories_has_search_alone(tab, recommender_to_serve, serve):
    both = recommender_to_serve
    tab.open(serve(web.create_app(Recommender(None, both.ids, both.items, both.searcher))))
    tab.wait("!document.querySelector('#search-form').hidden")
    assert tab.js("document.querySelector('#history-panel').hidden && document.querySelector('#seen-label').hidden")
    tab.js("document.querySelector('#query').focus()")
    tab.type("row 9")
    tab.press("Enter")
    assert tab.cards("for “row 9”")[0] == "item in row 9"
    assert tab.js("document.querySelector('#cards .add').hidden")


def test_the_documents_of_the_api_come_from_the_same_process(tab, url):
    tab.open(f"{url}/docs")
    tab.wait("document.body.innerText.includes('/predictions/{model}')")
    assert all(asked.startswith((url, "data:")) for asked in tab.requests)
