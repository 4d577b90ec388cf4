//! A headless Chromium, told what to do by the W3C WebDriver protocol.
//!
//! A dozen requests of JSON over HTTP: the clients that there are for Rust (fantoccini, thirtyfour) bring a dozen crates
//! for them, and a Python one a second language to the test.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::process::wait_until;
use crate::services;

/// As WebDriver names the property of an element's reference.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys by their places in WebDriver's private area.
pub mod key {
    pub const TAB: &str = "\u{e004}";
    pub const ENTER: &str = "\u{e007}";
    pub const ESCAPE: &str = "\u{e00c}";
    pub const RIGHT: &str = "\u{e014}";
}

/// Whether the page is to be light or dark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Light,
    Dark,
}

/// A browser with one page. It ends when dropped.
pub struct Browser {
    runtime: Runtime,
    client: reqwest::Client,
    session: String,
}

impl Browser {
    /// A window of so many pixels.
    pub fn open(width: u32, height: u32, scheme: Scheme) -> Self {
        let driver = services::variable("browser", "TEST_WEBDRIVER_URL");
        let runtime = Runtime::new().expect("a runtime");
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().expect("a client");
        let arguments = [
            "--headless=new",
            // It runs in a chroot, as a user who may not make namespaces.
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-proxy-server",
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
            "goog:chromeOptions": { "binary": "/usr/lib/chromium/chromium", "args": arguments },
        } } });
        let mut browser = Self { runtime, client, session: format!("{driver}/session") };
        let session = browser.post("", &capabilities);
        browser.session = format!("{driver}/session/{}", session["sessionId"].as_str().expect("an id"));
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.tell_chromium("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if scheme == Scheme::Dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.tell_chromium("Emulation.setEmulatedMedia", &media);
        browser
    }

    pub fn go_to(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// What JavaScript gives back, run in the page. Not bound by the page's own policy.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The text of the first element that matches, as a person sees it; empty if there is none or it is hidden.
    pub fn text(&self, selector: &str) -> String {
        let script = format!(
            "const found = document.querySelector({}); return found?.checkVisibility() ? found.innerText : ''",
            json!(selector)
        );
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    /// An attribute of the first element that matches; empty if there is none.
    pub fn attribute(&self, selector: &str, name: &str) -> String {
        let script = format!("return document.querySelector({})?.getAttribute({}) ?? ''", json!(selector), json!(name));
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an element shows a text.
    pub fn wait_for_text(&self, selector: &str, text: &str) {
        wait_until(&format!("{selector} to say \"{text}\""), || self.text(selector).contains(text).then_some(()));
    }

    /// Presses keys one after the other, wherever the focus is.
    pub fn press(&self, keys: &[&str]) {
        let strokes: Vec<Value> = keys
            .iter()
            .flat_map(|key| [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })])
            .collect();
        self.post("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] }));
    }

    /// Types into the element that matches.
    pub fn type_into(&self, selector: &str, text: &str) {
        self.post(&format!("/element/{}/value", self.element(selector)), &json!({ "text": text }));
    }

    pub fn click(&self, selector: &str) {
        self.post(&format!("/element/{}/click", self.element(selector)), &json!({}));
    }

    /// The role and the name by which a screen reader knows an element.
    pub fn known_as(&self, selector: &str) -> (String, String) {
        let element = self.element(selector);
        let word = |what: &str| self.get(&format!("/element/{element}/{what}")).as_str().unwrap_or_default().to_owned();
        (word("computedrole"), word("computedlabel"))
    }

    /// What the page has complained of since the last call: errors and refusals of its policy.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().expect("a list").iter();
        entries.filter(|entry| entry["level"] == "SEVERE").map(|entry| entry["message"].to_string()).collect()
    }

    /// The URLs that the page has asked for since the last call.
    pub fn requests(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "performance" }));
        let messages = log.as_array().expect("a list").iter().filter_map(|entry| entry["message"].as_str());
        let messages = messages.filter_map(|text| serde_json::from_str::<Value>(text).ok());
        let sent = messages.filter(|message| message["message"]["method"] == "Network.requestWillBeSent");
        sent.filter_map(|message| message["message"]["params"]["request"]["url"].as_str().map(str::to_owned)).collect()
    }

    /// The upper part of the page, as PNG in base64.
    pub fn picture(&self, width: u32, height: u32) -> String {
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let picture = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        self.tell_chromium("Page.captureScreenshot", &picture)["data"].as_str().expect("a picture").to_owned()
    }

    fn tell_chromium(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    fn element(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().expect("a reference").to_owned()
    }

    fn get(&self, path: &str) -> Value {
        self.ask(self.client.get(format!("{}{path}", self.session)))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.ask(self.client.post(format!("{}{path}", self.session)).body(body.to_string()))
    }

    fn ask(&self, request: reqwest::RequestBuilder) -> Value {
        let text = self.runtime.block_on(async { request.send().await?.text().await }).expect("the driver answers");
        let mut answer: Value = serde_json::from_str(&text).expect("JSON");
        let value = answer["value"].take();
        assert!(value["error"].is_null() || !value["stacktrace"].is_string(), "{value:#}");
        value
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let request = self.client.delete(&self.session);
        // A driver that is gone has no browser left.
        self.runtime.block_on(async { request.send().await }).ok();
    }
}
