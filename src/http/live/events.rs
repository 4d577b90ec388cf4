//! Server-sent events: `history` once, then a `snapshot` each second.

use std::convert::Infallible;
use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};

use super::{Live, lock};

/// Answers a page that wants to stay up to date, until it goes.
pub fn stream(live: &Arc<Live>) -> Response {
    let Ok(seat) = live.viewers.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    };
    live.is_watched();
    let history = event("history", &lock(&live.history).json().to_string());
    let seconds = stream::unfold((live.clone(), live.last.clone(), seat), |(live, mut last, seat)| async move {
        last.changed().await.ok()?;
        live.is_watched();
        let second = last.borrow_and_update().clone();
        Some((event("snapshot", &second.text), (live, last, seat)))
    });
    let events = stream::once(async move { history }).chain(seconds);
    ([(header::CACHE_CONTROL, "no-store")], Sse::new(events).keep_alive(KeepAlive::default())).into_response()
}

fn event(name: &str, text: &str) -> Result<Event, Infallible> {
    Ok(Event::default().event(name).data(text))
}
