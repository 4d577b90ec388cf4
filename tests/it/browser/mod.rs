//! The live page in a real browser: through a fault and back, hostile devices, keyboard, screen reader, token, phone.

mod driver;
mod gate;
mod screenshots;
mod site;

use driver::{Browser, Scheme, key};
use site::{Site, wait_for_more_than};

use crate::process::wait_until;

const SINK: &str = "[data-sink=table]";

/// Nothing to complain of, and nobody else asked.
fn assert_is_clean(browser: &Browser, site: &Site) {
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let requests = browser.requests();
    assert!(requests.iter().any(|url| url.ends_with("/events")), "{requests:?}");
    let elsewhere: Vec<&String> = requests.iter().filter(|url| !url.starts_with(&site.url())).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

/// What the card of the sink says waits for it.
fn rows_waiting(browser: &Browser) -> u64 {
    let text = browser.text(SINK);
    let mut lines = text.lines().skip_while(|line| *line != "Wait for it");
    let figure = lines.nth(1).unwrap_or_default();
    let digits: String = figure.split(' ').next().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[test]
fn a_sink_goes_red_its_backlog_grows_and_it_recovers_before_ones_eyes() {
    let mut site = Site::start("");
    let browser = Browser::open(1280, 900, Scheme::Light);
    browser.go_to(&site.url());
    browser.run("window.isTheSamePage = true");
    browser.wait_for_text("#status", "ok");
    browser.wait_for_text("#bottleneck", "Nothing is held up.");
    let stages = browser.run("return [...document.querySelectorAll('.stage')].map((stage) => stage.dataset.name)");
    assert_eq!(stages, serde_json::json!(["telemetry", "valid", "scored", "table", "lake", "alerts", "refused"]));
    wait_until("rows to be stored", || browser.text(SINK).contains("/s").then_some(()));
    assert_eq!(browser.attribute(SINK, "data-trouble"), "false");

    site.database.shut();
    wait_until("the sink to go red", || (browser.attribute(SINK, "data-trouble") == "true").then_some(()));
    assert_eq!(browser.attribute(".stage[data-name=table]", "data-state"), "retrying");
    browser.wait_for_text("#status", "degraded");
    browser.wait_for_text("#bottleneck", "Sink “table” can’t store.");
    browser.wait_for_text("#news", "sink table is retrying");
    browser.wait_for_text(SINK, "Can’t store");
    let first = wait_for_more_than("the backlog to be there", 500, || rows_waiting(&browser));
    wait_for_more_than("the backlog to grow", first + 500, || rows_waiting(&browser));
    browser.wait_for_text("#bottleneck", "rows wait for it on disk; nobody else waits.");
    let edge = "return [...document.querySelectorAll('.arrival[data-fill=disk] .edge-wait')].map((edge) => edge.textContent).join()";
    assert!(browser.run(edge).as_str().is_some_and(|text| text.contains("on disk")));
    assert_eq!(browser.attribute("[data-sink=lake]", "data-trouble"), "false", "the lake does not notice");

    site.database.open();
    wait_until("the sink to recover", || (browser.attribute(SINK, "data-trouble") == "false").then_some(()));
    wait_until("the backlog to be gone", || (rows_waiting(&browser) < 500).then_some(()));
    browser.wait_for_text("#bottleneck", "Nothing is held up.");
    browser.wait_for_text("#status", "ok");
    browser.wait_for_text(SINK, "Has passed");
    browser.wait_for_text("#news", "seen is ok");

    assert_is_clean(&browser, &site);
    site.end();
    browser.wait_for_text("#connection", "no answer; asking again in");
    browser.wait_for_text("#news", "No answer from the pipeline.");
    assert_eq!(browser.run("return window.isTheSamePage"), true, "nothing was loaded again");
}

#[test]
fn what_a_hostile_device_sends_is_text_and_nothing_else() {
    let site = Site::start("");
    let browser = Browser::open(1280, 900, Scheme::Dark);
    browser.go_to(&site.url());
    browser.wait_for_text("#status", "ok");
    let device = "<img src=x onerror=\"document.title='owned'\">\u{202e}</b><script>document.title='owned'</script>";
    site.send_with_an_anomaly(device, 60);
    let shown = "<img src=x onerror=\"document.title='owned'\">\\u{202e}</b><script>document.title='owned'</script> temperature";
    browser.wait_for_text("#anomalies", shown);
    let series = "return document.querySelectorAll('#anomalies .spark polyline').length";
    wait_until("the readings around it", || (browser.run(series).as_u64() > Some(0)).then_some(()));
    // The fleet's own bad messages are there as well, with their reasons.
    browser.wait_for_text("#rejects", " by telemetry");
    browser.wait_for_text("#devices", "within 10 s");
    assert_eq!(browser.run("return document.querySelectorAll('img, body script, iframe').length"), 0);
    assert!(browser.run("return document.title").as_str().is_some_and(|title| title.starts_with("seen")));
    assert_is_clean(&browser, &site);
}

#[test]
fn stages_are_reached_and_read_without_a_mouse_and_without_seeing_them() {
    let site = Site::start("");
    let browser = Browser::open(1280, 900, Scheme::Light);
    browser.go_to(&site.url());
    browser.wait_for_text("#bottleneck", "Nothing is held up.");
    let focus = || browser.run("return document.activeElement.dataset.name ?? document.activeElement.textContent");
    browser.press(&[key::TAB]);
    assert_eq!(focus(), "Skip to the stages as a table");
    browser.press(&[key::TAB]);
    assert_eq!(focus(), "telemetry");
    browser.press(&[key::RIGHT, key::RIGHT]);
    assert_eq!(focus(), "scored");
    browser.press(&[key::ENTER]);
    browser.wait_for_text("#detail", "scored");
    assert!(browser.text("#detail").contains("transform, anomaly"), "{}", browser.text("#detail"));
    assert_eq!(browser.attribute(".stage[data-name=scored]", "aria-expanded"), "true");
    browser.press(&[key::ESCAPE]);
    assert_eq!(browser.text("#detail"), "");

    let (role, name) = browser.known_as(".stage[data-name=table]");
    assert_eq!(role, "button");
    assert!(name.starts_with("sink table, timescaledb, running, ") && name.ends_with(", reads scored"), "{name}");
    assert_eq!(browser.known_as("#graph svg").0, "group");
    assert_eq!(browser.known_as("#stages").0, "table");
    assert_eq!(browser.known_as("#news").0, "status");
    let (role, name) = browser.known_as("#rows-chart svg");
    assert!(["image", "img"].contains(&role.as_str()) && name.contains("Now: read "), "{role} {name}");
    let rows = browser.run("return [...document.querySelectorAll('#stages tbody th')].map((head) => head.textContent)");
    assert_eq!(rows.as_array().map(Vec::len), Some(7), "the graph is a table as well: {rows}");
    let unnamed = "return [...document.querySelectorAll('main section')].filter((part) => !document.getElementById(part.getAttribute('aria-labelledby'))).length";
    assert_eq!(browser.run(unnamed), 0);
    assert_is_clean(&browser, &site);
}

#[test]
fn any_graph_is_laid_out_in_its_order_and_nothing_lies_on_anything() {
    let site = Site::start("");
    let browser = Browser::open(800, 600, Scheme::Light);
    browser.go_to(&site.url());
    let script = concat!("return (async () => {", include_str!("layout.js"), "})()");
    assert_eq!(browser.run(script), serde_json::json!([]));
}

#[test]
fn a_token_is_asked_for_or_taken_from_the_address_and_kept_out_of_it() {
    let site = Site::start("token = \"open sesame\"");
    let browser = Browser::open(800, 600, Scheme::Light);
    browser.go_to(&site.url());
    browser.wait_for_text("#token", "This pipeline wants a token");
    assert_eq!(browser.text("#main"), "");
    browser.type_into("#token-text", "open sesamE");
    browser.click("#token button");
    browser.wait_for_text("#token-wrong", "That was not it.");
    browser.type_into("#token-text", "open sesame");
    browser.press(&[key::ENTER]);
    browser.wait_for_text("#bottleneck", "Nothing is held up.");
    assert_eq!(browser.text("#token"), "");

    browser.go_to("about:blank");
    browser.go_to(&format!("{}#token=open%20sesame", site.url()));
    browser.wait_for_text("#bottleneck", "Nothing is held up.");
    assert_eq!(browser.run("return location.href"), site.url(), "nobody reads it over a shoulder");
    let kept = "return JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])";
    assert_eq!(browser.run(kept), "[\"\",{},{}]");
    let requests = browser.requests();
    assert!(requests.iter().all(|url| !url.contains("sesame") || url.contains("#token=")), "{requests:?}");
}
