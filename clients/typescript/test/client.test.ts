/** The client against a real server. */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { connect, ErrorReason, InferwireError, system, textOf, user, type Client, type Code } from "inferwire/node";
import * as inferwire from "inferwire/node";
import { FinishReason, Role, type CompleteResponse, type StreamCompleteResponse } from "inferwire/v1/inference_pb";

import { script, Server, type Step } from "./server.js";

let server: Server;
let client: Client;

before(async () => {
  server = await Server.start();
  client = connect(server.address);
});

after(async () => {
  client.close();
  await server.stop();
});

/** Returns the failure of a call that must fail. */
async function failure(call: Promise<unknown>): Promise<InferwireError> {
  try {
    await call;
  } catch (error) {
    assert.ok(error instanceof InferwireError, String(error));
    return error;
  }
  assert.fail("the call did not fail");
}

/** Waits until no stream holds the model. */
async function idle(): Promise<void> {
  for (;;) {
    const { models } = await client.health();
    if (models.every((model) => model.streamsInFlight === 0)) {
      return;
    }
  }
}

/** Returns an answer without what differs from one generation to the next. */
function comparable({ started, completion, ...rest }: CompleteResponse): object {
  return {
    ...rest,
    started: { ...started, id: "" },
    completion: { ...completion, timing: undefined },
  };
}

describe("complete", () => {
  it("gives the whole answer", async () => {
    const answer = await client.complete({ prompt: script({ text: "Hel" }, { text: "lo" }) });
    assert.equal(textOf(answer.message), "Hello");
    assert.equal(answer.message?.role, Role.ASSISTANT);
    assert.equal(answer.completion?.finishReason, FinishReason.STOP);
    assert.equal(answer.completion.usage?.completionTokens, 2);
  });

  it("takes a chat", async () => {
    const messages = [system("Be brief."), user(script({ text: "Hi" }))];
    const answer = await client.complete({ chat: { messages } });
    const again = { chat: { messages: [...messages, answer.message!, user(script({ text: "Bye" }))] } };
    assert.equal(textOf((await client.complete(again)).message), "Bye");
  });

  it("ends at a stop text, which is cut off", async () => {
    const answer = await client.complete({
      prompt: script({ text: "one st" }, { text: "op two" }),
      stopping: { stop: ["stop"] },
    });
    assert.equal(textOf(answer.message), "one ");
    assert.equal(answer.completion?.finishReason, FinishReason.STOP_STRING);
    assert.deepEqual(answer.completion.stoppedBy, { case: "stopString", value: "stop" });
  });

  it("says zero as zero, and leaves unset what is not said", async () => {
    const zero = await client.complete({ prompt: "a b c", sampling: { seed: 0, temperature: 0 } });
    assert.equal(zero.started?.sampling?.seed, 0);
    assert.equal(zero.started.sampling.temperature, 0);
    assert.equal(zero.started.sampling.topK, undefined);
    const none = await client.complete({ prompt: "a b c", stopping: { maxTokens: 0 } });
    assert.equal(none.completion?.finishReason, FinishReason.LENGTH);
    assert.equal(none.message?.parts.length, 0);
  });

  it("carries a large message each way", async () => {
    const piece = "x".repeat(1_000_000);
    const answer = await client.complete({ prompt: script({ text: piece, repeat: 30 }) });
    assert.equal(textOf(answer.message).length, 30_000_000);
    const asked = await client.countTokens({ prompt: `${piece} ${piece} ${piece} ${piece}` });
    assert.equal(asked.tokens, 4);
  });

  it("refuses to send a message that is too large, and does so at once", async () => {
    const error = await failure(client.complete({ prompt: "x".repeat(33 * 1024 * 1024) }));
    assert.equal(error.codeName, "RESOURCE_EXHAUSTED");
  });

  it("tells the request's id back", async () => {
    const answer = await client.complete({ prompt: "Hi" }, { requestId: "mine-1" });
    assert.equal(answer.started?.id, "mine-1");
    const other = await client.complete({ prompt: "Hi" }, { headers: { "x-request-id": "mine-2" } });
    assert.equal(other.started?.id, "mine-2");
  });
});

describe("stream", () => {
  const steps: Step[] = [
    { reasoning: "hm" },
    { reasoning: "m" },
    { text: "a" },
    { tool_call: { index: 0, id: "c0", name: "add", arguments: '{"a"' } },
    { tool_call: { index: 0, arguments: ":1}" } },
    { tool_call: { index: 1, id: "c1", name: "sub" } },
    { text: "b" },
    { text: "c" },
  ];

  it("gives the events in order", async () => {
    const arms: (StreamCompleteResponse["event"]["case"] | undefined)[] = [];
    const stream = client.stream({ prompt: script(...steps) });
    for await (const { event } of stream) {
      arms.push(event.case);
    }
    assert.deepEqual(arms, [
      "started",
      "reasoning",
      "reasoning",
      "text",
      "toolCall",
      "toolCall",
      "toolCall",
      "text",
      "text",
      "completion",
    ]);
    assert.equal(stream.started?.model, "scripted");
    assert.equal(stream.completion?.finishReason, FinishReason.TOOL_CALLS);
  });

  it("gathered is the unary answer", async () => {
    const request = { prompt: script(...steps), sampling: { seed: 7 } };
    const gathered = await client.stream(request).gather();
    assert.deepEqual(comparable(gathered), comparable(await client.complete(request)));
    assert.deepEqual(
      gathered.message?.parts.map(({ part }) => part.case),
      ["reasoning", "text", "toolCall", "toolCall", "text"],
    );
    const call = gathered.message.parts[2]?.part;
    assert.ok(call?.case === "toolCall");
    assert.deepEqual([call.value.id, call.value.name, call.value.arguments], ["c0", "add", '{"a":1}']);
  });

  it("gives the text alone", async () => {
    const pieces: string[] = [];
    for await (const piece of client.stream({ prompt: script(...steps) }).text()) {
      pieces.push(piece);
    }
    assert.deepEqual(pieces, ["a", "b", "c"]);
  });

  it("fails before the first event with all that the server said", async () => {
    const { name, ...error } = { ...(await failure(client.stream({ prompt: script({ error: queueFull }) }).gather())) };
    assert.equal(name, "InferwireError");
    assert.deepEqual(error, {
      code: inferwire.Code.ResourceExhausted satisfies Code,
      reason: "QUEUE_FULL",
      metadata: { model: "scripted", queueCapacity: "64" },
      retryDelayMs: 20,
      violations: [],
      resource: "",
    });
  });

  it("fails in mid-stream after the events that came", async () => {
    const stream = client.stream({
      prompt: script({ text: "a" }, { text: "b" }, { error: { reason: "ENGINE_CRASHED" } }),
    });
    const pieces: string[] = [];
    const error = await failure(
      (async () => {
        for await (const piece of stream.text()) {
          pieces.push(piece);
        }
      })(),
    );
    assert.deepEqual(pieces, ["a", "b"]);
    assert.equal(error.codeName, "ABORTED");
    assert.equal(error.knownReason, ErrorReason.ENGINE_CRASHED);
    assert.equal(error.metadata["tokensEmitted"], "2");
    assert.equal(stream.completion, undefined);
    assert.equal(String(stream), "<CompletionStream [failed]>");
  });

  it("ends the generation when it is left", async () => {
    let num = 0;
    for await (const _ of client.stream({ prompt: script({ text: "a", repeat: 5 }, { delay_seconds: 60 }) })) {
      num += 1;
      if (num === 4) {
        break;
      }
    }
    await idle();
  });

  it("ends the generation when its signal is aborted", async () => {
    const controller = new AbortController();
    const reason = new Error("enough");
    const stream = client.stream(
      { prompt: script({ text: "a" }, { delay_seconds: 60 }) },
      { signal: controller.signal },
    );
    const error = await failure(
      (async () => {
        for await (const { event } of stream) {
          if (event.case === "text") {
            controller.abort(reason);
          }
        }
      })(),
    );
    assert.equal(error.codeName, "CANCELLED");
    assert.equal(error.cause, reason);
    await idle();
  });

  it("ends at its deadline, and the server learns of it", async () => {
    const stream = client.stream({ prompt: script({ text: "a" }, { delay_seconds: 60 }) }, { timeoutMs: 100 });
    assert.equal((await failure(stream.gather())).codeName, "DEADLINE_EXCEEDED");
    await idle();
  });

  it("ends with TIME_LIMIT when the request says so, which is no failure", async () => {
    const answer = await client
      .stream({
        prompt: script({ text: "a" }, { delay_seconds: 60 }),
        stopping: { timeLimit: durationFromMs(50) },
      })
      .gather();
    assert.equal(answer.completion?.finishReason, FinishReason.TIME_LIMIT);
  });
});

const queueFull = {
  reason: "QUEUE_FULL",
  metadata: { model: "scripted", queueCapacity: "64" },
  retry_delay_seconds: 0.02,
};

describe("errors", () => {
  it("tell which field is refused", async () => {
    const error = await failure(client.complete({ prompt: "Hi", sampling: { topP: 2 } }));
    assert.equal(error.knownReason, ErrorReason.INVALID_REQUEST);
    assert.deepEqual(
      error.violations.map(({ field }) => field),
      ["sampling.top_p"],
    );
  });

  it("tell what was not found", async () => {
    const error = await failure(client.getModel({ model: "nope" }));
    assert.equal(error.codeName, "NOT_FOUND");
    assert.equal(error.reason, "MODEL_NOT_FOUND");
    assert.equal(error.resource, "nope");
  });

  it("of a refused call come after two repeats, as the server wants them", async () => {
    const prompt = script({ error: { reason: "MODEL_LOADING", retry_delay_seconds: 0.1 } });
    const begin = performance.now();
    const error = await failure(client.complete({ prompt }));
    assert.equal(error.codeName, "UNAVAILABLE");
    const elapsed = performance.now() - begin;
    assert.ok(elapsed >= 198, `${elapsed} ms`);
  });
});

describe("the other RPCs", () => {
  it("count and split tokens, and join them again", async () => {
    assert.equal((await client.countTokens({ prompt: "one two" })).tokens, 2);
    const { tokenIds, pieces } = await client.tokenize({ text: "hé" });
    assert.equal(Buffer.concat(pieces).toString(), "hé");
    assert.equal(Buffer.from((await client.detokenize({ tokenIds })).data).toString(), "hé");
  });

  it("say which models and backends there are", async () => {
    const { models, defaultModel } = await client.listModels();
    assert.deepEqual([models.map(({ name }) => name), defaultModel], [["scripted"], "scripted"]);
    assert.equal((await client.getModel({ model: "scripted" })).model?.backend, "scripted");
    assert.deepEqual(
      (await client.listBackends()).backends.map(({ id }) => id),
      ["scripted"],
    );
    for await (const snapshot of client.watchModels()) {
      assert.deepEqual(
        snapshot.models.map(({ name }) => name),
        ["scripted"],
      );
      break;
    }
  });

  it("say how the server is", async () => {
    const health = await client.health();
    assert.ok(health.ready);
    assert.match(health.version, /^\d+\.\d+/);
  });

  it("refuse vectors where there are none", async () => {
    const error = await failure(client.embed({ inputs: ["a"] }));
    assert.equal(error.reason, "UNSUPPORTED_BY_BACKEND");
  });

  it("load and unload", async () => {
    const source = { source: { case: "local", value: { path: "../secret.gguf" } } } as const;
    assert.equal((await failure(client.load({ model: "other", source }))).reason, "MODEL_PATH_NOT_ALLOWED");
    const load = client.streamLoad({ model: "other" });
    assert.equal((await failure(load.next())).reason, "INVALID_REQUEST");
    assert.deepEqual(await load.next(), { done: true, value: undefined });
    assert.equal((await client.unload({ model: "other", drainTimeout: durationFromMs(0) })).wasLoaded, false);
  });
});

describe("the end of the server", () => {
  it("is UNAVAILABLE for a stream that runs, and for a call that comes after", async () => {
    const doomed = await Server.start();
    const caller = connect(doomed.address);
    const stream = caller.stream({ prompt: script({ text: "a" }, { delay_seconds: 60 }) });
    const lost = await failure(
      (async () => {
        for await (const { event } of stream) {
          if (event.case === "text") {
            doomed.process.kill("SIGKILL");
          }
        }
      })(),
    );
    assert.deepEqual([lost.codeName, lost.reason], ["UNAVAILABLE", ""]);
    const refused = await failure(caller.listModels());
    assert.deepEqual([refused.codeName, refused.reason], ["UNAVAILABLE", ""]);
    caller.close();
    await doomed.stop();
  });
});
