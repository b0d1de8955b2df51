"""The page in a real Chromium: what an application sends shows, and can be found, read and sent again."""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import windback.devserver
from windback import Windback
from windback.devserver import DevServer

pytestmark = pytest.mark.timeout(240)  # a browser on a busy machine takes its time

PAGE = Path(windback.devserver.__file__).parent / "page"
SECTIONS = ["inbox", "overview", "customers", "board", "charts", "faults", "webhooks", "connect"]
JANE = "jane@example.com"


def rows(page):
    return page.locator("table.list tr[data-id]")


def track(client, *names: str, email: str = JANE, **properties: object) -> None:
    for name in names:
        assert client.track_event(name, email, properties)
    assert client.flush(timeout=30)


def expect_count(locator, count: int) -> None:
    from playwright.sync_api import expect

    expect(locator).to_have_count(count, timeout=60_000)


def test_an_event_sent_by_the_sdk_appears_within_a_second(open_page, client):
    page = open_page()
    page.evaluate(
        """() => {
          window.seen = {};
          new MutationObserver(() => {
            for (const row of document.querySelectorAll("tr[data-id]"))
              window.seen[row.dataset.id] ??= Date.now();
          }).observe(document.body, {childList: true, subtree: true});
        }"""
    )
    delays = []
    for turn in range(1, 6):
        track(client, "login", plan="pro")
        expect_count(rows(page), turn)
        delays.append(
            page.evaluate(
                """async () => {
                  const {data} = await (await fetch("/_dev/events?limit=1&order=desc")).json();
                  return window.seen[data[0].id] - Date.parse(data[0].timestamp);
                }"""
            )
        )
    # From the call of track_event, and on a machine that may have other things to do.
    assert 0 <= sorted(delays)[len(delays) // 2] < 1_000
    assert "login" in rows(page).first.inner_text()
    assert "plan pro" in rows(page).first.inner_text()


def test_an_event_stored_before_the_page_opened_is_shown(open_page, client):
    track(client, "login", "feature_used")
    page = open_page()
    expect_count(rows(page), 2)
    assert "feature_used" in rows(page).first.inner_text()  # the newest is on top
    assert page.title() == "Inbox · windback dev"


def test_an_empty_inbox_reports_what_to_do_and_sends_a_test_event(open_page, server):
    page = open_page()
    page.get_by_role("heading", name="Nothing has arrived yet").wait_for()
    text = page.locator(".snippets").inner_text()
    assert f"export WINDBACK_BASE_URL={server.url}" in text
    page.get_by_role("tab", name="cURL").click()
    assert f"curl {server.url}/track" in page.locator(".snippets pre").inner_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("cURL copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith(f"curl {server.url}/track")
    page.get_by_role("button", name="Send a test event").click()
    page.locator(".detail h2", has_text="feature_used").wait_for()
    expect_count(rows(page), 1)
    assert [event.event for event in server.events()] == ["feature_used"]


def test_search_filters_and_the_filtered_list_stays_live(open_page, client, until):
    track(client, "login", "feature_used", plan="pro")
    track(client, "login", email="joe@acme.com", plan="free")
    page = open_page()
    expect_count(rows(page), 3)
    search = page.get_by_role("searchbox")
    for query, count in [
        ("event:login", 2),
        ("event:login plan:pro", 1),
        ("-event:login", 1),
        ("email:*@acme.com", 1),
    ]:
        search.fill(query)
        until(page, "q => new URLSearchParams(location.search).get('q') === q", arg=query)
        expect_count(rows(page), count)
    track(client, "login", email="ann@acme.com")
    track(client, "login", email="ann@example.com")
    expect_count(rows(page), 2)
    search.fill("event:nothing plan:pro")
    page.get_by_role("heading", name="No match").wait_for()
    page.get_by_role("button", name="Remove event:nothing").click()
    expect_count(rows(page), 2)
    assert search.input_value() == "plan:pro"
    search.fill('event:"login')
    page.get_by_text(re.compile("column 7")).wait_for()
    page.go_back()
    page.go_forward()
    page.get_by_role("button", name="Remove all").click()
    expect_count(rows(page), 5)


def test_a_value_is_included_and_excluded_from_the_detail(open_page, client):
    track(client, "login", "feature_used", plan="pro")
    page = open_page()
    rows(page).filter(has_text="login").click()
    page.get_by_role("button", name="Without event login").click()
    expect_count(rows(page), 1)
    assert page.get_by_role("searchbox").input_value() == "-event:login"
    page.get_by_role("searchbox").fill("")
    expect_count(rows(page), 2)
    page.get_by_role("tab", name="JSON").click()
    value = page.locator(".json .leaf", has_text="plan")
    value.hover()
    value.get_by_role("button", name="As column").click()
    page.get_by_role("columnheader", name="plan").wait_for()
    assert rows(page).first.locator("td.own").inner_text() == "pro"


def test_the_detail_shows_the_request_with_its_key_masked(open_page, client, server):
    server.faults([{"path": "/track", "status": 503, "times": 1}])
    track(client, "login", plan="pro")
    page = open_page()
    rows(page).first.click()
    detail = page.locator(".detail")
    page.get_by_role("tab", name="Request").click()
    detail.get_by_text("/api/v1/track").wait_for()
    assert "sk_***" in detail.inner_text()
    assert "sk_test_page" not in page.content()
    page.get_by_role("tab", name="Attempts").click()
    expect_count(detail.locator(".story .attempt"), 2)
    assert re.sub(r"\s+", " ", detail.locator(".story").inner_text()).startswith("503 ")
    page.get_by_role("tab", name="Response").click()
    detail.get_by_text("200", exact=True).wait_for()
    page.reload()
    detail.get_by_text("200", exact=True).wait_for()  # the tab is in the address


def test_requests_that_were_refused_are_listed(open_page, post):
    page = open_page()
    assert post("/track", {"event": "login", "customer_email": JANE}, **{"x-api-key": "pub_test"}) == 403
    page.get_by_text("1 request came and brought no event").wait_for()
    page.get_by_role("link", name="see the answers").click()
    expect_count(rows(page), 1)
    assert "403" in rows(page).first.inner_text()
    assert post("/track", {"event": "login", "customer_email": JANE}) == 200
    expect_count(rows(page), 2)
    rows(page).first.click()
    page.locator(".detail").get_by_text("1 event in it").wait_for()


def test_an_event_that_the_api_would_ignore_gives_the_reason(open_page, post):
    assert post("/track", {"events": [{"event": "login", "customer_email": "jane"}]}) == 200
    page = open_page()
    rows(page).first.click()
    note = page.locator(".detail .note")
    note.wait_for()
    assert "customer_email" in note.inner_text()
    page.locator(".detail").get_by_text("ignored by the real API").first.wait_for()


def test_fault_controls(open_page, client, server):
    page = open_page("/?s=faults")
    strip = page.get_by_role("region", name="Faults in force")
    assert not strip.is_visible()
    page.get_by_role("button", name=re.compile("^Lost answers")).click()
    strip.wait_for()
    assert "drop after storing" in strip.inner_text()
    track(client, "login")  # three answers are lost, the fourth is not
    page.get_by_text("3 hits · 0 left").wait_for()
    strip.wait_for(state="hidden")
    assert server.counts().duplicates == 3
    page.get_by_role("button", name=re.compile("^Slow")).click()
    strip.wait_for()
    page.get_by_role("button", name="Stop all").first.click()
    strip.wait_for(state="hidden")
    page.get_by_text("None: the server behaves.").wait_for()

    form = page.locator("form.rule-form")
    for kind, fields in [
        ("latency", {"ms": "5"}),
        ("status", {"status": "503", "retry_after": "1"}),
        ("rate_limit", {"per_second": "50"}),
        ("drop-before", {"times": "1", "path": "/track"}),
    ]:
        form.locator("[name=kind]").select_option(kind)
        for name, value in fields.items():
            form.locator(f"[name={name}]").fill(value)
        form.get_by_role("button").click()
    expect_count(page.locator(".rule"), 4)
    form.locator("[name=path]").fill("track")
    form.get_by_role("button").click()
    form.get_by_role("alert").get_by_text("path").wait_for()

    page.locator(".rule").first.get_by_role("switch").click()
    expect_count(page.locator(".rule.spent"), 1)
    page.locator(".rule").first.get_by_role("button", name=re.compile("^Remove")).click()
    expect_count(page.locator(".rule"), 3)
    page.goto(page.url.replace("s=faults", ""))
    strip.get_by_role("button", name="Stop all").click()
    strip.wait_for(state="hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen(open_page, scheme):
    page = open_page(color_scheme=scheme)
    other = {"light": "dark", "dark": "light"}[scheme]

    def looks() -> str:
        color = page.evaluate("getComputedStyle(document.querySelector('main')).backgroundColor")
        return "light" if color == "rgb(255, 255, 255)" else "dark"

    assert looks() == scheme
    button = page.get_by_role("button", name=re.compile("^Theme:"))
    for choice, look in [("light", "light"), ("dark", "dark"), ("auto", scheme)]:
        button.click()
        page.get_by_role("button", name=f"Theme: {choice}").wait_for()
        assert looks() == look
    while button.get_attribute("title") != f"Theme: {other}":
        button.click()
    # Set before anything is painted, so by a script that the parser waits for.
    page.add_init_script(
        "document.addEventListener('readystatechange',"
        " () => (window.first ??= document.documentElement.dataset.theme))"
    )
    page.reload()
    assert page.evaluate("window.first") == other
    assert looks() == other


@pytest.mark.parametrize("place", ["list", "strip"])
def test_a_click_that_takes_a_moment_counts_while_requests_meet_the_rule(open_page, client, server, place):
    server.faults([{"latency": 0.001, "times": 1000}, {"latency": 0.002, "times": 1000}])
    page = open_page("/?s=faults")
    rules = page.locator(".rule")
    expect_count(rules, 2)
    strip = page.locator("#strip")
    button = strip.get_by_role("button") if place == "strip" else rules.first.get_by_role("button")
    box = button.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    before = strip.inner_text(), rules.first.inner_text()
    track(client, "login")
    page.wait_for_function(
        "before => before[0] !== document.querySelector('#strip').innerText"
        " && before[1] !== document.querySelector('.rule').innerText",
        arg=before,
    )
    assert button.evaluate("button => button === document.activeElement")
    page.mouse.up()
    expect_count(rules, 0 if place == "strip" else 1)


@pytest.mark.parametrize(
    ("section", "call", "pressed", "then"),
    [
        ("overview", "overview", "th a", "body[data-section=inbox]"),
        ("customers", "customers", "th a", ".crumb"),
        ("board", "board", ".card a", ".crumb"),
        ("charts", "series", ".segments button:last-child", ".segments button:last-child[aria-pressed=true]"),
    ],
    ids=["overview", "customers", "board", "charts"],
)
def test_a_click_counts_though_an_answer_draws_the_section_anew(
    open_page, client, section, call, pressed, then
):
    track(client, "login")
    client.create_churn_event(JANE, "cancellation")
    page = open_page(f"/?s={section}")
    page.locator(pressed).first.wait_for()
    held = []

    def hold(route):  # Playwright takes no method of a list
        held.append(route)

    page.route(re.compile(f"/_dev/{call}[^/]*$"), hold)
    track(client, "login")
    client.create_churn_event("joe@example.com", "cancellation")
    deadline = time.monotonic() + 60
    while not held:
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)
    page.locator(pressed).first.hover()
    page.mouse.down()
    with page.expect_response(held[-1].request.url):
        for route in held:
            route.continue_()
    page.wait_for_timeout(300)  # the page would have drawn it by now
    page.mouse.up()
    page.unroute_all()
    page.locator(then).first.wait_for()


def test_the_whole_path_by_keyboard(open_page, client, server, until):
    track(client, "login", "feature_used", "invoice_paid", plan="pro")
    server.faults([{"path": "/projects", "status": 503}])
    page = open_page()
    expect_count(rows(page), 3)
    press = page.keyboard.press

    press("/")
    page.keyboard.type("-event:login")
    expect_count(rows(page), 2)
    press("Escape")
    press("j")
    press("j")
    assert "feature_used" in page.evaluate("document.activeElement.innerText")
    press("Enter")
    page.locator(".detail h2", has_text="feature_used").wait_for()
    press("Escape")
    page.locator(".detail").wait_for(state="hidden")
    until(page, "document.activeElement.innerText?.includes('feature_used')")  # back at the same row

    press("r")
    editor = page.get_by_role("dialog")
    editor.wait_for()
    press("Control+Enter")
    editor.wait_for(state="detached")
    page.locator(".detail h2", has_text="feature_used").wait_for()
    expect_count(rows(page), 3)
    assert [event.event for event in server.events()].count("feature_used") == 2
    assert f"id={server.events()[-1].id}" in page.url  # what was sent is selected

    press("Escape")
    press("x")
    expect_count(rows(page), 1)
    press("6")
    page.get_by_role("heading", name="In force").wait_for()
    for _ in range(40):
        press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Stop all":
            break
    press("Enter")
    page.locator("#strip").wait_for(state="hidden")

    press("?")
    page.get_by_role("dialog").get_by_label("Single keys are on").uncheck()
    press("Escape")
    press("1")
    page.get_by_role("heading", name="In force").wait_for()


def test_paused_holds_what_comes_and_reports_how_much(open_page, client):
    track(client, "login")
    page = open_page()
    expect_count(rows(page), 1)
    page.keyboard.press("p")
    page.locator("#live", has_text="Paused (0 waiting)").wait_for()
    track(client, "login", "login")
    page.locator("#live", has_text="Paused (2 waiting)").wait_for()
    assert rows(page).count() == 1
    assert "paused=1" in page.url
    page.keyboard.press("p")
    expect_count(rows(page), 3)
    page.locator("#live", has_text="Live").wait_for()


def test_new_rows_move_nothing_under_the_eyes(open_page, client, until):
    track(client, *["login"] * 60)
    page = open_page()
    rows(page).first.wait_for()
    page.locator(".scroller").evaluate("element => element.scrollTop = 320")
    first = "(() => { const box = document.querySelector('.scroller').getBoundingClientRect();"
    first += " return document.elementFromPoint(box.left + 200, box.top + 60).closest('tr').dataset.id })()"
    until(page, "() => document.querySelector('.scroller').scrollTop === 320")
    before = page.evaluate(first)
    track(client, "invoice_paid", "invoice_paid")
    pill = page.get_by_role("button", name="2 new")
    pill.wait_for()
    assert page.evaluate(first) == before
    pill.click()
    until(page, "() => document.querySelector('tr[data-id]')?.innerText.includes('invoice_paid')")
    assert page.locator(".scroller").evaluate("element => element.scrollTop") == 0

    rows(page).nth(4).click()  # the selection holds, too
    track(client, "data_export")
    page.get_by_role("button", name="1 new").wait_for()
    page.keyboard.press("g")
    until(page, "() => document.querySelector('tr[data-id]')?.innerText.includes('data_export')")


def test_clear_asks_once_and_can_be_undone(open_page, client, server):
    track(client, "login", "feature_used")
    page = open_page()
    expect_count(rows(page), 2)
    page.get_by_role("button", name="Clear", exact=True).click()
    confirm = page.locator(".confirm")
    assert "Clear 2 events?" in confirm.inner_text()
    confirm.get_by_role("button", name="Keep").click()
    page.get_by_role("button", name="Clear", exact=True).click()
    confirm.get_by_role("button", name="Clear").click()
    expect_count(rows(page), 0)
    page.get_by_role("button", name="Undo").click()
    expect_count(rows(page), 2)
    page.get_by_role("button", name="Clear", exact=True).click()
    confirm.get_by_role("button", name="Clear").click()
    expect_count(rows(page), 0)
    track(client, "invoice_paid")  # comes after the question, so it stays
    expect_count(rows(page), 1)
    assert server.counts().stored == 3  # nothing is gone before the time to undo it is over
    page.goto("about:blank")  # or the page is left
    deadline = time.monotonic() + 20
    while len(server.events()) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [event.event for event in server.events()] == ["invoice_paid"]


def test_customers_have_their_history_and_churn_events(open_page, client):
    track(client, "login", "feature_used")
    client.create_churn_event(JANE, cancel_reason="too_expensive", mrr=4_900)
    page = open_page("/?s=customers")
    page.get_by_role("link", name=JANE).click()
    page.get_by_role("heading", name=JANE).wait_for()
    expect_count(page.locator(".timeline li"), 2)
    page.locator("main", has_text="too_expensive").wait_for()
    page.locator("main", has_text="$49").wait_for()
    page.locator(".timeline a", has_text="login").click()
    page.locator(".detail h2", has_text="login").wait_for()
    page.go_back()
    page.get_by_role("heading", name=JANE).wait_for()


def test_a_card_of_the_board_moves_by_its_menu_to_what_is_legal(open_page, client, server):
    event = client.create_churn_event(JANE, cancel_reason="too_expensive", mrr=4_900)
    page = open_page("/?s=board")
    expect_count(page.locator(".column"), 6)
    column = page.get_by_role("region", name="New", exact=True)
    card = column.locator(".card")
    assert "too expensive" in card.inner_text()
    card.get_by_text("Move").click()
    steps = card.locator(".menu button").all_inner_texts()
    assert "Processing" in steps
    assert "Variants ready" not in steps  # no step is skipped
    card.get_by_role("button", name="Processing").click()
    page.get_by_role("region", name="Variants ready").locator(".card").wait_for()  # goes on by itself
    assert client.get_churn_event(event.id).status == "variants_generated"
    server.mark_lost(event.id)
    page.get_by_role("region", name="Lost").get_by_role("button", name="Show 1").click()
    page.get_by_role("region", name="Lost").locator(".card").wait_for()


def test_charts_show_what_arrived_and_what_was_rejected_and_why(open_page, client, post):
    track(client, "login", "login", "feature_used")
    assert post("/track", {"events": "none"}) == 400
    page = open_page("/?s=charts")
    page.get_by_role("img", name=re.compile("^Events per second: arrived 3, rejected 1")).wait_for()
    page.get_by_role("img", name=re.compile("^By name: login 2, feature_used 1")).wait_for()
    page.get_by_role("row", name=re.compile("VALIDATION_ERROR")).wait_for()
    page.get_by_role("button", name="Show as table").first.click()
    page.get_by_role("region", name="Events per second as a table").locator("tbody tr").first.wait_for()


def test_charts_reach_back_and_say_when_the_last_event_came(open_page, client):
    track(client, "login", "login")
    page = open_page("/?s=charts")
    page.locator("h1", has_text=re.compile("last event .* ago")).wait_for()
    for span, title in (
        ("1 h", "Events per minute"),
        ("All", "Events per minute"),
        ("10 min", "Events per second"),
    ):
        page.get_by_role("group", name="How much of the past").get_by_role(
            "button", name=span, exact=True
        ).click()
        page.get_by_role("img", name=re.compile(f"^{title}: arrived 2")).wait_for()


def test_charts_of_an_empty_time_say_so_and_lead_to_all(browser, tmp_path):
    file = tmp_path / "kept.db"
    with DevServer(db=file) as server:
        with Windback("sk_test_page", base_url=server.url) as client:
            track(client, "login")
        server.stop()
        earlier = (datetime.now(timezone.utc) - timedelta(minutes=7)).isoformat(timespec="milliseconds")
        with closing(sqlite3.connect(file)) as database:
            database.execute("UPDATE batches SET received_at = ?", (earlier.replace("+00:00", "Z"),))
            database.commit()
        server.start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/?s=charts")
        page.get_by_text(re.compile("Nothing came in this time: last event 7 min ago")).wait_for()
        page.get_by_role("button", name="Show all").click()
        page.get_by_role("img", name=re.compile("^Events per minute: arrived 1")).wait_for()
        page.close()


def test_a_pause_before_a_good_answer_is_not_a_rejection(open_page, client, server):
    server.faults([{"path": "/track", "latency": 0.01}])
    track(client, "login")
    page = open_page("/?s=charts")
    page.get_by_role("img", name=re.compile("^Events per second: arrived 1")).wait_for()
    page.get_by_text("Nothing was rejected.").wait_for()


def test_the_overview_has_counts_money_and_what_changed(open_page, client, post):
    client.create_churn_event(JANE, cancel_reason="too_expensive", mrr=4_900)
    for n in range(30):
        track(client, "login", plan="pro", seats=n if n < 25 else str(n))
    track(client, "login", "signup", plan="pro", Plan="free")
    assert post("/track", {"events": "none"}) == 400
    page = open_page("/?s=overview")

    def tile(name: str) -> str:
        return page.locator(".tile", has=page.get_by_role("heading", name=name)).inner_text()

    page.get_by_role("heading", name="Overview").wait_for()
    assert "32" in tile("Events today")
    assert "1 of " in tile("Success rate")
    assert "$49" in tile("At risk")
    names = page.get_by_role("region", name="Events by name")
    assert re.match(r"login\s+31\b", names.locator("tbody tr").first.inner_text())
    changed = page.get_by_role("region", name="What changed").inner_text()
    assert "is also text: number (25), text (5)" in changed
    assert "new after 30 events without it; there is 'plan' already" in changed
    page.get_by_role("region", name="What changed").get_by_role("link").first.click()
    page.locator(".detail h2", has_text="login").wait_for()


def boxes(locator):
    return [each.bounding_box() for each in locator.all()]


def test_a_long_name_leaves_the_properties_of_a_customers_history_free(open_page, client):
    track(client, "onboarding_checklist_completed_for_the_first_time_by_team_owner", plan="pro")
    page = open_page(f"/?s=customers&id={JANE}")
    page.locator(".timeline li").first.wait_for()
    text = page.locator(".timeline li a").first
    own, properties = text.bounding_box(), page.locator(".timeline li .muted").first.bounding_box()
    assert own["x"] + own["width"] <= properties["x"]
    assert text.evaluate("element => element.scrollWidth <= element.clientWidth")


def test_the_board_fits_1280_pixels_and_its_cards_have_names(open_page, client):
    for n in range(3):
        event = client.create_churn_event(f"customer{n}@a-long-domain.example.com", customer_name="Jane Doe")
        if n:
            variants = client.generate_variants(event.id)
        if n == 2:
            client.send_variant(event.id, variants[0].id)
    page = open_page("/?s=board")
    page.locator(".card").first.wait_for()
    board = page.locator(".board")
    assert board.evaluate("board => board.scrollWidth <= board.clientWidth")
    widths = {
        each.get_attribute("aria-label"): each.bounding_box()["width"]
        for each in page.locator(".column").all()
    }
    assert widths["Processing"] < widths["New"]  # it is empty
    assert page.locator(".card a").first.inner_text() == "Jane Doe"


def test_on_a_phone_the_copy_button_leaves_the_code_free_and_tables_are_whole(open_page, client):
    track(client, "login", email="somebody.with.a.long.name@a-long-domain.example.com")
    page = open_page("/?s=connect", viewport={"width": 360, "height": 740}, is_mobile=True)
    for button, code in zip(boxes(page.locator(".snippet button")), boxes(page.locator(".snippet code"))):
        assert button["y"] + button["height"] <= code["y"]
    for section in ("customers", "overview"):
        page.goto(f"{page.url.partition('?')[0]}?s={section}")
        page.locator(".data tbody tr").first.wait_for()
        for cell in boxes(page.locator(".data tr > :last-child")):
            assert cell["x"] + cell["width"] <= 360


def test_a_link_to_an_event_that_is_gone_reports_it(open_page, client, server):
    track(client, "login", "feature_used")
    page = open_page(f"/?id={server.events()[-1].id + 100}")
    page.get_by_role("heading", name=re.compile("is not here any more")).wait_for()
    page.get_by_role("link", name="The next older one").click()
    page.locator(".detail h2", has_text="feature_used").wait_for()


EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def test_markup_in_every_field_is_text(open_page, client, post, server):
    event = {
        "event": EVIL,
        "customer_email": f"{EVIL.replace(' ', '/')}@example.com",
        "customer_id": EVIL,
        "customer_name": EVIL,
        "properties": {EVIL: EVIL, "deep": {EVIL: [EVIL, {EVIL: EVIL}]}},
    }
    agent = {"user-agent": EVIL, "idempotency-key": EVIL.replace(" ", "/")}
    assert post("/track", {"events": [event, {**event, "customer_email": EVIL}]}, **agent) == 200
    assert post("/track", {"events": EVIL}, **{"user-agent": EVIL}) == 400
    churn = {"customer_email": event["customer_email"], "customer_name": EVIL, "event_type": "cancellation"}
    assert (
        post("/projects/shop/churn-events", {**churn, "cancel_reason": EVIL, "mrr": 100, "plan_name": EVIL})
        == 201
    )
    server.faults([{"path": f"/{EVIL}", "status": 503, "body": EVIL, "name": EVIL}])

    page = open_page()
    home = page.url
    event_id, request_id = server.events()[0].id, server.requests()[0].request_id
    for address in (f"?id={event_id}", f"?v=requests&id={request_id}"):
        page.goto(home + address)
        for tab in page.get_by_role("tab").all():
            tab.click()
            page.locator(".detail .panel *").first.wait_for()
            unharmed(page)
    for section in SECTIONS:
        page.goto(f"{home}?s={section}")
        page.locator("main :is(tr[data-id], .data, .card, figure, .rule, pre)").first.wait_for()
        unharmed(page)
    page.goto(f"{home}?s=customers")
    page.locator("main .data a").first.click()
    page.locator(".timeline li").first.wait_for()
    unharmed(page)
    assert EVIL in page.locator("main").inner_text()


def unharmed(page) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("script:not([src])").count() == 0


NARROW = (
    "list",
    "Overview",
    "overview",
    "customers",
    "board",
    "faults",
)  # where a narrow page is not the wide one with other breaks
COLOURED = ("list", "Overview", "overview", "JSON", "Attempts", "board", "charts", "faults", "webhooks")


@pytest.mark.parametrize(
    ("options", "rules", "views"),
    [
        pytest.param({"color_scheme": "light"}, {}, None, id="light"),
        pytest.param({"color_scheme": "dark"}, {"runOnly": ["color-contrast"]}, COLOURED, id="dark"),
        pytest.param({"viewport": {"width": 360, "height": 740}}, {}, NARROW, id="phone"),
    ],
)
def test_axe_finds_nothing(open_page, client, server, options, rules, views):
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    track(client, "login", "feature_used", plan="pro", count=3, nested={"a": [1, {"b": None}]})
    client.create_churn_event(JANE, cancel_reason="too_expensive", mrr=4_900)
    server.faults([{"path": "/nowhere", "status": 503, "times": 2}])
    page = open_page(reduced_motion="reduce", **options)
    page.evaluate(axe.axe_script)
    found = []

    def look(where: str) -> None:
        if views is not None and where not in views:
            return
        result = page.evaluate("rules => axe.run({resultTypes: ['violations'], ...rules})", rules)
        for each in result["violations"]:
            found.extend((where, each["id"], node["html"][:200]) for node in each["nodes"])

    rows(page).first.wait_for()
    look("list")
    rows(page).first.click()
    for tab in ("Overview", "JSON", "Request", "Attempts", "Response"):
        page.get_by_role("tab", name=tab).click()
        look(tab)
    page.keyboard.press("Escape")
    page.get_by_role("searchbox").fill("nothing")
    page.get_by_role("heading", name="No match").wait_for()
    look("no match")
    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="Requests").click()
    rows(page).first.wait_for()
    look("requests")
    for section in SECTIONS[1:]:
        page.get_by_role("navigation").get_by_role("link", name=re.compile(section, re.IGNORECASE)).click()
        page.locator("main h1").get_by_text(section.capitalize()).wait_for()
        page.locator("main :is(table, .card, figure, form, pre)").first.wait_for()
        look(section)
    page.keyboard.press("3")
    page.get_by_role("link", name=JANE).click()
    page.locator(".timeline li").first.wait_for()
    look("customer")
    page.keyboard.press("?")
    look("help")
    assert found == []


def test_no_sideways_scroll_at_320_pixels(open_page, client, server):
    track(
        client,
        "a_rather_long_name_of_an_event",
        email="somebody.with.a.long.name@a-long-domain.example.com",
        key="x" * 200,
    )
    client.create_churn_event(JANE, cancel_reason="too_expensive", mrr=4_900)
    server.faults([{"path": "/nowhere", "status": 503}])
    page = open_page(viewport={"width": 320, "height": 640})
    home = page.url
    for address in [
        "",
        f"?id={server.events()[-1].id}",
        "?v=requests",
        *(f"?s={section}" for section in SECTIONS[1:]),
    ]:
        page.goto(home.partition("?")[0] + address)
        page.locator("main h1, main tr[data-id], .detail h2").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 320, address
        wide = page.evaluate(
            "document.querySelector('main').scrollWidth - document.querySelector('main').clientWidth"
        )
        assert wide <= 0, address


def test_the_page_is_small():
    """Before compression; it has no build that could make it smaller."""
    files = [file for file in PAGE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 150_000
