//! The client against a real inferwire server, which answers by script: the prompt says what comes.
//!
//! INFERWIRE_SERVER is the command of the server, such as `python -m inferwire_server.cli`; without it the `inferwire` of
//! `.venv/bin` in the repository's root.

use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inferwire::v1::complete_request::Input;
use inferwire::v1::completion::StoppedBy;
use inferwire::v1::model_source::Source;
use inferwire::v1::part::Part as Kind;
use inferwire::v1::stream_complete_response::Event;
use inferwire::v1::stream_load_response::Event as LoadEvent;
use inferwire::v1::{
    CompleteRequest, DetokenizeRequest, EmbedRequest, ErrorReason, FinishReason, GetModelRequest, HealthRequest,
    ListBackendsRequest, ListModelsRequest, LoadRequest, LocalSource, ModelSource, ModelState, OutputOptions, Sampling,
    Stopping, TokenizeRequest, ToolCall, UnloadRequest, WatchModelsRequest,
};
use inferwire::{Call, Client, Code, Options, assistant, system, text_of, tool_result, user};

use crate::within;

struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let command =
            env::var("INFERWIRE_SERVER").unwrap_or_else(|_| root.join(".venv/bin/inferwire").display().to_string());
        let mut words = command.split_whitespace();
        let mut process = Command::new(words.next().expect("INFERWIRE_SERVER is empty"))
            .args(words)
            .args(["serve", "--scripted", "--address", "127.0.0.1:0", "--log-level", "warning", "--model-root"])
            .arg(root.join("service/inferwire_server/models"))
            // The server reads INFERWIRE_* as its own settings.
            .env_remove("INFERWIRE_SERVER")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("no server with {command:?}: {error}; see CONTRIBUTING.md"));
        let mut line = String::new();
        // The pipe stays open with `process`: the server says more than its first line.
        let stdout = process.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, stdout).read_line(&mut line).unwrap();
        let address = line.split_whitespace().last().expect("the server said nothing").to_owned();
        Self { process, address }
    }

    fn client(&self) -> Client {
        Client::connect(&self.address, Options::new()).unwrap()
    }

    fn client_without_retries(&self) -> Client {
        Client::connect(&self.address, Options::new().retry(false)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn script(events: &str) -> CompleteRequest {
    CompleteRequest::prompt(format!("{{\"events\": [{events}]}}"))
}

fn name_of(event: &Event) -> &'static str {
    match event {
        Event::Started(_) => "started",
        Event::Text(_) => "text",
        Event::Reasoning(_) => "reasoning",
        Event::ToolCall(_) => "tool_call",
        Event::Progress(_) => "progress",
        Event::Completion(_) => "completion",
    }
}

const ANSWER: &str = r#"{"reasoning": "hm"}, {"text": "Hel"}, {"text": "lo"},
    {"tool_call": {"index": 0, "id": "c0", "name": "add", "arguments": "{\"a\""}},
    {"tool_call": {"index": 0, "arguments": ": 1}"}}"#;

/// What the server writes is what the stream gives: started, deltas in order, and the completion last.
#[tokio::test]
async fn a_stream_is_in_order() {
    let server = Server::start();
    let mut stream = server.client().stream(script(ANSWER));
    let mut names = Vec::new();
    while let Some(event) = within(stream.next()).await {
        names.push(name_of(&event.unwrap().event.unwrap()));
    }
    assert_eq!(vec!["started", "reasoning", "text", "text", "tool_call", "tool_call", "completion"], names);
    assert_eq!(FinishReason::ToolCalls, stream.completion().unwrap().finish_reason());
}

/// A gathered stream is the unary answer; fragments of a tool call are one part.
#[tokio::test]
async fn gather_is_the_unary_answer() {
    let server = Server::start();
    let client = server.client();
    let sampling = Sampling { seed: Some(7), ..Sampling::default() };
    let request = CompleteRequest { sampling: Some(sampling), ..script(ANSWER) };
    let call = || Call::new(request.clone()).request_id("same");
    let mut unary = client.complete(call()).await.unwrap();
    let mut gathered = client.stream(call()).gather().await.unwrap();
    assert_eq!("Hello", text_of(unary.message.as_ref().unwrap()));
    let parts: Vec<_> = unary.message.as_ref().unwrap().parts.iter().filter_map(|part| part.part.clone()).collect();
    let call = ToolCall { id: "c0".into(), name: "add".into(), arguments: "{\"a\": 1}".into(), ..ToolCall::default() };
    assert_eq!((3, &Kind::ToolCall(call)), (parts.len(), &parts[2]));
    for response in [&mut unary, &mut gathered] {
        assert!(response.completion.as_mut().unwrap().timing.take().is_some());
    }
    assert_eq!(unary, gathered);
}

/// Who wants the text alone gets it as it comes, and the end beside it.
#[tokio::test]
async fn text_is_only_the_text() {
    let server = Server::start();
    let mut stream = server.client().stream(script(ANSWER));
    let mut pieces = Vec::new();
    let mut text = stream.text();
    while let Some(piece) = text.next().await {
        pieces.push(piece.unwrap());
    }
    assert_eq!(vec!["Hel", "lo"], pieces);
    assert_eq!(5, stream.completion().unwrap().usage.unwrap().completion_tokens);
}

/// A refusal before the first event arrives with its reason, delay and metadata.
#[tokio::test]
async fn an_error_before_the_first_event() {
    let server = Server::start();
    let client = server.client_without_retries();
    let request = || {
        script(
            r#"{"error": {"reason": "QUEUE_FULL", "message": "no room", "metadata": {"queueCapacity": "64"},
                "retry_delay_seconds": 0.5}}"#,
        )
    };
    let unary = client.complete(request()).await.unwrap_err();
    let stream = client.stream(request()).next().await.unwrap().unwrap_err();
    assert_eq!(unary, stream);
    assert_eq!((Code::ResourceExhausted, Some(ErrorReason::QueueFull)), (stream.code(), stream.known_reason()));
    assert_eq!(("no room", Some(Duration::from_millis(500))), (stream.message(), stream.retry_delay()));
    assert_eq!("64", stream.metadata()["queueCapacity"]);
}

/// A failure in mid-stream comes after the deltas, and says how many tokens were sent.
#[tokio::test]
async fn an_error_in_mid_stream() {
    let server = Server::start();
    let mut stream = server.client().stream(script(
        r#"{"text": "a", "repeat": 3}, {"delay_seconds": 0.2}, {"error": {"reason": "ENGINE_CRASHED"}}"#,
    ));
    let mut num_events = 0;
    let error = loop {
        match within(stream.next()).await.expect("the stream ended OK") {
            Ok(_) => num_events += 1,
            Err(error) => break error,
        }
    };
    assert!(num_events >= 2, "started and text");
    assert_eq!((Code::Aborted, "ENGINE_CRASHED"), (error.code(), error.reason()));
    assert_eq!("3", error.metadata()["tokensEmitted"]);
}

/// UNAVAILABLE before the first event is tried again, no sooner than the server asks.
#[tokio::test]
async fn retries() {
    let server = Server::start();
    let request =
        |seconds| script(&format!(r#"{{"error": {{"reason": "MODEL_LOADING", "retry_delay_seconds": {seconds}}}}}"#));
    let begin = Instant::now();
    let error = server.client().complete(request(0.3)).await.unwrap_err();
    assert_eq!((Code::Unavailable, "MODEL_LOADING"), (error.code(), error.reason()));
    assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
    let begin = Instant::now();
    server.client_without_retries().complete(request(10.0)).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// A stop text ends the answer before it, and the completion says which.
#[tokio::test]
async fn a_stop_text() {
    let server = Server::start();
    let stopping = Stopping { stop: vec!["END".into()], ..Stopping::default() };
    let request = CompleteRequest { stopping: Some(stopping), ..script(r#"{"text": "one E"}, {"text": "ND two"}"#) };
    let answer = server.client().stream(request).gather().await.unwrap();
    assert_eq!("one ", text_of(&answer.message.unwrap()));
    let completion = answer.completion.unwrap();
    assert_eq!(FinishReason::StopString, completion.finish_reason());
    assert_eq!(Some(StoppedBy::StopString("END".into())), completion.stopped_by);
}

/// Zero is said: it is a seed like any other, and no tokens at all. Unset is not zero.
#[tokio::test]
async fn zero_is_not_unset() {
    let server = Server::start();
    let client = server.client();
    let seeded = |seed| {
        let sampling = Sampling { seed, ..Sampling::default() };
        CompleteRequest { sampling: Some(sampling), ..CompleteRequest::prompt("some words to answer") }
    };
    let first = client.complete(seeded(Some(0))).await.unwrap();
    let second = client.complete(seeded(Some(0))).await.unwrap();
    assert_eq!(Some(0), first.started.unwrap().sampling.unwrap().seed);
    assert_eq!(first.message, second.message);
    let drawn = client.complete(seeded(None)).await.unwrap();
    assert!(drawn.started.unwrap().sampling.unwrap().seed.is_some());

    let stopping = Stopping { max_tokens: Some(0), ..Stopping::default() };
    let empty = CompleteRequest { stopping: Some(stopping), ..CompleteRequest::prompt("some words") };
    let answer = client.complete(empty).await.unwrap();
    assert_eq!(
        (FinishReason::Length, 0),
        (answer.completion.unwrap().finish_reason(), answer.message.unwrap().parts.len())
    );
}

/// The call's own deadline ends it, before the first event and after it.
#[tokio::test]
async fn deadline() {
    let server = Server::start();
    let client = server.client();
    for events in [r#"{"delay_seconds": 30}"#, r#"{"text": "a"}, {"delay_seconds": 30}"#] {
        let call = || Call::new(script(events)).timeout(Duration::from_millis(300));
        for error in [
            within(client.complete(call())).await.unwrap_err(),
            within(client.stream(call()).gather()).await.unwrap_err(),
        ] {
            assert_eq!(Code::DeadlineExceeded, error.code());
        }
    }
    idle(&client).await;
}

/// Who drops a stream after some events ends the generation at the server.
#[tokio::test]
async fn leaving_early_cancels() {
    let server = Server::start();
    let client = server.client();
    let mut stream =
        client.stream(script(r#"{"text": "a"}, {"delay_seconds": 0.05}, {"text": "b"}, {"delay_seconds": 600}"#));
    for _ in 0..3 {
        within(stream.next()).await.unwrap().unwrap();
    }
    assert_eq!(1, in_flight(&client).await);
    drop(stream);
    idle(&client).await;
}

/// A request's id and its progress are told back.
#[tokio::test]
async fn the_request_id_is_told_back() {
    let server = Server::start();
    let output = OutputOptions { progress: true, message: true, ..OutputOptions::default() };
    let request = CompleteRequest { output: Some(output), ..script(ANSWER) };
    let mut stream = server.client().stream(Call::new(request).request_id("mine"));
    let mut names = Vec::new();
    while let Some(event) = stream.next().await {
        names.push(name_of(&event.unwrap().event.unwrap()));
    }
    assert_eq!("mine", stream.started().unwrap().id);
    assert_eq!(["started", "progress"], names[..2]);
    assert_eq!("Hello", text_of(stream.completion().unwrap().message.as_ref().unwrap()));
}

/// A conversation can be told whole, and the answer is to its last message.
#[tokio::test]
async fn a_chat() {
    let server = Server::start();
    let messages = [
        system("Be brief."),
        user("What is 1 + 1?"),
        assistant("A tool knows."),
        user(r#"{"events": [{"text": "two"}]}"#),
    ];
    let request = CompleteRequest::chat(messages);
    assert!(matches!(&request.input, Some(Input::Chat(chat)) if chat.messages.len() == 4));
    let answer = server.client().complete(request).await.unwrap();
    assert_eq!("two", text_of(&answer.message.unwrap()));
    assert_eq!("", text_of(&tool_result("c0", "2")));
}

/// Answers and requests beyond tonic's own limit of 4 MiB pass; our own limits answer with a reason.
#[tokio::test]
async fn large_messages() {
    let server = Server::start();
    let client = server.client();
    let kilobyte = "é".repeat(512);
    let request = script(&format!(r#"{{"text": "{kilobyte}", "repeat": 6000}}"#));
    let answer = within(client.complete(request)).await.unwrap();
    assert_eq!(6000 * 1024, text_of(&answer.message.unwrap()).len());
    let error = client.complete(CompleteRequest::prompt("x".repeat(20 << 20))).await.unwrap_err();
    assert_eq!(Some(ErrorReason::PromptTooLarge), error.known_reason());
}

/// The other RPCs of the inference service.
#[tokio::test]
async fn questions() {
    let server = Server::start();
    let client = server.client();
    let models = client.list_models(ListModelsRequest {}).await.unwrap();
    assert_eq!(("scripted", 1), (models.default_model.as_str(), models.models.len()));
    let model = client.get_model(GetModelRequest { model: "scripted".into() }).await.unwrap().model.unwrap();
    assert_eq!((ModelState::Ready, "scripted"), (model.state(), model.backend.as_str()));
    let mut watch = client.watch_models(WatchModelsRequest {});
    assert_eq!(1, within(watch.next()).await.unwrap().unwrap().models.len());
    assert!(!client.list_backends(ListBackendsRequest {}).await.unwrap().backends.is_empty());
    assert!(client.health(HealthRequest {}).await.unwrap().ready);

    assert_eq!(3, client.count_tokens(CompleteRequest::prompt("one two three")).await.unwrap().tokens);
    let text = TokenizeRequest { text: "é".into(), ..TokenizeRequest::default() };
    let tokens = client.tokenize(text).await.unwrap();
    assert_eq!((vec![0xc3, 0xa9], vec![vec![0xc3], vec![0xa9]]), (tokens.token_ids, tokens.pieces));
    let half = DetokenizeRequest { token_ids: vec![0xc3], ..DetokenizeRequest::default() };
    assert_eq!(vec![0xc3], client.detokenize(half).await.unwrap().data);

    let nope = client.get_model(GetModelRequest { model: "nope".into() }).await.unwrap_err();
    assert_eq!((Code::NotFound, "MODEL_NOT_FOUND", "nope"), (nope.code(), nope.reason(), nope.resource()));
    let texts = EmbedRequest { inputs: vec!["a".into()], ..EmbedRequest::default() };
    let refused = client.embed(texts).await.unwrap_err();
    assert_eq!(Some(ErrorReason::UnsupportedByBackend), refused.known_reason());
    let wrong = Sampling { temperature: Some(-1.0), ..Sampling::default() };
    let wrong = CompleteRequest { sampling: Some(wrong), ..CompleteRequest::prompt("a") };
    assert_eq!("sampling.temperature", client.complete(wrong).await.unwrap_err().violations()[0].field);
}

/// A model is loaded from the server's root and unloaded again; what cannot be loaded says why.
#[tokio::test]
async fn loads() {
    let server = Server::start();
    let client = server.client();
    let load = |path: &str| LoadRequest {
        model: "mine".into(),
        source: Some(ModelSource { source: Some(Source::Local(LocalSource { path: path.into() })) }),
        ..LoadRequest::default()
    };
    let unload = || UnloadRequest { model: "mine".into(), ..UnloadRequest::default() };
    let outside = client.load(load("../README.md")).await.unwrap_err();
    assert_eq!((Code::InvalidArgument, "MODEL_PATH_NOT_ALLOWED"), (outside.code(), outside.reason()));
    let mut missing = client.stream_load(load("missing.gguf"));
    assert_eq!("MODEL_FILE_NOT_FOUND", missing.next().await.unwrap().unwrap_err().reason());
    assert!(!client.unload(unload()).await.unwrap().was_loaded);

    let mut way = client.stream_load(load("demo.gguf"));
    let mut last = None;
    while let Some(event) = within(way.next()).await {
        last = event.unwrap().event;
    }
    let Some(LoadEvent::Loaded(loaded)) = last else { panic!("`loaded` is last, not {last:?}") };
    assert_eq!(ModelState::Ready, loaded.model.unwrap().state());
    assert!(client.load(load("demo.gguf")).await.unwrap().already_loaded);
    assert!(client.unload(unload()).await.unwrap().was_loaded);
    let error = client.unload(UnloadRequest::default()).await.unwrap_err();
    assert_eq!((Code::InvalidArgument, "model"), (error.code(), error.violations()[0].field.as_str()));
}

async fn in_flight(client: &Client) -> u32 {
    let health = client.health(HealthRequest {}).await.unwrap();
    health.models.iter().map(|model| model.streams_in_flight).sum()
}

/// Waits until no stream holds a model any more.
async fn idle(client: &Client) {
    within(async {
        while in_flight(client).await > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
