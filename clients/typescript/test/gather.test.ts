/** What a stream's concatenation is. Pure: no server. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { gather, Gatherer, InferwireError, textOf } from "inferwire";
import { PartSchema, Role, type Part } from "inferwire/v1/inference_pb";

import { completion, event, reasoning, started, text, UNKNOWN_EVENT, type Event } from "./scripted.js";

function toolCall(index: number, args = "", { id = "", name = "", signature = "" } = {}): Event {
  return event({
    case: "toolCall",
    value: { index, id, name, arguments: args, signature: bytes(signature) },
  });
}

function part(part: MessageInitShape<typeof PartSchema>["part"]): Part {
  return create(PartSchema, part && { part });
}

function textPart(value: string): Part {
  return part({ case: "text", value });
}

function thoughtPart(text: string, signature = ""): Part {
  return part({ case: "reasoning", value: { text, signature: bytes(signature) } });
}

function callPart(id: string, name: string, args: string, signature = ""): Part {
  return part({ case: "toolCall", value: { id, name, arguments: args, signature: bytes(signature) } });
}

function bytes(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

async function assertParts(deltas: Event[], expected: Part[]): Promise<void> {
  const { message } = await gather([started(), ...deltas, completion()]);
  assert.deepEqual(message?.parts, expected);
}

describe("the parts of an answer", () => {
  it("are runs of deltas of one kind", () =>
    assertParts(
      [reasoning("h"), reasoning("m"), text("a"), text("b"), reasoning("so"), text("c")],
      [thoughtPart("hm"), textPart("ab"), thoughtPart("so"), textPart("c")],
    ));

  it("hold a tool call once, where its first delta stood, whatever comes between", () =>
    assertParts(
      [
        toolCall(0, "", { id: "c0", name: "add", signature: "S" }),
        toolCall(0, '{"a"'),
        text("and"),
        toolCall(1, "{}", { id: "c1", name: "sub" }),
        toolCall(0, ":1}", { signature: "T" }),
      ],
      [callPart("c0", "add", '{"a":1}', "ST"), textPart("and"), callPart("c1", "sub", "{}")],
    ));

  it("keep two signed thoughts apart: each signature is valid for its own text only", () =>
    assertParts(
      [reasoning("a"), reasoning("b"), reasoning("", "S1"), reasoning("c", "S2")],
      [thoughtPart("ab", "S1"), thoughtPart("c", "S2")],
    ));

  it("hold a thought that the provider hides: a signature without text", () =>
    assertParts([text("a"), reasoning("", "S")], [textPart("a"), thoughtPart("", "S")]));

  it("are none in an empty answer, which is a message of the model all the same", async () => {
    const { message } = await gather([started(), completion()]);
    assert.deepEqual([message?.role, message?.parts], [Role.ASSISTANT, []]);
  });

  it("do not show progress and unknown events, which do not even end a run", () =>
    assertParts(
      [
        event({ case: "progress", value: { stage: { case: "queue", value: { position: 1 } } } }),
        text("a"),
        UNKNOWN_EVENT,
        text("b"),
      ],
      [textPart("ab")],
    ));
});

describe("tokens", () => {
  it("without text count, and begin no part", async () => {
    const bare = event({ case: "text", value: { tokenIds: [1, 2] } });
    const { tokenIds, message } = await gather([started(), bare, completion()]);
    assert.deepEqual([tokenIds, message?.parts], [[1, 2], []]);
  });

  it("may be many in one event", async () => {
    const tokenIds = Array.from({ length: 300_000 }, (_, index) => index);
    const answer = await gather([started(), event({ case: "text", value: { text: "a", tokenIds } }), completion()]);
    assert.equal(answer.tokenIds.length, 300_000);
  });
});

describe("the end", () => {
  it("without a completion gives no answer that could be taken for whole", async () => {
    await assert.rejects(
      gather([started(), text("a")]),
      (error) => error instanceof InferwireError && error.reason === "STREAM_TRUNCATED",
    );
  });

  it("need not have come: the answer so far says so by the absence of its completion", () => {
    const gatherer = new Gatherer();
    assert.equal(String(gatherer), "<Gatherer [new | parts 0 | token ids 0]>");
    gatherer.add(started());
    gatherer.add(text("a"));
    assert.equal(String(gatherer), "<Gatherer [started | parts 1 | token ids 0]>");
    const early = gatherer.response();
    assert.equal(early.completion, undefined);
    gatherer.add(text("b"));
    gatherer.add(completion());
    assert.equal(String(gatherer), "<Gatherer [completed | parts 1 | token ids 0]>");
    assert.deepEqual([textOf(early.message), textOf(gatherer.response().message)], ["a", "ab"]);
    assert.deepEqual(gatherer.response(), gatherer.response());
  });
});

describe("any events", () => {
  it("lose nothing, double nothing and stay in order; where one ends carries no meaning", async () => {
    // The same draws every time, so that a failure can be seen again.
    for (let seed = 1; seed <= 200; seed += 1) {
      const draw = numbers(seed);
      const events = Array.from({ length: draw(13) }, () => delta(draw));
      const lastIds = Array.from({ length: draw(4) }, () => draw(2 ** 32));
      const end = event({ case: "completion", value: { tokenIds: lastIds } });
      const answer = await gather([started(), ...events, end]);
      const parts = answer.message?.parts ?? [];
      const joined = (pieces: (string | Uint8Array)[]): string => pieces.map((piece) => String(piece)).join("");
      assert.equal(
        joined(parts.map(({ part }) => (part.case === "text" ? part.value : ""))),
        joined(events.map(({ event }) => (event.case === "text" ? event.value.text : ""))),
      );
      for (const field of ["text", "signature"] as const) {
        assert.equal(
          joined(parts.map(({ part }) => (part.case === "reasoning" ? part.value[field] : ""))),
          joined(events.map(({ event }) => (event.case === "reasoning" ? event.value[field] : ""))),
        );
      }
      const calls = new Map<number, string>();
      for (const { event } of events) {
        if (event.case === "toolCall") {
          calls.set(event.value.index, (calls.get(event.value.index) ?? "") + event.value.arguments);
        }
      }
      assert.deepEqual(
        parts.flatMap(({ part }) => (part.case === "toolCall" ? [part.value.arguments] : [])),
        [...calls.values()],
      );
      assert.deepEqual(answer.tokenIds, [...events.flatMap(tokenIdsOf), ...lastIds]);
      assert.deepEqual(
        answer.logprobs.map(({ tokenId }) => tokenId),
        events.flatMap(tokenIdsOf),
      );

      // Two neighbours of one kind would have been one, unless a signature stands between them.
      for (const [index, { part }] of parts.entries()) {
        assert.ok(part.case !== "text" || part.value);
        const before = parts[index - 1]?.part;
        assert.ok(part.case !== "text" || before?.case !== "text");
        assert.ok(part.case !== "reasoning" || before?.case !== "reasoning" || before.value.signature.length);
      }

      const cut = events.flatMap((whole) => {
        if (whole.event.case !== "text") {
          return [whole];
        }
        const { text: piece, tokenIds, logprobs } = whole.event.value;
        const at = draw(piece.length + 1);
        return [
          text(piece.slice(0, at)),
          event({ case: "text", value: { text: piece.slice(at), tokenIds, logprobs } }),
        ];
      });
      assert.deepEqual(await gather([started(), ...cut, end]), answer);
    }
  });
});

function tokenIdsOf({ event }: Event): number[] {
  return event.case === "text" || event.case === "reasoning" || event.case === "toolCall" ? event.value.tokenIds : [];
}

/** Returns a delta of any kind, with token ids and their logprobs. */
function delta(draw: (below: number) => number): Event {
  const tokenIds = Array.from({ length: draw(4) }, () => draw(2 ** 32));
  const logprobs = tokenIds.map((tokenId) => ({ tokenId, logprob: -1 }));
  const piece = Array.from({ length: draw(5) }, () => "ab é☃"[draw(5)]).join("");
  switch (draw(3)) {
    case 0:
      return event({ case: "text", value: { text: piece, tokenIds, logprobs } });
    case 1:
      return event({
        case: "reasoning",
        value: { text: piece, signature: bytes(draw(3) ? "" : "sig"), tokenIds, logprobs },
      });
    default:
      return event({ case: "toolCall", value: { index: draw(3), arguments: piece, tokenIds, logprobs } });
  }
}

/** Returns a source of numbers that look random (xorshift32). */
function numbers(seed: number): (below: number) => number {
  let state = seed * 2654435761;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}
