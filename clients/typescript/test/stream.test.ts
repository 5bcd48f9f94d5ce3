/** The law of the stream, its end, and what is sent again; against a server that says what the test wants. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";

import { create } from "@bufbuild/protobuf";
import { Code, connect, ErrorReason, InferwireError, user, type Client } from "inferwire/node";
import {
  CompleteRequestSchema,
  InferenceService,
  ListModelsResponseSchema,
  WatchModelsResponseSchema,
} from "inferwire/v1/inference_pb";
import { ModelService, StreamLoadResponseSchema } from "inferwire/v1/models_pb";

import {
  answer,
  Break,
  completion,
  Hang,
  reasoning,
  Refusal,
  ScriptedServer,
  started,
  text,
  UNKNOWN_EVENT,
  type Event,
} from "./scripted.js";

let server: ScriptedServer;
let client: Client;

beforeEach(async () => {
  server = await ScriptedServer.start();
  client = connect(server.address);
});

afterEach(async () => {
  client.close();
  await server.stop();
});

const UNAVAILABLE = new Refusal(Code.Unavailable, "not yet", { reason: "MODEL_LOADING", retryDelayMs: 1 });
const QUEUE_FULL = new Refusal(Code.ResourceExhausted, "full", { reason: "QUEUE_FULL", retryDelayMs: 1 });

async function failure(call: Promise<unknown>): Promise<InferwireError> {
  try {
    await call;
  } catch (error) {
    assert.ok(error instanceof InferwireError, String(error));
    return error;
  }
  assert.fail("the call did not fail");
}

async function read(): Promise<Event[]> {
  const events: Event[] = [];
  for await (const event of client.stream({ prompt: "Hi" })) {
    events.push(event);
  }
  return events;
}

/** Compares what events say; what they say to newer readers does not count. */
function assertEvents(actual: Event[], expected: Event[]): void {
  assert.deepEqual(
    actual.map(({ event }) => event),
    expected.map(({ event }) => event),
  );
}

describe("the law of the stream", () => {
  it("gives what the server writes, in order", async () => {
    server.script("StreamComplete", answer("Hel", "lo"));
    assertEvents(await read(), answer("Hel", "lo"));
  });

  it("skips an arm that this version does not know, wherever it stands", async () => {
    server.script("StreamComplete", [UNKNOWN_EVENT, started(), UNKNOWN_EVENT, text("a"), completion(), UNKNOWN_EVENT]);
    assertEvents(await read(), answer("a"));
  });

  it("takes OK without a completion for STREAM_TRUNCATED, never for a short answer", async () => {
    server.script("StreamComplete", [started(), text("a")]);
    const error = await failure(read());
    assert.equal(error.code, Code.Aborted);
    assert.equal(error.knownReason, ErrorReason.STREAM_TRUNCATED);
    const events: Event[] = [];
    await failure(
      (async () => {
        for await (const event of client.stream({ prompt: "Hi" })) {
          events.push(event);
        }
      })(),
    );
    assertEvents(events, [started(), text("a")]);
  });

  it("takes a completion before another status than OK for a failure", async () => {
    server.script("StreamComplete", [...answer("a"), new Refusal(Code.Internal, "oh", { reason: "INTERNAL" })]);
    const stream = client.stream({ prompt: "Hi" });
    assert.equal((await failure(stream.gather())).reason, "INTERNAL");
    assert.equal(stream.completion, undefined);
  });

  it("wants `loaded` at the end of a load", async () => {
    const progress = create(StreamLoadResponseSchema, { event: { case: "progress", value: { fraction: 0.5 } } });
    const loaded = create(StreamLoadResponseSchema, { event: { case: "loaded", value: { alreadyLoaded: true } } });
    server.script("StreamLoad", [progress], [progress, loaded]);
    const load = client.streamLoad({ model: "demo" });
    await load.next();
    assert.equal((await failure(load.next())).reason, "STREAM_TRUNCATED");
    const arms: (string | undefined)[] = [];
    for await (const { event } of client.streamLoad({ model: "demo" })) {
      arms.push(event.case);
    }
    assert.deepEqual(arms, ["progress", "loaded"]);
  });

  it("wants nothing of a watch but its messages", async () => {
    server.script("WatchModels", [create(WatchModelsResponseSchema, { revision: 1n })]);
    const revisions: bigint[] = [];
    for await (const { revision } of client.watchModels()) {
      revisions.push(revision);
    }
    assert.deepEqual(revisions, [1n]);
  });
});

describe("a stream", () => {
  it("tells its beginning and its end; then it is over", async () => {
    server.script("StreamComplete", answer("a"));
    const stream = client.stream({ prompt: "Hi" });
    assert.ok(!stream.started);
    await stream.next();
    assert.deepEqual(stream.started, started().event.value);
    assert.ok(!stream.completion);
    assert.equal(String(stream), "<CompletionStream [open]>");
    await stream.next();
    await stream.next();
    assert.ok(stream.completion);
    assert.deepEqual(await stream.next(), { done: true, value: undefined });
    assert.equal(String(stream), "<CompletionStream [completed]>");
    stream.cancel();
    assert.deepEqual(await stream.next(), { done: true, value: undefined });
  });

  it("gives the text alone, without thoughts and whatever else comes", async () => {
    server.script("StreamComplete", [started(), reasoning("hm"), text("a"), UNKNOWN_EVENT, text("b"), completion()]);
    const pieces: string[] = [];
    for await (const piece of client.stream({ prompt: "Hi" }).text()) {
      pieces.push(piece);
    }
    assert.deepEqual(pieces, ["a", "b"]);
  });

  it("cancels the call when it is left", async () => {
    const hang = new Hang();
    server.script("StreamComplete", [started(), text("a"), hang]);
    for await (const { event } of client.stream({ prompt: "Hi" })) {
      if (event.case === "text") {
        break;
      }
    }
    // 8 is HTTP/2's CANCEL: the server sees a caller that went away, not one that broke.
    assert.equal(await hang.gone, 8);
  });

  it("cancels the call when its text is left", async () => {
    const hang = new Hang();
    server.script("StreamComplete", [started(), text("a"), hang]);
    const stream = client.stream({ prompt: "Hi" });
    for await (const _ of stream.text()) {
      break;
    }
    await hang.gone;
    assert.equal(String(stream), "<CompletionStream [cancelled]>");
    assert.deepEqual(await stream.next(), { done: true, value: undefined });
  });

  it("tells its reader when it is cancelled from elsewhere", async () => {
    const hang = new Hang();
    server.script("StreamComplete", [started(), hang]);
    const stream = client.stream({ prompt: "Hi" });
    await stream.next();
    const next = failure(stream.next());
    stream.cancel();
    assert.equal((await next).code, Code.Canceled);
    await hang.gone;
  });

  it("that is cancelled before its first event sends nothing", async () => {
    const stream = client.stream({ prompt: "Hi" });
    stream.cancel();
    assert.equal((await failure(stream.next())).code, Code.Canceled);
    await client.stream({ prompt: "Hi" }).return();
    const aborted = client.stream({ prompt: "Hi" }, { signal: AbortSignal.abort() });
    assert.equal((await failure(aborted.next())).code, Code.Canceled);
    assert.deepEqual(server.asked, []);
  });

  it("is cancelled by the client's end, as are all calls after it", async () => {
    const hang = new Hang();
    server.script("StreamComplete", [started(), hang]);
    const stream = client.stream({ prompt: "Hi" });
    await stream.next();
    const next = failure(stream.next());
    client.close();
    assert.equal((await next).code, Code.Canceled);
    await hang.gone;
    assert.equal((await failure(client.listModels())).code, Code.Canceled);
  });

  it("leaves no timer behind, or the process could not end", async () => {
    const timers = (): number => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
    const before = timers();
    server.script("StreamComplete", [...answer("a"), new Hang()]);
    for await (const _ of client.stream({ prompt: "Hi" })) {
      break;
    }
    await client.listModels();
    await failure(client.stream({ prompt: "Hi" }, { timeoutMs: 20 }).gather());
    assert.equal(timers(), before);
  });

  it("lets go of the caller's signal", async () => {
    server.script("StreamComplete", answer("a"));
    const controller = new AbortController();
    let num = 0;
    controller.signal.addEventListener = new Proxy(controller.signal.addEventListener, {
      apply: (target, self, args) => ((num += 1), Reflect.apply(target, self, args) as unknown),
    });
    controller.signal.removeEventListener = new Proxy(controller.signal.removeEventListener, {
      apply: (target, self, args) => ((num -= 1), Reflect.apply(target, self, args) as unknown),
    });
    await client.stream({ prompt: "Hi" }, { signal: controller.signal }).gather();
    await client.listModels({ signal: controller.signal });
    assert.ok(num <= 0, `${num} listeners left`);
  });
});

describe("a request", () => {
  it("goes as its fields say, and what is not said stays unset", async () => {
    server.script("StreamComplete", answer("a"));
    const request = create(CompleteRequestSchema, {
      input: { case: "chat", value: { messages: [user("Hi")] } },
      sampling: { seed: 0 },
    });
    const { chat } = { chat: { messages: [user("Hi")] } };
    await client.complete({ chat, sampling: { seed: 0 } });
    await client.complete(request);
    await client.countTokens(request);
    await client.stream({ input: { case: "chat", value: chat }, sampling: { seed: 0 } }).gather();
    assert.deepEqual(
      server.asked.map(({ message }) => message),
      [request, request, request, request],
    );
  });

  it("has one input", async () => {
    const two = { prompt: "a", chat: { messages: [user("b")] } } as unknown as { prompt: string };
    await assert.rejects(client.complete(two), TypeError);
    assert.throws(() => client.stream(two), TypeError);
    assert.deepEqual(server.asked, []);
  });

  it("carries the token, the id and the deadline", async () => {
    const other = connect(server.address, { token: "secret", defaultTimeoutMs: 50_000 });
    await other.complete({ prompt: "Hi" }, { requestId: "mine", headers: { "x-more": "1" } });
    const [headers] = server.asked.map(({ headers }) => headers);
    assert.equal(headers?.authorization, "Bearer secret");
    assert.equal(headers["x-request-id"], "mine");
    assert.equal(headers["x-more"], "1");
    const timeout = /^(\d+)m$/.exec(String(headers["grpc-timeout"]))?.[1];
    assert.ok(Number(timeout) > 40_000 && Number(timeout) <= 50_000, timeout);
    other.close();
  });

  it("has the default deadline, another, or none", async () => {
    const timeouts = async (call: Promise<unknown>): Promise<string | undefined> => {
      await call;
      return server.asked.at(-1)?.headers["grpc-timeout"] as string | undefined;
    };
    assert.match((await timeouts(client.listModels())) ?? "", /^(300000|2999\d\d)m$/);
    assert.match((await timeouts(client.listModels({ timeoutMs: 1500.5 }))) ?? "", /^1[45]\d\dm$/);
    assert.equal(await timeouts(client.listModels({ timeoutMs: Infinity })), undefined);
    // More than the header can say is kept on this side alone.
    assert.equal(await timeouts(client.listModels({ timeoutMs: 200_000_000 })), undefined);
    const loaded = create(StreamLoadResponseSchema, { event: { case: "loaded", value: {} } });
    server.script("StreamLoad", [loaded]);
    assert.equal(await timeouts(client.load({ model: "demo" })), undefined);
    assert.equal(await timeouts(client.streamLoad({ model: "demo" }).next()), undefined);
    assert.equal(await timeouts(client.watchModels().next()), undefined);
    assert.match((await timeouts(client.load({ model: "demo" }, { timeoutMs: 900 }))) ?? "", /^\d+m$/);
    const before = server.asked.length;
    assert.equal((await failure(client.listModels({ timeoutMs: 0 }))).code, Code.DeadlineExceeded);
    assert.equal(server.asked.length, before);
  });

  it("reaches its RPC, one method for each", async () => {
    server.script("StreamComplete", answer("a"));
    server.script("StreamLoad", [create(StreamLoadResponseSchema, { event: { case: "loaded", value: {} } })]);
    await client.complete({ prompt: "Hi" });
    await client.stream({ prompt: "Hi" }).gather();
    await client.embed({ inputs: ["a"], normalize: false });
    await client.countTokens({ prompt: "Hi" });
    await client.tokenize({ text: "Hi" });
    await client.detokenize({ tokenIds: [1] });
    await client.listModels();
    await client.getModel({ model: "demo" });
    await client.watchModels().next();
    await client.listBackends();
    await client.health();
    await client.load({ model: "demo" });
    await client.streamLoad({ model: "demo" }).next();
    await client.unload({ model: "demo" });
    assert.deepEqual(
      server.asked.map(({ method }) => method).sort(),
      [...InferenceService.methods, ...ModelService.methods].map(({ name }) => name).sort(),
    );
  });
});

describe("a refused call", () => {
  it("is sent again while nothing has come, three times in all", async () => {
    server.script("StreamComplete", [UNAVAILABLE], [QUEUE_FULL], answer("a"));
    assertEvents(await read(), answer("a"));
    assert.equal(server.asked.length, 3);
    server.script("ListModels", [QUEUE_FULL], [create(ListModelsResponseSchema, { defaultModel: "demo" })]);
    assert.equal((await client.listModels()).defaultModel, "demo");
    assert.equal(server.asked.length, 5);
  });

  it("fails with what the third refusal said", async () => {
    server.script("StreamComplete", [UNAVAILABLE], [UNAVAILABLE], [QUEUE_FULL]);
    const error = await failure(read());
    assert.deepEqual([error.reason, error.retryDelayMs, server.asked.length], ["QUEUE_FULL", 1, 3]);
  });

  it("is not sent again after an event, or the text would come twice", async () => {
    server.script("StreamComplete", [started(), text("a"), UNAVAILABLE]);
    assert.equal((await failure(read())).code, Code.Unavailable);
    assert.equal(server.asked.length, 1);
  });

  it("is not sent again after an event that is skipped either", async () => {
    server.script("StreamComplete", [UNKNOWN_EVENT, UNAVAILABLE]);
    await failure(read());
    assert.equal(server.asked.length, 1);
  });

  it("is not sent again when the server says so, or says what cannot be read", async () => {
    for (const pushback of ["-1", "soon", ""]) {
      const refusal = new Refusal(Code.Unavailable, "", { trailers: { "grpc-retry-pushback-ms": pushback } });
      server.script("StreamComplete", [refusal]);
      await failure(read());
    }
    assert.equal(server.asked.length, 3);
  });

  it("is not sent again for another code", async () => {
    server.script("StreamComplete", [new Refusal(Code.Internal, "", { retryDelayMs: 1 })]);
    await failure(read());
    assert.equal(server.asked.length, 1);
  });

  it("is not sent again when it was a load", async () => {
    server.script("Load", [UNAVAILABLE]);
    await failure(client.load({ model: "demo" }));
    server.script("StreamLoad", [UNAVAILABLE]);
    await failure(client.streamLoad({ model: "demo" }).next());
    assert.equal(server.asked.length, 2);
  });

  it("is not sent again by a client that shall not", async () => {
    server.script("StreamComplete", [UNAVAILABLE]);
    const other = connect(server.address, { retry: false });
    await failure(other.stream({ prompt: "Hi" }).gather());
    assert.equal(server.asked.length, 1);
    other.close();
  });

  it("waits for 0.2 s, then 0.4 s, give or take a fifth, when the server does not say how long", async () => {
    server.script("ListModels", [new Refusal(Code.Unavailable)]);
    const begin = performance.now();
    await failure(client.listModels());
    const elapsed = performance.now() - begin;
    assert.ok(elapsed > 478, `${elapsed} ms`);
    assert.equal(server.asked.length, 3);
  });

  it("waits no longer than its deadline", async () => {
    server.script("ListModels", [new Refusal(Code.Unavailable, "", { retryDelayMs: 60_000 })]);
    assert.equal((await failure(client.listModels({ timeoutMs: 50 }))).code, Code.DeadlineExceeded);
    assert.equal(server.asked.length, 1);
  });

  it("waits no longer than its caller", async () => {
    server.script("ListModels", [new Refusal(Code.Unavailable, "", { retryDelayMs: 60_000 })]);
    const controller = new AbortController();
    const call = failure(client.listModels({ signal: controller.signal }));
    while (server.asked.length === 0) {
      await new Promise(setImmediate);
    }
    controller.abort();
    assert.equal((await call).code, Code.Canceled);
  });

  it("is not sent again while most calls are refused, until enough have gone well", async () => {
    server.script("ListModels", [UNAVAILABLE]);
    // Each refusal costs one of ten tokens, and at five left nothing is sent again.
    await failure(client.listModels());
    await failure(client.listModels());
    assert.equal(server.asked.length, 5);
    await failure(client.listModels());
    assert.equal(server.asked.length, 6);
    server.script("ListModels", [create(ListModelsResponseSchema)]);
    for (let num = 0; num < 30; num += 1) {
      await client.listModels();
    }
    server.script("ListModels", [UNAVAILABLE], [create(ListModelsResponseSchema)]);
    await client.listModels();
    assert.equal(server.asked.length, 38);
  });
});

describe("a connection that breaks", () => {
  it("is UNAVAILABLE, and before an answer the call is sent again on a new one", async () => {
    server.script("ListModels", [new Break()], [create(ListModelsResponseSchema, { defaultModel: "demo" })]);
    assert.equal((await client.listModels()).defaultModel, "demo");
    server.script("StreamComplete", [started(), new Hang()]);
    const stream = client.stream({ prompt: "Hi" });
    await stream.next();
    server.hangUp();
    assert.equal((await failure(stream.next())).code, Code.Unavailable);
    assert.equal(server.asked.length, 3);
  });

  it("is UNAVAILABLE when there is no server", async () => {
    const other = connect("127.0.0.1:1", { retry: false });
    const error = await failure(other.listModels());
    assert.deepEqual([error.code, error.reason, error.headers], [Code.Unavailable, "", undefined]);
    assert.ok(error.cause);
    other.close();
  });

  it("is shared by all calls and closed by the client's end", async () => {
    await Promise.all(Array.from({ length: 200 }, () => client.listModels()));
    assert.equal(server.numConnections, 1);
    client.close();
    while (server.numConnections > 0) {
      await new Promise(setImmediate);
    }
  });
});
