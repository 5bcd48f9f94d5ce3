//! A server of HTTP/2 frames that answers one call after another from a test's script, lawful or not, and remembers what
//! it was asked.

use std::future::{pending, poll_fn};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, Request, Response};
use prost::Message;
use prost_types::Any;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// One thing that the server does in a call.
#[derive(Clone)]
pub enum Step {
    /// Sends headers; a message sends them too when nothing was sent yet.
    Headers,
    Message(Bytes),
    /// Ends the call with OK.
    Ok,
    /// Ends the call with a failure, as Trailers-Only when nothing was sent yet.
    Refusal(Refusal),
    /// Ends the call as a proxy does that reaches no server.
    Http(u16),
    /// Ends the stream without any status.
    EndOfStream,
    Reset(Reason),
    /// Says GOAWAY: this connection takes no further call. Nothing of the call itself is answered.
    GoAway,
    /// Cuts the connection.
    Cut,
    /// Sends nothing more until the caller is gone, which `Server::gone` then tells.
    Hang,
}

/// A failure as the contract tells it.
#[derive(Clone, Default)]
pub struct Refusal {
    pub code: i32,
    pub message: &'static str,
    pub reason: &'static str,
    pub domain: Option<&'static str>,
    pub metadata: Vec<(&'static str, &'static str)>,
    pub retry_delay: Option<Duration>,
    pub violations: Vec<(&'static str, &'static str)>,
    pub resource: &'static str,
    pub pushback: Option<&'static str>,
    /// What grpc-status-details-bin holds in place of all this.
    pub raw_details: Option<&'static str>,
}

pub type Script = Vec<Step>;

/// What a call said.
pub struct Asked {
    pub path: String,
    pub headers: HeaderMap,
    pub message: Vec<u8>,
}

pub struct Server {
    pub address: String,
    state: Arc<State>,
    gone: tokio::sync::Mutex<mpsc::UnboundedReceiver<Reason>>,
}

struct State {
    scripts: Mutex<Vec<Script>>,
    asked: Mutex<Vec<Asked>>,
    num_connections: Mutex<usize>,
    gone: mpsc::UnboundedSender<Reason>,
}

/// What a call may do to its connection.
enum Order {
    GoAway,
    Cut,
}

impl Server {
    /// Starts one that plays each script once, and the last for all further calls.
    pub async fn start(scripts: Vec<Script>) -> Self {
        Self::start_with(scripts, None).await
    }

    pub async fn start_with(scripts: Vec<Script>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, gone) = mpsc::unbounded_channel();
        let state = Arc::new(State {
            scripts: Mutex::new(scripts),
            asked: Mutex::default(),
            num_connections: Mutex::default(),
            gone: sender,
        });
        let accepting = state.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (state, tls) = (accepting.clone(), tls.clone());
                *state.num_connections.lock().unwrap() += 1;
                tokio::spawn(async move {
                    match tls {
                        None => serve(socket, state).await,
                        // A client that does not like the certificate is gone.
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                serve(socket, state).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, state, gone: tokio::sync::Mutex::new(gone) }
    }

    /// Takes what was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.asked.lock().unwrap())
    }

    pub fn num_connections(&self) -> usize {
        *self.state.num_connections.lock().unwrap()
    }

    /// Waits until a caller left a call that hangs, and returns how.
    pub async fn gone(&self) -> Reason {
        crate::within(async { self.gone.lock().await.recv().await.unwrap() }).await
    }
}

impl State {
    fn next_script(&self) -> Script {
        let mut scripts = self.scripts.lock().unwrap();
        if scripts.len() > 1 { scripts.remove(0) } else { scripts[0].clone() }
    }
}

async fn serve(socket: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    let mut connection = h2::server::handshake(socket).await.unwrap();
    let (orders, mut ordered) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            call = connection.accept() => match call {
                Some(Ok((request, respond))) => {
                    tokio::spawn(answer(request, respond, state.clone(), orders.clone()));
                }
                _ => return,
            },
            order = ordered.recv() => match order {
                Some(Order::GoAway) => connection.abrupt_shutdown(Reason::NO_ERROR),
                Some(Order::Cut) | None => {
                    // What was said before is flushed first.
                    return poll_fn(|cx| {
                        let _ = connection.poll_closed(cx);
                        Poll::Ready(())
                    })
                    .await;
                }
            },
        }
    }
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    state: Arc<State>,
    orders: mpsc::UnboundedSender<Order>,
) {
    let (head, mut body) = request.into_parts();
    let mut message = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        message.extend_from_slice(&data);
    }
    // A message begins with five bytes of frame.
    let message = message.split_off(message.len().min(5));
    state.asked.lock().unwrap().push(Asked { path: head.uri.path().to_owned(), headers: head.headers, message });

    let mut sending: Option<SendStream<Bytes>> = None;
    for step in state.next_script() {
        match step {
            Step::Headers => {
                sending = Some(respond.send_response(headers(), false).unwrap());
            }
            Step::Message(message) => {
                let stream = sending.get_or_insert_with(|| respond.send_response(headers(), false).unwrap());
                let mut frame = vec![0];
                frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
                frame.extend_from_slice(&message);
                if stream.send_data(frame.into(), false).is_err() {
                    return;
                }
            }
            Step::Ok => end(&mut respond, sending.take(), trailers(&Refusal::default())),
            Step::Refusal(refusal) => end(&mut respond, sending.take(), trailers(&refusal)),
            Step::Http(status) => {
                let response = Response::builder().status(status).body(()).unwrap();
                respond.send_response(response, true).unwrap();
            }
            Step::EndOfStream => sending.take().unwrap().send_data(Bytes::new(), true).unwrap(),
            Step::Reset(reason) => {
                // A reset overtakes what is not written yet: the connection's task gets its turn first.
                tokio::task::yield_now().await;
                match &mut sending {
                    Some(stream) => stream.send_reset(reason),
                    None => respond.send_reset(reason),
                }
            }
            Step::GoAway => orders.send(Order::GoAway).unwrap(),
            Step::Cut => orders.send(Order::Cut).unwrap(),
            Step::Hang => {
                let reason = match &mut sending {
                    Some(stream) => poll_fn(|cx| stream.poll_reset(cx)).await,
                    None => poll_fn(|cx| respond.poll_reset(cx)).await,
                };
                // The test may be over.
                let _ = state.gone.send(reason.unwrap_or(Reason::CANCEL));
            }
        }
    }
    // To let go of a call that has not ended would reset it.
    pending::<()>().await;
}

fn headers() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).unwrap()
}

fn end(respond: &mut SendResponse<Bytes>, sending: Option<SendStream<Bytes>>, trailers: HeaderMap) {
    match sending {
        Some(mut stream) => stream.send_trailers(trailers).unwrap(),
        None => {
            let mut only = headers();
            only.headers_mut().extend(trailers);
            respond.send_response(only, true).unwrap();
        }
    }
}

fn trailers(refusal: &Refusal) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", refusal.code.into());
    trailers.insert("grpc-message", refusal.message.parse().unwrap());
    if let Some(pushback) = refusal.pushback {
        trailers.insert("grpc-retry-pushback-ms", pushback.parse().unwrap());
    }
    if let Some(raw) = refusal.raw_details {
        trailers.insert("grpc-status-details-bin", raw.parse().unwrap());
    } else if !refusal.reason.is_empty() {
        let status = tonic::Status::with_details(tonic::Code::Unknown, "", refusal.details().into());
        let encoded = status.into_http::<()>().headers()["grpc-status-details-bin"].clone();
        trailers.insert("grpc-status-details-bin", encoded);
    }
    trailers
}

impl Refusal {
    fn details(&self) -> Vec<u8> {
        let metadata = self.metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let domain = self.domain.unwrap_or("inferwire.dev").to_owned();
        let mut details = vec![any("ErrorInfo", &ErrorInfo { reason: self.reason.to_owned(), domain, metadata })];
        if let Some(delay) = self.retry_delay {
            details.push(any("RetryInfo", &RetryInfo { retry_delay: delay.try_into().ok() }));
        }
        if !self.violations.is_empty() {
            let violation = |(field, description): &(&str, &str)| FieldViolation {
                field: field.to_string(),
                description: description.to_string(),
            };
            let violations = self.violations.iter().map(violation).collect();
            details.push(any("BadRequest", &BadRequest { violations }));
        }
        if !self.resource.is_empty() {
            details.push(any("ResourceInfo", &ResourceInfo { name: self.resource.to_owned() }));
        }
        Status { code: self.code, message: self.message.to_owned(), details }.encode_to_vec()
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/google.rpc.{name}"), value: message.encode_to_vec() }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: std::collections::HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FieldViolation {
    #[prost(string, tag = "1")]
    field: String,
    #[prost(string, tag = "2")]
    description: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    violations: Vec<FieldViolation>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceInfo {
    #[prost(string, tag = "2")]
    name: String,
}
