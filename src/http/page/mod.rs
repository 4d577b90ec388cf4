//! The live page: files within the binary, so that it works offline and needs no build.
//!
//! | file | what is in it |
//! |---|---|
//! | `index.html` | the parts of the page, empty |
//! | `style.css` | light and dark, wide and narrow |
//! | `main.js` | puts each second into the parts |
//! | `stream.js` | the connection: events, token, reconnecting |
//! | `layout.js` | where the stages of the graph stand |
//! | `graph.js` | the graph, drawn as SVG |
//! | `charts.js` | lines over the last minutes, and those around an anomaly |
//! | `lists.js` | tables and lists |
//! | `format.js` | numbers and times as people read them; elements made without HTML |

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Where the files are.
pub const FOLDER: &str = "/page/";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const FILES: [(&str, &str, &str); 9] = [
    ("style.css", CSS, include_str!("style.css")),
    ("main.js", JS, include_str!("main.js")),
    ("stream.js", JS, include_str!("stream.js")),
    ("layout.js", JS, include_str!("layout.js")),
    ("graph.js", JS, include_str!("graph.js")),
    ("charts.js", JS, include_str!("charts.js")),
    ("lists.js", JS, include_str!("lists.js")),
    ("format.js", JS, include_str!("format.js")),
    ("icon.svg", SVG, include_str!("icon.svg")),
];

/// The page itself.
pub async fn index() -> Response {
    answer(HTML, include_str!("index.html"))
}

/// What it is made of.
pub async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => answer(kind, text),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn answer(kind: &'static str, text: &'static str) -> Response {
    // Another version may answer at this address tomorrow.
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}
