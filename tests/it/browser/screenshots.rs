//! The page on a phone and on a desk. With `SCREENSHOTS=FOLDER` the pictures of the README are taken, of the demo after
//! five minutes.

use std::path::Path;
use std::time::Duration;

use base64::Engine;

use super::driver::{Browser, Scheme};
use crate::http::free_port;
use crate::process::{Process, root};

/// So that the lines are full.
const FIVE_MINUTES: Duration = Duration::from_secs(310);

#[test]
fn the_demo_fits_on_a_phone_and_on_a_desk() {
    let folder = tempfile::tempdir().expect("a folder");
    let (page, broker) = (format!("127.0.0.1:{}", free_port()), free_port().to_string());
    let demo = std::fs::read_to_string(root().join("pipelines/demo.toml")).expect("it ships");
    let file = folder.path().join("demo.toml");
    let http = format!("[http]\nlisten = \"{page}\"\n\n[schema.telemetry]");
    std::fs::write(&file, demo.replacen("[schema.telemetry]", &http, 1)).expect("writable");
    let (dir, file) = (folder.path().display().to_string(), file.display().to_string());
    let variables = [("DEMO_DIR", dir.as_str()), ("DEMO_PORT", &broker)];
    let mut pipeline = Process::start(&["run", &file], &variables, folder.path(), "demo");
    pipeline.wait_for_log("live page");

    let wanted = std::env::var_os("SCREENSHOTS");
    let looks = [("desktop", 1280, 900, Scheme::Light, 1090), ("phone", 390, 844, Scheme::Dark, 1400)];
    let browsers = looks.map(|(name, width, height, scheme, picture_height)| {
        let browser = Browser::open(width, height, scheme);
        browser.go_to(&format!("http://{page}/"));
        browser.wait_for_text("#bottleneck", "Nothing is held up.");
        browser.wait_for_text("#anomalies", "was expected");
        (name, width, picture_height, browser)
    });
    if wanted.is_some() {
        std::thread::sleep(FIVE_MINUTES);
    }
    for (name, width, height, browser) in &browsers {
        let wide = browser.run("return document.documentElement.scrollWidth").as_u64();
        assert_eq!(wide, Some(u64::from(*width)), "nothing sticks out on a {name}");
        assert_eq!(browser.complaints(), Vec::<String>::new());
        if let Some(folder) = &wanted {
            let picture = base64::engine::general_purpose::STANDARD.decode(browser.picture(*width, *height));
            let file = root().join(Path::new(folder)).join(format!("live-{name}.png"));
            std::fs::write(file, picture.expect("base64")).expect("the folder is there");
        }
    }
}
