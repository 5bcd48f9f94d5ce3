//! What the client makes of what a server sends, lawful or not, and what it sends itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use inferwire::v1::stream_load_response::Event as LoadEvent;
use inferwire::v1::{
    CompleteRequest, CompleteResponse, ErrorReason, ListModelsRequest, ListModelsResponse, LoadProgress, LoadRequest,
    LoadResponse, StreamCompleteResponse, StreamLoadResponse, WatchModelsRequest, WatchModelsResponse,
};
use inferwire::{Call, Client, Code, Error, MAX_MESSAGE_BYTES, Options};
use prost::Message;

use crate::scripted::{Refusal, Script, Server, Step};
use crate::{answer, completion, hi, started, text, within};

/// Field 127 is in no version of the contract: what an older client sees of a newer server's event.
const UNKNOWN_EVENT: &[u8] = b"\xfa\x07\x03new";

fn unknown() -> Step {
    Step::Message(Bytes::from_static(UNKNOWN_EVENT))
}

fn said(message: impl Message) -> Step {
    Step::Message(message.encode_to_vec().into())
}

fn all(events: Vec<StreamCompleteResponse>) -> impl Iterator<Item = Step> {
    events.into_iter().map(said)
}

fn whole(pieces: &[&str]) -> Script {
    all(answer(pieces)).chain([Step::Ok]).collect()
}

fn unavailable(pushback: Option<&'static str>) -> Step {
    Step::Refusal(Refusal { code: 14, message: "not yet", reason: "MODEL_LOADING", pushback, ..Refusal::default() })
}

fn connect(server: &Server) -> Client {
    Client::connect(&server.address, Options::new()).unwrap()
}

/// Reads a stream to its end.
async fn read(server: &Server) -> (Vec<StreamCompleteResponse>, Option<Error>) {
    let mut stream = connect(server).stream(hi());
    let mut events = Vec::new();
    while let Some(event) = within(stream.next()).await {
        match event {
            Ok(event) => events.push(event),
            Err(error) => {
                assert!(stream.next().await.is_none(), "an error is the last item");
                return (events, Some(error));
            }
        }
    }
    assert!(stream.next().await.is_none());
    (events, None)
}

async fn failure(script: Script) -> Error {
    read(&Server::start(vec![script]).await).await.1.expect("the stream ended OK")
}

/// An arm that this version does not know is skipped, wherever it stands, also after the completion.
#[tokio::test]
async fn skips_an_unknown_event() {
    let script = vec![unknown(), said(started()), unknown(), said(text("a")), said(completion()), unknown(), Step::Ok];
    let server = Server::start(vec![script]).await;
    assert_eq!((answer(&["a"]), None), read(&server).await);
}

/// OK without a completion is the local failure STREAM_TRUNCATED, never a short answer.
#[tokio::test]
async fn ok_without_completion_is_truncated() {
    let error = failure(vec![said(started()), said(text("a")), Step::Ok]).await;
    assert_eq!(Code::Aborted, error.code());
    assert_eq!(Some(ErrorReason::StreamTruncated), error.known_reason());
}

/// A completion followed by a status that is not OK, or by none at all, is a failure.
#[tokio::test]
async fn completion_before_a_failure_is_a_failure() {
    let internal = Refusal { code: 13, reason: "INTERNAL", ..Refusal::default() };
    for (end, code) in [
        (Step::Refusal(internal), Code::Internal),
        (Step::EndOfStream, Code::Unknown),
        (Step::Cut, Code::Unavailable),
        (Step::Reset(Reason::INTERNAL_ERROR), Code::Internal),
        (Step::Reset(Reason::ENHANCE_YOUR_CALM), Code::ResourceExhausted),
    ] {
        let server = Server::start(vec![all(answer(&["a"])).chain([end]).collect()]).await;
        let (events, error) = read(&server).await;
        assert!(events.len() <= 2, "the completion is held back");
        assert_eq!(code, error.expect("the stream ended OK").code());
        assert_eq!(1, server.asked().len(), "what began is not repeated");
    }
}

/// UNAVAILABLE and RESOURCE_EXHAUSTED without any event are tried again, three times in all; the caller sees the answer
/// alone.
#[tokio::test]
async fn retries_before_the_first_event() {
    let full = Refusal { code: 8, reason: "QUEUE_FULL", pushback: Some("5"), ..Refusal::default() };
    let server = Server::start(vec![vec![unavailable(Some("10"))], vec![Step::Refusal(full)], whole(&["a"])]).await;
    assert_eq!((answer(&["a"]), None), read(&server).await);
    let attempts: Vec<_> =
        server.asked().iter().map(|call| call.headers.get("grpc-previous-rpc-attempts").cloned()).collect();
    assert_eq!(vec![None, Some("1".parse().unwrap()), Some("2".parse().unwrap())], attempts);
}

/// The same for a unary call, and for a server or a proxy that has no words.
#[tokio::test]
async fn retries_a_unary_call() {
    for refusal in [unavailable(Some("1")), Step::Http(503), Step::Reset(Reason::REFUSED_STREAM), Step::Cut] {
        let server = Server::start(vec![vec![refusal], vec![said(ListModelsResponse::default()), Step::Ok]]).await;
        within(connect(&server).list_models(ListModelsRequest {})).await.unwrap();
        assert_eq!(2, server.asked().len());
    }
}

/// A connection that takes no further calls is replaced: what it did not answer is asked anew.
#[tokio::test]
async fn goes_on_after_goaway() {
    let server = Server::start(vec![vec![Step::GoAway], whole(&["a"])]).await;
    assert_eq!((answer(&["a"]), None), read(&server).await);
    assert_eq!(2, server.num_connections());
}

/// Without pushback the waits grow: about 0.2 s, then 0.4 s.
#[tokio::test]
async fn waits_between_attempts() {
    let server = Server::start(vec![vec![unavailable(None)]]).await;
    let begin = Instant::now();
    let (_, error) = read(&server).await;
    assert_eq!("MODEL_LOADING", error.unwrap().reason());
    assert_eq!(3, server.asked().len());
    assert!(begin.elapsed() >= Duration::from_millis(480), "{:?}", begin.elapsed());
}

/// The server's pushback is obeyed: its own time, or not at all.
#[tokio::test]
async fn obeys_the_pushback() {
    let server = Server::start(vec![vec![unavailable(Some("300"))], whole(&["a"])]).await;
    let begin = Instant::now();
    assert_eq!((answer(&["a"]), None), read(&server).await);
    assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}", begin.elapsed());
    for never in ["-1", "soon"] {
        let server = Server::start(vec![vec![unavailable(Some(never))], whole(&["a"])]).await;
        assert_eq!(Code::Unavailable, read(&server).await.1.unwrap().code());
        assert_eq!(1, server.asked().len());
    }
}

/// After the first event no code makes the call start again: the text would come twice.
#[tokio::test]
async fn does_not_retry_after_a_delta() {
    let server = Server::start(vec![vec![said(started()), said(text("a")), unavailable(Some("1"))]]).await;
    let (events, error) = read(&server).await;
    assert_eq!((2, Code::Unavailable), (events.len(), error.unwrap().code()));
    assert_eq!(1, server.asked().len());
}

/// A unary call is not repeated once its answer began, whatever follows.
#[tokio::test]
async fn does_not_retry_after_the_headers() {
    for begun in [Step::Headers, said(CompleteResponse::default())] {
        let server = Server::start(vec![vec![begun, unavailable(Some("1"))]]).await;
        assert_eq!(Code::Unavailable, connect(&server).complete(hi()).await.unwrap_err().code());
        assert_eq!(1, server.asked().len());
    }
}

/// Other codes are final, a load is never repeated, and retries can be switched off.
#[tokio::test]
async fn repeats_nothing_else() {
    let server = Server::start(vec![vec![unavailable(Some("1"))]]).await;
    connect(&server).load(LoadRequest::default()).await.unwrap_err();
    assert_eq!(1, server.asked().len());
    let once = Client::connect(&server.address, Options::new().retry(false)).unwrap();
    once.list_models(ListModelsRequest {}).await.unwrap_err();
    assert_eq!(1, server.asked().len());
    let refusal = Refusal { code: 13, pushback: Some("1"), ..Refusal::default() };
    let server = Server::start(vec![vec![Step::Refusal(refusal)]]).await;
    connect(&server).list_models(ListModelsRequest {}).await.unwrap_err();
    assert_eq!(1, server.asked().len());
}

/// Many failures in a row end the retries of a connection, so that they do not make an overload worse.
#[tokio::test]
async fn failures_in_a_row_end_retries() {
    let server = Server::start(vec![vec![unavailable(Some("0"))]]).await;
    let client = connect(&server);
    let mut attempts = Vec::new();
    for _ in 0..4 {
        client.list_models(ListModelsRequest {}).await.unwrap_err();
        attempts.push(server.asked().len());
    }
    assert_eq!(vec![3, 2, 1, 1], attempts);
}

/// The deadline counts over all attempts, ends what hangs, and the server learns of it.
#[tokio::test]
async fn deadline() {
    let silent = vec![Step::Hang];
    let begun = vec![said(started()), Step::Hang];
    let refused = vec![unavailable(Some("60000"))];
    for (script, hangs) in [(silent, true), (begun, true), (refused, false)] {
        let server = Server::start(vec![script]).await;
        let options = Options::new().default_timeout(Duration::from_millis(300));
        let client = Client::connect(&server.address, options).unwrap();
        // The first event reads as the beginning of an answer in the unary call too.
        let call = Call::new(hi()).timeout(Duration::from_millis(300));
        for error in
            [within(client.stream(hi()).gather()).await.unwrap_err(), within(client.complete(call)).await.unwrap_err()]
        {
            assert_eq!(Code::DeadlineExceeded, error.code());
        }
        // On a busy machine the time may be over before a call has reached the server.
        for _ in server.asked().iter().filter(|_| hangs) {
            assert_eq!(Reason::CANCEL, server.gone().await);
        }
    }
}

/// To drop a stream ends the call; so does dropping a unary call.
#[tokio::test]
async fn dropping_cancels() {
    let server = Server::start(vec![vec![said(started()), said(text("a")), Step::Hang]]).await;
    let mut stream = connect(&server).stream(hi());
    assert_eq!(Some(Ok(started())), stream.next().await);
    drop(stream);
    assert_eq!(Reason::CANCEL, server.gone().await);

    let server = Server::start(vec![vec![Step::Hang]]).await;
    let client = connect(&server);
    let call = tokio::spawn(async move { client.list_models(ListModelsRequest {}).await });
    while server.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    call.abort();
    assert_eq!(Reason::CANCEL, server.gone().await);
}

/// A stream tells its beginning once that is read, and its end only when all has been read.
#[tokio::test]
async fn tells_its_beginning_and_its_end() {
    let server = Server::start(vec![whole(&["a"])]).await;
    let mut stream = connect(&server).stream(hi());
    assert_eq!("<CompletionStream [open]>", format!("{stream:?}"));
    assert!(stream.started().is_none());
    stream.next().await.unwrap().unwrap();
    assert_eq!("r1", stream.started().unwrap().id);
    assert!(stream.completion().is_none());
    assert_eq!(Some(Ok("a".to_owned())), stream.text().next().await);
    assert_eq!(None, stream.text().next().await);
    assert!(stream.completion().is_some());
    assert_eq!("<CompletionStream [completed]>", format!("{stream:?}"));
}

/// Every call carries the key, the request's id, metadata and a deadline; what a header cannot carry is told.
#[tokio::test]
async fn carries_token_metadata_and_deadline() {
    let server = Server::start(vec![vec![said(CompleteResponse::default()), Step::Ok]]).await;
    let options = Options::new().token("secret").default_timeout(Duration::from_secs(50));
    let client = Client::connect(&server.address, options).unwrap();
    client.complete(Call::new(hi()).request_id("mine").metadata("x-tenant", "a")).await.unwrap();
    let asked = &server.asked()[0];
    assert_eq!("/inferwire.v1.InferenceService/Complete", asked.path);
    assert_eq!(hi(), CompleteRequest::decode(asked.message.as_slice()).unwrap());
    for (name, value) in [("authorization", "Bearer secret"), ("x-request-id", "mine"), ("x-tenant", "a")] {
        assert_eq!(value, asked.headers[name]);
    }
    assert!(asked.headers["user-agent"].to_str().unwrap().starts_with("inferwire-rust/"));
    assert!(!asked.headers.contains_key("content-length"));
    let timeout = asked.headers["grpc-timeout"].to_str().unwrap();
    let millis: u64 = timeout.strip_suffix('m').unwrap().parse().unwrap();
    assert!((40_000..=50_000).contains(&millis), "{timeout}");

    client.complete(Call::new(hi()).timeout(Duration::MAX)).await.unwrap();
    assert!(!server.asked()[0].headers.contains_key("grpc-timeout"));
    let error = client.complete(Call::new(hi()).metadata("x-tenant", "a\nb")).await.unwrap_err();
    assert_eq!(Code::InvalidArgument, error.code());
    assert!(server.asked().is_empty());
    assert!(!format!("{client:?} {:?}", client.connection()).contains("secret"));
}

/// Loads and watches have no deadline: they end when they end. A load that ends without `loaded` is truncated.
#[tokio::test]
async fn loads_and_watches() {
    let progress = StreamLoadResponse { event: Some(LoadEvent::Progress(LoadProgress::default())) };
    let loaded = StreamLoadResponse { event: Some(LoadEvent::Loaded(LoadResponse::default())) };
    let snapshot = WatchModelsResponse { revision: 1, ..WatchModelsResponse::default() };
    let server = Server::start(vec![
        vec![said(LoadResponse::default()), Step::Ok],
        vec![said(progress.clone()), unknown(), said(loaded.clone()), Step::Ok],
        vec![said(progress.clone()), Step::Ok],
        vec![said(snapshot.clone()), Step::Ok],
    ])
    .await;
    let client = connect(&server);
    client.load(LoadRequest::default()).await.unwrap();
    let mut load = client.stream_load(LoadRequest::default());
    assert_eq!(Some(Ok(progress.clone())), load.next().await);
    assert_eq!(Some(Ok(loaded)), load.next().await);
    assert_eq!(None, load.next().await);
    let mut load = client.stream_load(LoadRequest::default());
    assert_eq!(Some(Ok(progress)), load.next().await);
    assert_eq!("STREAM_TRUNCATED", load.next().await.unwrap().unwrap_err().reason());
    let mut watch = client.watch_models(WatchModelsRequest {});
    assert_eq!(Some(Ok(snapshot)), watch.next().await);
    assert_eq!(None, watch.next().await);
    assert_eq!("<EventStream [ended]>", format!("{watch:?}"));
    let asked = server.asked();
    assert_eq!(4, asked.len());
    assert!(asked.iter().all(|call| !call.headers.contains_key("grpc-timeout")));
}

/// Code, reason, metadata, delay, violations and the thing's name arrive as they were sent.
#[tokio::test]
async fn an_error_says_all_that_the_server_said() {
    let refusal = Refusal {
        code: 5,
        message: "no such model",
        reason: "MODEL_NOT_FOUND",
        metadata: vec![("model", "nope")],
        retry_delay: Some(Duration::from_millis(50)),
        violations: vec![("model", "is unknown")],
        resource: "nope",
        ..Refusal::default()
    };
    // As Trailers-Only, and after a message.
    for script in [vec![Step::Refusal(refusal.clone())], vec![said(started()), Step::Refusal(refusal)]] {
        let error = failure(script).await;
        assert_eq!((Code::NotFound, "NOT_FOUND"), (error.code(), error.code_name()));
        assert_eq!("MODEL_NOT_FOUND", error.reason());
        assert_eq!(Some(ErrorReason::ModelNotFound), error.known_reason());
        assert_eq!("no such model", error.message());
        assert_eq!(Some("nope"), error.metadata().get("model").map(String::as_str));
        assert_eq!(Some(Duration::from_millis(50)), error.retry_delay());
        assert_eq!("is unknown", error.violations()[0].description);
        assert_eq!("nope", error.resource());
        assert_eq!("MODEL_NOT_FOUND: no such model; model: is unknown", error.to_string());
    }
}

/// A reason of a newer server stays readable.
#[tokio::test]
async fn keeps_an_unknown_reason() {
    let refusal = Refusal { code: 10, reason: "SOLAR_FLARE", ..Refusal::default() };
    let error = failure(vec![Step::Refusal(refusal)]).await;
    assert_eq!(("SOLAR_FLARE", None), (error.reason(), error.known_reason()));
}

/// Details that are absent, garbage or of another domain leave code and message, and no reason.
#[tokio::test]
async fn lives_without_details() {
    let plain = Refusal { code: 13, message: "plain", ..Refusal::default() };
    for refusal in [
        plain.clone(),
        Refusal { raw_details: Some(""), ..plain.clone() },
        Refusal { raw_details: Some("/////w"), ..plain.clone() },
        Refusal { raw_details: Some("*not base64*"), ..plain.clone() },
        Refusal { reason: "PROXY_SAYS_NO", domain: Some("proxy.example"), ..plain.clone() },
    ] {
        for script in [vec![Step::Refusal(refusal.clone())], vec![said(started()), Step::Refusal(refusal)]] {
            let error = failure(script).await;
            assert_eq!((Code::Internal, "plain", ""), (error.code(), error.message(), error.reason()));
            assert_eq!(None, error.known_reason());
            assert_eq!("INTERNAL: plain", error.to_string());
        }
    }
}

/// A server that is not there is UNAVAILABLE without a reason, and the message says why.
#[tokio::test]
async fn no_server() {
    let client = Client::connect("127.0.0.1:1", Options::new()).unwrap();
    let error = within(client.list_models(ListModelsRequest {})).await.unwrap_err();
    assert_eq!((Code::Unavailable, ""), (error.code(), error.reason()));
    assert!(error.message().contains("refused"), "{error}");
}

/// A client finds its server again after a loss.
#[tokio::test]
async fn connects_again() {
    let models = || vec![said(ListModelsResponse::default()), Step::Ok];
    let server = Server::start(vec![models(), vec![said(started()), Step::Cut], models()]).await;
    let client = connect(&server);
    client.list_models(ListModelsRequest {}).await.unwrap();
    assert_eq!(Code::Unavailable, client.stream(hi()).gather().await.unwrap_err().code());
    client.list_models(ListModelsRequest {}).await.unwrap();
    assert_eq!(2, server.num_connections());
}

/// Messages up to 32 MiB pass in both directions; a larger one is RESOURCE_EXHAUSTED.
#[tokio::test]
async fn large_messages() {
    // The message is the text with seven bytes around it.
    for (num_bytes, passes) in [(MAX_MESSAGE_BYTES - 64, true), (MAX_MESSAGE_BYTES + 1, false)] {
        let whole = vec![said(started()), said(text(&"x".repeat(num_bytes))), said(completion()), Step::Ok];
        let server = Server::start(vec![whole]).await;
        let client = connect(&server);
        let request = CompleteRequest::prompt("y".repeat(num_bytes));
        let sent = within(client.stream(request).next()).await.unwrap();
        let taken = within(client.stream(hi()).gather()).await;
        if passes {
            assert_eq!(Ok(started()), sent);
            taken.unwrap();
        } else {
            assert_eq!(Code::ResourceExhausted, sent.unwrap_err().code());
            assert_eq!(Code::ResourceExhausted, taken.unwrap_err().code());
        }
    }
}

/// Without a word about TLS, only a target on this very machine is called in plain text.
#[tokio::test]
async fn plain_text_stays_on_this_machine() {
    for (target, is_local) in [
        ("127.0.0.1:50051", true),
        ("localhost:50051", true),
        ("localhost", true),
        ("[::1]:50051", true),
        ("::1", true),
        ("dns:///localhost:50051", true),
        ("dns:localhost:50051", true),
        ("ipv4:127.0.0.1:50051", true),
        ("unix:/run/inferwire.sock", true),
        ("unix:///run/inferwire.sock", true),
        ("10.0.0.1:50051", false),
        ("inferwire.example:443", false),
        ("localhost.example:443", false),
        ("dns:///inferwire.example:443", false),
        ("[2001:db8::1]:443", false),
    ] {
        let client = Client::connect(target, Options::new()).unwrap();
        let way = if is_local { "plain text" } else { "TLS" };
        assert_eq!(format!("<Client [{target} | {way} | no token]>"), format!("{client:?}"));
    }
    let client = Client::connect("10.0.0.1:50051", Options::new().plain_text().token("t")).unwrap();
    assert_eq!("<Client [10.0.0.1:50051 | plain text | token]>", format!("{client:?}"));
}

/// What cannot be read is told at once, and nothing of it is dropped silently.
#[tokio::test]
async fn refuses_what_it_cannot_read() {
    for target in
        ["", "http://127.0.0.1:50051", "dns://127.0.0.1/inferwire.example:443", "a b:1", "a:b", "unix-abstract:x"]
    {
        let error = Client::connect(target, Options::new().plain_text()).unwrap_err();
        assert_eq!(Code::InvalidArgument, error.code(), "{target}");
    }
    let error = Client::connect("127.0.0.1:1", Options::new().token("a\nb")).unwrap_err();
    assert_eq!(Code::InvalidArgument, error.code());
}

/// Calls and streams may move between threads.
#[test]
fn everything_can_be_sent() {
    fn is_send<T: Send>(_: T) {}
    fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Client>();
    is_shared::<Error>();
    let _ = |client: Client| {
        is_send(client.complete(hi()));
        is_send(client.stream(hi()).gather());
        is_send(client.stream(hi()));
        is_send(client.watch_models(WatchModelsRequest {}));
    };
}
