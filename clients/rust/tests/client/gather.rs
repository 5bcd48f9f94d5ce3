//! What a stream's concatenation is. Pure: no server.

use inferwire::Gatherer;
use inferwire::v1::part::Part as Kind;
use inferwire::v1::stream_complete_response::Event;
use inferwire::v1::{
    CompleteResponse, Completion, Message, Progress, Reasoning, ReasoningDelta, Role, StreamCompleteResponse,
    TextDelta, TokenLogprob, ToolCall, ToolCallDelta,
};

use crate::{completion, event, started, text};

fn reasoning(piece: &str, signature: &[u8]) -> StreamCompleteResponse {
    event(Event::Reasoning(ReasoningDelta {
        text: piece.into(),
        signature: signature.into(),
        ..ReasoningDelta::default()
    }))
}

fn tool_call(index: u32, id: &str, name: &str, arguments: &str) -> StreamCompleteResponse {
    event(Event::ToolCall(ToolCallDelta {
        index,
        id: id.into(),
        name: name.into(),
        arguments: arguments.into(),
        ..ToolCallDelta::default()
    }))
}

fn gather(events: impl IntoIterator<Item = StreamCompleteResponse>) -> CompleteResponse {
    let mut gatherer = Gatherer::new();
    events.into_iter().for_each(|event| gatherer.add(event));
    gatherer.response()
}

fn parts_of(deltas: impl IntoIterator<Item = StreamCompleteResponse>) -> Vec<Kind> {
    let events = [started()].into_iter().chain(deltas).chain([completion()]);
    gather(events).message.unwrap().parts.into_iter().map(|part| part.part.unwrap()).collect()
}

fn text_part(whole: &str) -> Kind {
    Kind::Text(whole.into())
}

fn thought_part(whole: &str, signature: &[u8]) -> Kind {
    Kind::Reasoning(Reasoning { text: whole.into(), signature: signature.into() })
}

fn call_part(id: &str, name: &str, arguments: &str) -> Kind {
    let (id, name, arguments) = (id.into(), name.into(), arguments.into());
    Kind::ToolCall(ToolCall { id, name, arguments, ..ToolCall::default() })
}

/// A delta extends the last part when that is of its kind, else it begins a new one.
#[test]
fn runs_are_one_part() {
    let deltas = [reasoning("h", b""), reasoning("m", b""), text("a"), text("b"), reasoning("so", b""), text("c")];
    let expected = vec![thought_part("hm", b""), text_part("ab"), thought_part("so", b""), text_part("c")];
    assert_eq!(expected, parts_of(deltas));
}

/// A call stands where its first delta stood, and gets all its arguments, whatever comes between.
#[test]
fn a_tool_call_is_one_part() {
    let deltas = [
        tool_call(0, "c0", "add", ""),
        tool_call(0, "", "", "{\"a\""),
        text("and"),
        tool_call(1, "c1", "sub", "{}"),
        tool_call(0, "", "", ":1}"),
    ];
    let expected = vec![call_part("c0", "add", "{\"a\":1}"), text_part("and"), call_part("c1", "sub", "{}")];
    assert_eq!(expected, parts_of(deltas));
}

/// Two signed thoughts in a row stay two: each signature is valid for its own text only.
#[test]
fn a_signature_ends_its_thought() {
    let deltas = [reasoning("a", b""), reasoning("b", b""), reasoning("", b"S1"), reasoning("c", b"S2")];
    assert_eq!(vec![thought_part("ab", b"S1"), thought_part("c", b"S2")], parts_of(deltas));
}

/// A signature without text is a thought that the provider hides.
#[test]
fn a_hidden_thought_is_a_part() {
    assert_eq!(vec![text_part("a"), thought_part("", b"S")], parts_of([text("a"), reasoning("", b"S")]));
}

/// max_tokens 0 answers nothing, and that is a message of the model without parts.
#[test]
fn an_empty_answer_has_no_parts() {
    let message = gather([started(), completion()]).message.unwrap();
    assert_eq!(Message { role: Role::Assistant.into(), parts: vec![] }, message);
}

/// Progress and unknown events are about the way, not the answer; they do not even end a run.
#[test]
fn progress_and_unknown_events_leave_no_trace() {
    let progress = event(Event::Progress(Progress::default()));
    let unknown = StreamCompleteResponse { event: None };
    assert_eq!(vec![text_part("ab")], parts_of([progress, text("a"), unknown, text("b")]));
}

/// Token ids and logprobs concatenate over all events, those of the completion included; a delta of tokens alone begins
/// no part.
#[test]
fn tokens_concatenate() {
    let logprob = |token_id| TokenLogprob { token_id, ..TokenLogprob::default() };
    let delta = |token_ids: Vec<u32>| {
        let logprobs = token_ids.iter().copied().map(logprob).collect();
        (token_ids, logprobs)
    };
    let (token_ids, logprobs) = delta(vec![1, 2]);
    let bare = event(Event::Text(TextDelta { token_ids, logprobs, ..TextDelta::default() }));
    let (token_ids, logprobs) = delta(vec![3]);
    let thought = event(Event::Reasoning(ReasoningDelta { token_ids, logprobs, ..ReasoningDelta::default() }));
    let (token_ids, logprobs) = delta(vec![4]);
    let call = event(Event::ToolCall(ToolCallDelta { token_ids, logprobs, ..ToolCallDelta::default() }));
    let (token_ids, logprobs) = delta(vec![5]);
    let end = event(Event::Completion(Completion { token_ids, logprobs, ..Completion::default() }));
    let response = gather([bare, thought, call, end]);
    assert_eq!(vec![1, 2, 3, 4, 5], response.token_ids);
    assert_eq!((1..=5).map(logprob).collect::<Vec<_>>(), response.logprobs);
    assert_eq!(1, response.message.unwrap().parts.len(), "a tool call is a part from its first delta on");
}

/// The answer so far may be asked for at any time; without the completion it says so by its absence.
#[test]
fn the_answer_so_far() {
    let mut gatherer = Gatherer::new();
    assert_eq!("<Gatherer [new | parts 0 | token ids 0]>", format!("{gatherer:?}"));
    gatherer.add(started());
    gatherer.add(text("a"));
    assert_eq!("<Gatherer [started | parts 1 | token ids 0]>", format!("{gatherer:?}"));
    assert!(gatherer.clone().response().completion.is_none());
    gatherer.add(completion());
    assert_eq!("<Gatherer [completed | parts 1 | token ids 0]>", format!("{gatherer:?}"));
    assert!(gatherer.response().completion.is_some());
}

/// Of each kind, the parts joined are the deltas joined, no part is empty, and where a text delta is cut in two carries no
/// meaning. Over every sequence of up to five deltas of a small alphabet.
#[test]
fn everything_concatenates() {
    let alphabet = [
        text("aé"),
        reasoning("h", b""),
        reasoning("m", b"S"),
        tool_call(0, "x", "f", "1"),
        tool_call(1, "y", "g", "2"),
    ];
    let cut = [text("a"), text("é")];
    for length in 0..=5u32 {
        for number in 0..alphabet.len().pow(length) {
            let places: Vec<usize> =
                (0..length).map(|digit| number / alphabet.len().pow(digit) % alphabet.len()).collect();
            let count = |place| places.iter().filter(|other| **other == place).count();
            let parts = parts_of(places.iter().map(|place| alphabet[*place].clone()));
            let (mut texts, mut thoughts, mut signatures, mut arguments) =
                (String::new(), String::new(), 0, Vec::new());
            for part in &parts {
                match part {
                    Kind::Text(whole) => texts.push_str(whole),
                    Kind::Reasoning(thought) => {
                        thoughts.push_str(&thought.text);
                        signatures += thought.signature.len();
                        assert!(!thought.text.is_empty());
                    }
                    Kind::ToolCall(call) => arguments.push(call.arguments.clone()),
                    other => panic!("no delta makes {other:?}"),
                }
            }
            assert_eq!("aé".repeat(count(0)), texts);
            assert_eq!(count(1) + count(2), thoughts.len());
            assert_eq!(count(2), signatures);
            arguments.sort();
            let calls = [(3, "1"), (4, "2")].into_iter().filter(|(place, _)| count(*place) > 0);
            assert_eq!(calls.map(|(place, piece)| piece.repeat(count(place))).collect::<Vec<_>>(), arguments);
            let split = places.iter().flat_map(|place| match place {
                0 => cut.to_vec(),
                other => vec![alphabet[*other].clone()],
            });
            assert_eq!(parts, parts_of(split));
        }
    }
}
