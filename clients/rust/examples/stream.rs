//! Prints an answer as it is made: `cargo run --example stream -- Once upon a time`

use std::io::Write;

use inferwire::v1::{CompleteRequest, Stopping};
use inferwire::{Client, Error, Options};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::connect("127.0.0.1:50051", Options::new())?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let request = CompleteRequest {
        stopping: Some(Stopping { max_tokens: Some(64), ..Stopping::default() }),
        ..CompleteRequest::prompt(words.join(" "))
    };
    let mut stream = client.stream(request);
    let mut text = stream.text();
    while let Some(piece) = text.next().await {
        print!("{}", piece?);
        // Who prints does so for a person who waits.
        let _ = std::io::stdout().flush();
    }
    println!();
    Ok(())
}
