//! The client through its public door: against a real inferwire server, and against servers that say what a test wants.

mod gather;
mod scripted;
mod server;
mod tls;
mod wire;

use std::time::Duration;

use inferwire::v1::complete_request::Input;
use inferwire::v1::stream_complete_response::Event;
use inferwire::v1::{CompleteRequest, Completion, FinishReason, Started, StreamCompleteResponse, TextDelta};

/// Waits for what must happen, and fails instead of hanging.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it takes too long")
}

fn event(event: Event) -> StreamCompleteResponse {
    StreamCompleteResponse { event: Some(event) }
}

fn started() -> StreamCompleteResponse {
    event(Event::Started(Started { id: "r1".into(), model: "demo".into(), ..Started::default() }))
}

fn text(piece: &str) -> StreamCompleteResponse {
    event(Event::Text(TextDelta { text: piece.into(), ..TextDelta::default() }))
}

fn completion() -> StreamCompleteResponse {
    event(Event::Completion(Completion { finish_reason: FinishReason::Stop.into(), ..Completion::default() }))
}

/// A whole lawful stream.
fn answer(pieces: &[&str]) -> Vec<StreamCompleteResponse> {
    let texts = pieces.iter().map(|piece| text(piece));
    [started()].into_iter().chain(texts).chain([completion()]).collect()
}

fn hi() -> CompleteRequest {
    CompleteRequest { input: Some(Input::Prompt("Hi".into())), ..CompleteRequest::default() }
}
