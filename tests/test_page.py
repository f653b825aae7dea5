"""The page in headless Chromium, over its DevTools protocol: by keyboard, on a phone, and without any other host."""

import importlib.util
import json
from pathlib import Path
from urllib.parse import parse_qs, urlencode

import numpy as np
import pytest
from chromium import CHROMIUM, Tab

from semid_lib.serving.http import web
from semid_lib.serving.recommender import Recommender

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is tested in a real browser only"),
]


TITLES = "[...document.querySelectorAll('#cards h3')].map((title) => title.textContent)"


class PageTab(Tab):
    """A tab with the page of the service."""

    def titles(self) -> list[str]:
        return self.js(TITLES)

    def cards(self, words: str) -> list[str]:
        """Titles of the cards once the status line says so."""
        self.wait(f"document.querySelector('#status').textContent.includes({json.dumps(words)})")
        return self.titles()


NOTE = "document.querySelector('#note').textContent"
FIRST_CARD = "document.querySelector('#cards .card').getBoundingClientRect()"


def with_items(recommender, items) -> Recommender:
    return Recommender(recommender.model, recommender.ids, items, recommender.searcher)


def search(tab, query: str) -> None:
    tab.js("document.querySelector('#query').focus(); document.querySelector('#query').select()")
    tab.type(query)
    tab.press("Enter")


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
    tab.expect("document.activeElement.id", "title")  # ready for the next
    tab.type("row 2")
    tab.wait("document.querySelectorAll('#suggestions button').length === 8")
    tab.press("ArrowDown", 3)
    tab.press("ArrowUp", 2)
    tab.press("Enter")
    assert tab.cards("history of 2") == expected([ids[17], ids[2]])
    tab.wait("document.querySelector('#history').innerText.startsWith('item in row 17')")
    tab.js("document.querySelector('#history button').focus()")
    tab.press(" ")
    assert tab.cards("history of 1") == expected([ids[2]])
    tab.choose("#category", "Clocks")
    clocks = expected([ids[2]], allowed=np.arange(40) % 4 == 0)
    tab.expect(TITLES, clocks)
    tab.js("document.querySelector('#cards .hide').click()")
    tab.wait(f"document.querySelectorAll('#cards h3')[0].textContent === {json.dumps(clocks[1])}")
    assert clocks[0] not in tab.titles() and "1 item is hidden" in tab.js("document.body.innerText")
    tab.js("document.querySelector('#unhide').focus()")
    tab.press("Enter")
    tab.wait(f"document.querySelectorAll('#cards h3')[0].textContent === {json.dumps(clocks[0])}")
    tab.expect("document.activeElement.id", "results-heading")
    assert all(asked.startswith(url) for asked in tab.requests) and tab.complaints == []


def test_what_was_typed_before_is_not_suggested(tab, url):
    tab.open(url).cards("to start with")
    found = "document.querySelector('#found').textContent"
    tab.js("document.querySelector('#title').focus()")
    tab.type("row 17")
    tab.wait(f"{found} === '1 item'")
    tab.type("zzz")
    tab.press("Enter")  # at once: the list of "row 17" is gone, that of "row 17zzz" not yet here
    tab.wait(f"{found}.startsWith('no title holds these words')")
    tab.expect("document.querySelectorAll('#history li').length", 0)


def test_an_error_leaves_no_answer_to_another_question(tab, url):
    tab.open(url).cards("to start with")
    tab.js("fetch = () => Promise.reject(new Error('the line is cut'))")
    tab.js("document.querySelector('#recommend').click()")
    assert tab.cards("the line is cut") == []


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
    tab.expect("document.activeElement.id", "results-heading")
    tab.expect("getComputedStyle(document.activeElement).outlineStyle", "solid")  # by keyboard it is seen
    assert all(asked.startswith(url) for asked in tab.requests) and tab.complaints == []


def test_texts_of_the_catalogue_and_of_the_address_are_never_code(tab, recommender_to_serve, serve):
    evil = "</option><img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    items = recommender_to_serve.items
    items = items.assign(title=evil, brand=evil, categories=[[[evil]]] * len(items))
    items["item_id"] = [f"{evil}{row}" for row in range(len(items))]
    url = serve(web.create_app(with_items(recommender_to_serve, items)))
    tab.open(url).cards("to start with")
    assert set(tab.titles()) == {evil}
    tab.js("document.querySelector('#cards .add').click()")
    tab.cards("history of 1")
    tab.js("document.querySelector('#cards summary').click()")
    tab.wait("document.querySelector('#cards .why').innerText.includes('more under')")
    asked = {"q": evil, "item": [evil, f"{evil}3"], "category": evil, "brand": evil, "k": evil}
    tab.open(f"{url}/?{urlencode(asked, doseq=True)}")
    tab.wait(f"{NOTE}.includes('no item with this ID: “</option>')")
    tab.cards("for “</option>")
    tab.expect("document.title", "Recommendations by semantic IDs")
    tab.expect("document.querySelectorAll('img').length", 0)
    tab.js(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'document.title = 1' }))"
    )
    tab.expect("document.title", "Recommendations by semantic IDs")  # the policy forbids it


def test_a_token_is_asked_for_and_kept_for_the_tab(tab, recommender_to_serve, serve):
    url = serve(web.create_app(recommender_to_serve, token="sesame"))
    tab.open(f"{url}/?q=row+9")
    tab.wait("document.activeElement.id === 'token'")
    facts = "document.querySelector('#facts').textContent"
    tab.expect(facts, "The service needs a token: enter it at the top of the page.")
    tab.type("oyster")
    tab.press("Enter")
    tab.wait(f"{facts} === 'The service does not accept this token: enter another at the top of the page.'")
    tab.js("document.querySelector('#token').select()")
    tab.type("sesame")
    tab.press("Enter")
    assert tab.cards("for “row 9”")[0] == "item in row 9"  # what the address asks
    tab.wait("document.querySelector('#token-form').hidden")


def test_a_catalogue_without_histories_has_search_alone(tab, recommender_to_serve, serve):
    both = recommender_to_serve
    tab.open(serve(web.create_app(Recommender(None, both.ids, both.items, both.searcher))))
    tab.wait("!document.querySelector('#search-form').hidden")
    tab.wait("document.querySelector('#history-panel').hidden && document.querySelector('#seen-label').hidden")
    tab.js("document.querySelector('#query').focus()")
    tab.type("row 9")
    tab.press("Enter")
    assert tab.cards("for “row 9”")[0] == "item in row 9"
    tab.wait("document.querySelector('#cards .add').hidden")
    tab.js("history.back()")
    tab.wait("document.querySelectorAll('#cards li').length === 0 && document.querySelector('#query').value === ''")


# --- the address ---


def test_an_address_brings_back_history_query_and_filters(tab, url, shop):
    ids = [str(item_id) for item_id in shop.items["item_id"]]
    tab.open(url).cards("to start with")
    for n in (1, 2):
        tab.js("document.querySelector('#cards .add').click()")
        tab.cards(f"history of {n}")
    tab.js("document.querySelector('#cards .hide').click()")
    tab.choose("#category", "Home")
    tab.choose("#brand", "Ash")
    tab.choose("#k", "4")
    tab.js("document.querySelector('#exclude-seen').click()")
    search(tab, "item row 8")
    shown = tab.cards("4 items for “item row 8”")
    parts = parse_qs(tab.js("location.search.slice(1)"))
    assert parts.pop("hide")[0] in ids and len(parts["item"]) == 2 and set(parts.pop("item")) <= set(ids)
    expected = {"q": ["item row 8"], "category": ["Home"], "brand": ["Ash"], "k": ["4"], "repeats": ["yes"]}
    assert parts == expected  # readable
    fields = (
        "[...['query', 'category', 'brand', 'k'].map((id) => document.getElementById(id).value),"
        " document.querySelector('#exclude-seen').checked, document.querySelectorAll('#history li').length,"
        " document.querySelector('#hidden-items').innerText.split('.')[0]]"
    )
    before = tab.js(fields)
    tab.send("Page.reload")
    tab.wait("document.readyState === 'complete' && document.querySelectorAll('#cards h3').length === 4")
    assert tab.cards("4 items for “item row 8”") == shown and tab.js(fields) == before
    assert before == ["item row 8", "Home", "Ash", "4", False, 2, "1 item is hidden"]
    tab.js("history.back()")
    tab.cards("4 items after a history of 2")
    tab.wait("document.querySelector('#query').value === '' && !location.search.includes('q=')")
    assert tab.complaints == []


def test_what_the_catalogue_lacks_is_named_and_leaves_the_address(tab, url, shop):
    own = str(shop.items["item_id"][3])
    tab.open(f"{url}/?item=gone&item={own}&hide=-5&k=7")
    assert len(tab.cards("7 items after a history of 1")) == 7
    tab.expect(NOTE, "Left out, because the catalogue has no item with this ID: “gone”, “-5”.")
    tab.expect("location.search", f"?item={own}&k=7")
    for filter in ("category", "brand"):
        tab.open(f"{url}/?{filter}=Boats")
        assert tab.cards(f"no item has the {filter} 'Boats'") == []
        tab.expect(f"document.querySelector('#{filter}').value", "Boats")


def test_a_number_of_items_beyond_the_limit_is_said(tab, url):
    tab.open(url).cards("to start with")
    tab.choose("#k", "9999")
    assert len(tab.cards("40 items to start with")) == 40
    tab.expect(NOTE, "The number of items must be 1 to 256: 9999 was changed to 256.")
    tab.expect("document.querySelector('#k').value + location.search", "256?k=256")
    tab.choose("#k", "5")
    tab.cards("5 items")
    tab.expect(NOTE, "")
    tab.open(f"{url}/?k=0").cards("10 items")
    tab.wait(f"{NOTE}.includes('0 was changed to 10')")


# --- ids ---

AWKWARD = ["A/1", "B&C=2", "C+3 x", "50%", "?#;", "Ünïcode 🙂", "'\"`<b>", "-7", "007", "a,b", "%2F", "..a", "x" * 300]


def test_ids_of_the_shop_survive_the_address_and_can_be_copied(tab, recommender_to_serve, serve):
    ids = AWKWARD + [f"SKU-{row}" for row in range(len(recommender_to_serve.items) - len(AWKWARD))]
    url = serve(web.create_app(with_items(recommender_to_serve, recommender_to_serve.items.assign(item_id=ids))))
    tab.open(f"{url}/?{urlencode([('item', item_id) for item_id in AWKWARD])}&k=40&repeats=yes")
    assert len(tab.cards(f"40 items after a history of {len(AWKWARD)}")) == 40 and tab.js(NOTE) == ""
    assert parse_qs(tab.js("location.search.slice(1)"))["item"] == AWKWARD
    assert set(tab.js("[...document.querySelectorAll('#cards .id')].map((one) => one.textContent)")) == set(ids)
    tab.js("document.querySelector('#cards .copy').click()")  # this browser does not let the page copy
    tab.wait("document.querySelector('#cards .copy').textContent.startsWith('Selected')")
    tab.wait("getSelection().toString() === document.querySelector('#cards .id').textContent")
    tab.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    at = tab.js("[...document.querySelectorAll('#cards .id')].findIndex((one) => one.textContent === '?#;')")
    tab.js(f"document.querySelectorAll('#cards .copy')[{at}].click()")
    tab.wait("window.copied === '?#;'")
    tab.js(f"document.querySelectorAll('#cards summary')[{at}].click()")
    tab.wait(f"document.querySelectorAll('#cards .why')[{at}].innerText.includes('more under')")
    tab.js("document.querySelector('#title').focus()")
    tab.type("SKU-17")
    tab.wait("document.querySelector('#suggestions code')?.textContent === 'SKU-17'")
    tab.press("Enter")
    tab.cards(f"after a history of {len(AWKWARD) + 1}")
    assert tab.complaints == []


# --- what is said ---


def test_on_a_phone_every_action_shows_its_results(tab, url):
    tab.open(url, 390, 844).cards("to start with")
    seen = f"{FIRST_CARD}.top >= 0 && {FIRST_CARD}.top < 300"

    def act(action: str, status: str) -> None:
        tab.js("scrollTo(0, 0)")
        assert not tab.js(seen)
        tab.js(action)
        tab.cards(status)
        tab.wait(seen)

    act("document.querySelector('#query').value = 'row 8'; document.querySelector('#search-form button').click()", "8”")
    act("document.querySelector('#examples button:last-child').click()", "for “item in row")
    act("document.querySelector('#recommend').click()", "to start with")
    change = "document.querySelector('#k').value = 5; document.querySelector('#k').dispatchEvent(new Event('change'))"
    act(change, "5 items to start with")
    tab.js("scrollTo(0, 0); document.querySelector('#title').focus()")
    tab.type("row 17")
    tab.wait("document.querySelectorAll('#suggestions button').length === 1")
    tab.press("Enter")
    tab.cards("5 items after a history of 1")
    tab.wait(seen)
    tab.js("fetch = () => Promise.reject(new Error('the line is cut')); scrollTo(0, 0)")
    tab.js("document.querySelector('#recommend').click()")
    tab.cards("the line is cut")
    tab.wait("(top => 0 <= top && top < 844)(document.querySelector('#status').getBoundingClientRect().top)")


def test_a_query_without_a_known_word_is_said_above_the_results(tab, recommender_to_serve, serve):
    words = recommender_to_serve.searcher.search
    recommender_to_serve.searcher.search = lambda queries, *more: words(["item in row 3"] * len(queries), *more)
    tab.open(serve(web.create_app(recommender_to_serve))).cards("to start with")
    search(tab, "qwxz zzqq")
    assert len(tab.cards("10 items for “qwxz zzqq”")) == 10
    tab.wait(f"{NOTE}.trim().startsWith('No item contains a word of this query')")
    above = "document.querySelector('#note').compareDocumentPosition(document.querySelector('#cards'))"
    tab.wait(f"{above} & Node.DOCUMENT_POSITION_FOLLOWING")
    search(tab, "row zzqq")
    tab.cards("for “row zzqq”")
    tab.expect(NOTE, "")
    tab.js("document.querySelector('#cards summary').click()")
    why = "document.querySelector('#cards .why').innerText"
    tab.wait(f"{why}.includes('more under')")
    assert tab.js(why).startswith("Words of the query in its title, brand or categories: “row”.")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (503, {"detail": "too many"}, "The service is busy: try again in a few seconds."),
        (504, {"detail": "too slow"}, "The answer took too long: try again, or ask for fewer items."),
        (404, {"detail": "no such model"}, "The service cannot answer: no such model."),
        (
            422,
            {"detail": [{"loc": ["body", "allowed_brands", 0], "msg": "Too long"}, {"loc": ["body"], "msg": "Other"}]},
            "The service did not accept allowed brands 0: Too long.",
        ),
        (422, {"detail": [{"loc": ["body"], "msg": "no item"}]}, "The service did not accept this: no item."),
    ],
)
def test_errors_are_one_plain_sentence(tab, url, status, body, said):
    tab.open(url).cards("to start with")
    tab.js(f"fetch = async () => new Response({json.dumps(json.dumps(body))}, {{ status: {status} }})")
    tab.js("document.querySelector('#recommend').click()")
    assert tab.cards(said) == [] and tab.js("document.querySelector('#status').textContent") == said


@pytest.mark.parametrize("width", [320, 1280])
def test_long_names_fit_the_screen_and_all_filters_work(tab, recommender_to_serve, serve, width):
    long = "Clocks that somebody described in a whole sentence, " * 8
    items = recommender_to_serve.items
    titles = ["Supercalifragilistic" * 9, "A" * 20_000, *["A" * 100] * 38]
    items = items.assign(brand=[long, "Ash"] * 20, title=titles, price=[12.5, 1200.0, None, 7.99] * 10)
    items["categories"] = [[["Home", long.strip()]]] * 40
    tab.open(serve(web.create_app(with_items(recommender_to_serve, items))), width).cards("to start with")
    tab.choose("#k", "40")
    tab.cards("40 items to start with")
    prices = tab.js("[...document.querySelectorAll('#cards .price')].map((one) => one.textContent)")
    assert sorted(prices) == [""] * 10 + ["Price 1,200"] * 10 + ["Price 12.50"] * 10 + ["Price 7.99"] * 10
    assert tab.js("document.querySelector('#cards .category').title").endswith(long.strip())
    tab.js("document.querySelectorAll('#cards .add')[0].click()")
    tab.cards("history of 1")
    assert tab.js("document.querySelector('#history li').offsetHeight") < 100
    assert tab.js("document.querySelector('#cards .card').offsetHeight") < 500
    assert tab.js("document.documentElement.scrollWidth") <= width
    options = tab.js("[...document.querySelectorAll('#category option')].map((one) => [one.textContent, one.title])")
    assert all(len(text) < 60 for text, _ in options) and long.strip() in [title for _, title in options]
    small = tab.js(
        "[...document.querySelectorAll('button, select, input:not([type=checkbox])')]"
        ".filter((one) => one.offsetHeight && one.offsetHeight < 32).map((one) => one.textContent)"
    )
    assert small == []  # for a finger
    tab.choose("#category", long.strip())
    tab.choose("#brand", "Ash")
    tab.wait("document.querySelectorAll('#cards h3').length <= 20")
    assert set(tab.js("[...document.querySelectorAll('#cards .brand')].map((one) => one.textContent)")) == {"Ash"}


@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(tab, url, width):
    """No finding of axe-core, which `make setup` installs with axe-playwright-python."""
    carrier = importlib.util.find_spec("axe_playwright_python")
    if carrier is None:
        pytest.skip("no axe-core here: pip install --no-deps axe-playwright-python")
    axe = (Path(carrier.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    tab.open(f"{url}/?k=9999", width).cards("to start with")  # with a note
    tab.js("document.querySelector('#cards .add').click()")
    tab.cards("history of 1")
    tab.js("document.querySelector('#cards summary').click()")
    tab.wait("document.querySelector('#cards .why').innerText.includes('more under')")
    tab.js("document.querySelector('#title').focus()")
    tab.type("row 1")
    tab.wait("document.querySelectorAll('#suggestions button').length > 1")
    live = "document.querySelector('{}').closest('[aria-live=polite], [role=status]') !== null"
    assert all(tab.js(live.format(name)) for name in ("#status", "#note", "#found", "#facts"))  # news are spoken
    tab.js(f"{axe}; true")
    for theme in ("light", "dark"):
        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        findings = tab.js(
            "axe.run({ preload: false }).then((all) => all.violations"
            ".map((one) => `${one.id}, first ${one.nodes[0].html.slice(0, 200)}`))"
        )
        assert findings == [], theme
