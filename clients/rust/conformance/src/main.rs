//! Makes the calls that stdin tells and says on stdout what their caller saw, one line of JSON each, until stdin closes. A
//! line is answered before the next is read. It uses the client and the generated stubs as anyone would.
//!
//! A line is `{"id", "connect", "call"}`, its answer `{"id", "messages", "error", "left_early"}`, or `{"id", "fault"}` when the
//! line cannot be read:
//!
//! - connect: `target`; `tls`: false, or an object of the paths `ca`, `cert` and `key` and of `server_name`; `token`,
//!   `default_timeout_ms`, `retry`. Lines with the same object share one client.
//! - call: `method`, `request` (base64 of the message), `timeout_ms`, `metadata`, `cancel_after`: leave the stream after so
//!   many events.
//! - messages: base64 of each message that the caller saw. error: null, or what the client's error tells.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use inferwire::v1::CompleteRequest;
use inferwire::{Call, Client, Error, EventStream, Options, Tls};
use prost::Message;
use serde_json::{Map, Value, json};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Why a line cannot be read.
type Fault = Box<dyn std::error::Error>;

fn main() -> io::Result<()> {
    // A worker of its own, so that connections live on while this thread waits for a line: a cancel is to arrive.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut clients = HashMap::new();
    for line in io::stdin().lock().lines() {
        let answer = runtime.block_on(answer(&line?, &mut clients));
        let mut out = io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

async fn answer(line: &str, clients: &mut HashMap<String, Client>) -> Value {
    let line: Value = match serde_json::from_str(line) {
        Ok(line) => line,
        Err(error) => return json!({"id": null, "fault": error.to_string()}),
    };
    match seen(&line, clients).await {
        Ok(seen) => json!({
            "id": line["id"],
            "messages": seen.messages,
            "error": seen.error.as_ref().map(told),
            "left_early": seen.left_early,
        }),
        Err(fault) => json!({"id": line["id"], "fault": fault.to_string()}),
    }
}

/// What the caller of one call saw.
#[derive(Default)]
struct Seen {
    messages: Vec<String>,
    error: Option<Error>,
    left_early: bool,
}

impl Seen {
    fn add(&mut self, message: &impl Message) {
        self.messages.push(BASE64_STANDARD.encode(message.encode_to_vec()));
    }

    fn unary(outcome: Result<impl Message, Error>) -> Self {
        let mut seen = Self::default();
        match outcome {
            Ok(message) => seen.add(&message),
            Err(error) => seen.error = Some(error),
        }
        seen
    }

    /// Takes one event and returns whether the caller goes on.
    fn goes_on(&mut self, event: Result<impl Message, Error>, cancel_after: Option<u64>) -> bool {
        match event {
            Ok(event) => self.add(&event),
            Err(error) => self.error = Some(error),
        }
        self.left_early = self.error.is_none() && cancel_after.is_some_and(|n| self.messages.len() as u64 >= n);
        self.error.is_none() && !self.left_early
    }
}

async fn seen(line: &Value, clients: &mut HashMap<String, Client>) -> Result<Seen, Fault> {
    let key = line["connect"].to_string();
    let client = match clients.get(&key) {
        Some(client) => client.clone(),
        None => match connect(&line["connect"])? {
            Ok(client) => clients.entry(key).or_insert(client).clone(),
            Err(error) => return Ok(Seen { error: Some(error), ..Seen::default() }),
        },
    };
    let call = &line["call"];
    let request = BASE64_STANDARD.decode(text(call, "request").unwrap_or_default())?;
    let cancel_after = call["cancel_after"].as_u64();
    Ok(match text(call, "method").ok_or("call.method is missing")? {
        "Complete" => Seen::unary(client.complete(read(&request, call)?).await),
        "GatherStream" => Seen::unary(client.stream(read(&request, call)?).gather().await),
        "Embed" => Seen::unary(client.embed(read(&request, call)?).await),
        "CountTokens" => Seen::unary(client.count_tokens(read(&request, call)?).await),
        "Tokenize" => Seen::unary(client.tokenize(read(&request, call)?).await),
        "Detokenize" => Seen::unary(client.detokenize(read(&request, call)?).await),
        "ListModels" => Seen::unary(client.list_models(read(&request, call)?).await),
        "GetModel" => Seen::unary(client.get_model(read(&request, call)?).await),
        "ListBackends" => Seen::unary(client.list_backends(read(&request, call)?).await),
        "Health" => Seen::unary(client.health(read(&request, call)?).await),
        "Load" => Seen::unary(client.load(read(&request, call)?).await),
        "Unload" => Seen::unary(client.unload(read(&request, call)?).await),
        "StreamComplete" => {
            let mut seen = Seen::default();
            let mut stream = client.stream(read::<CompleteRequest>(&request, call)?);
            while let Some(event) = stream.next().await {
                if !seen.goes_on(event, cancel_after) {
                    break;
                }
            }
            seen
        }
        "StreamLoad" => stream(client.stream_load(read(&request, call)?), cancel_after).await,
        "WatchModels" => stream(client.watch_models(read(&request, call)?), cancel_after).await,
        "HealthCheck" => {
            let mut stub = HealthClient::new(client.connection());
            let outcome = stub.check(tonic_request::<HealthCheckRequest>(&request, call)?).await;
            Seen::unary(outcome.map(tonic::Response::into_inner).map_err(Error::from))
        }
        "HealthWatch" => {
            let mut stub = HealthClient::new(client.connection());
            let mut seen = Seen::default();
            match stub.watch(tonic_request::<HealthCheckRequest>(&request, call)?).await {
                Ok(watch) => {
                    let mut watch = watch.into_inner();
                    while let Some(event) = watch.message().await.transpose() {
                        if !seen.goes_on(event.map_err(Error::from), cancel_after) {
                            break;
                        }
                    }
                }
                Err(status) => seen.error = Some(status.into()),
            }
            seen
        }
        other => return Err(format!("no method {other:?}").into()),
    })
}

async fn stream(mut events: EventStream<impl Message>, cancel_after: Option<u64>) -> Seen {
    let mut seen = Seen::default();
    while let Some(event) = events.next().await {
        if !seen.goes_on(event, cancel_after) {
            break;
        }
    }
    seen
}

/// Returns the client of a `connect` object. What the client itself refuses is an answer, not a fault.
fn connect(connect: &Value) -> Result<Result<Client, Error>, Fault> {
    let mut options = Options::new();
    if let Some(token) = text(connect, "token") {
        options = options.token(token);
    }
    if let Some(millis) = connect["default_timeout_ms"].as_u64() {
        options = options.default_timeout(Duration::from_millis(millis));
    }
    if let Some(retry) = connect["retry"].as_bool() {
        options = options.retry(retry);
    }
    match &connect["tls"] {
        Value::Bool(false) => options = options.plain_text(),
        Value::Object(files) => options = options.tls(tls(files)?),
        Value::Null => {}
        other => return Err(format!("connect.tls is {other}").into()),
    }
    let target = text(connect, "target").ok_or("connect.target is missing")?;
    Ok(Client::connect(target, options))
}

fn tls(files: &Map<String, Value>) -> Result<Tls, Fault> {
    let text = |name| files.get(name).and_then(Value::as_str);
    let mut tls = Tls::new();
    if let Some(path) = text("ca") {
        tls = tls.ca(std::fs::read(path)?);
    }
    if let (Some(certificate), Some(key)) = (text("cert"), text("key")) {
        tls = tls.identity(std::fs::read(certificate)?, std::fs::read(key)?);
    }
    if let Some(name) = text("server_name") {
        tls = tls.server_name(name);
    }
    Ok(tls)
}

fn read<Q: Message + Default>(request: &[u8], call: &Value) -> Result<Call<Q>, Fault> {
    let mut made = Call::new(Q::decode(request)?);
    if let Some(millis) = call["timeout_ms"].as_u64() {
        made = made.timeout(Duration::from_millis(millis));
    }
    for (key, value) in call["metadata"].as_object().into_iter().flatten() {
        made = made.metadata(key, value.as_str().ok_or("metadata is no text")?);
    }
    Ok(made)
}

/// Returns the same for a stub that is not the client's own.
fn tonic_request<Q: Message + Default>(request: &[u8], call: &Value) -> Result<tonic::Request<Q>, Fault> {
    let mut made = tonic::Request::new(Q::decode(request)?);
    if let Some(millis) = call["timeout_ms"].as_u64() {
        made.set_timeout(Duration::from_millis(millis));
    }
    for (key, value) in call["metadata"].as_object().into_iter().flatten() {
        let key: tonic::metadata::AsciiMetadataKey = key.parse()?;
        made.metadata_mut().append(key, value.as_str().ok_or("metadata is no text")?.parse()?);
    }
    Ok(made)
}

fn told(error: &Error) -> Value {
    let violations = error.violations().iter();
    json!({
        "code": error.code_name(),
        "reason": error.reason(),
        "message": error.message(),
        "metadata": error.metadata(),
        "retry_delay_ms": error.retry_delay().map(|delay| delay.as_millis() as u64),
        "violations": violations.map(|v| json!({"field": v.field, "description": v.description})).collect::<Vec<_>>(),
        "resource": error.resource(),
    })
}

fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object[name].as_str()
}
