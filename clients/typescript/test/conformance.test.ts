/** The conformance program, line by line, against a real server. */
import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface, type Interface } from "node:readline";
import { after, before, it } from "node:test";
import { fileURLToPath } from "node:url";

import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import { textOf } from "inferwire";
import { InferenceService } from "inferwire/v1/inference_pb";
import { ModelService } from "inferwire/v1/models_pb";

import { Health, HealthCheckResponse_ServingStatus as Status } from "../conformance/grpc/health/v1/health_pb.js";
import { script, Server } from "./server.js";

interface Answer {
  id: string;
  messages: string[];
  error: { code: string; reason: string; retry_delay_ms: number | null; violations: { field: string }[] } | null;
  left_early: boolean;
  fault?: string;
}

let server: Server;
let program: ChildProcess;
let lines: AsyncIterator<string>;
let output: Interface;

before(async () => {
  server = await Server.start();
  const run = fileURLToPath(new URL("../../conformance/run", import.meta.url));
  program = spawn(run, { stdio: ["pipe", "pipe", "inherit"] });
  output = createInterface({ input: program.stdout! });
  lines = output[Symbol.asyncIterator]();
});

after(async () => {
  program.stdin!.end();
  const [code] = (await once(program, "exit")) as [number];
  assert.equal(code, 0);
  await server.stop();
});

async function say(line: string): Promise<Answer> {
  program.stdin!.write(`${line}\n`);
  const { value } = (await lines.next()) as IteratorYieldResult<string>;
  return JSON.parse(value) as Answer;
}

async function perform<D extends DescMessage>(
  method: string,
  schema: D,
  request: MessageInitShape<D>,
  more: object = {},
  options: object = {},
): Promise<Answer> {
  const encoded = Buffer.from(toBinary(schema, create(schema, request))).toString("base64");
  const where = { target: server.address, tls: false, ...options };
  const answer = await say(JSON.stringify({ id: method, connect: where, call: { method, request: encoded, ...more } }));
  assert.equal(answer.id, method);
  assert.equal(answer.fault, undefined);
  return answer;
}

function decode<D extends DescMessage>(schema: D, { messages }: Answer): MessageShape<D>[] {
  return messages.map((message) => fromBinary(schema, Buffer.from(message, "base64")));
}

const { complete, streamComplete, listModels, watchModels, tokenize } = InferenceService.method;

it("completes, streams and gathers", async () => {
  const request = { input: { case: "prompt", value: script({ text: "a" }, { text: "b" }) } } as const;
  const metadata = { "x-request-id": "mine" };
  const [whole] = decode(complete.output, await perform("Complete", complete.input, request, { metadata }));
  assert.deepEqual([textOf(whole?.message), whole?.started?.id], ["ab", "mine"]);
  const events = decode(streamComplete.output, await perform("StreamComplete", complete.input, request));
  assert.deepEqual(
    events.map(({ event }) => event.case),
    ["started", "text", "text", "completion"],
  );
  const [gathered] = decode(complete.output, await perform("GatherStream", complete.input, request));
  assert.equal(textOf(gathered?.message), "ab");
});

it("leaves a stream early", async () => {
  const request = { input: { case: "prompt", value: script({ text: "a" }, { delay_seconds: 60 }) } } as const;
  const answer = await perform("StreamComplete", complete.input, request, { cancel_after: 2 });
  assert.deepEqual([answer.messages.length, answer.left_early, answer.error], [2, true, null]);
  const watch = await perform("WatchModels", watchModels.input, {}, { cancel_after: 1 });
  assert.deepEqual([watch.messages.length, watch.left_early], [1, true]);
});

it("tells failures", async () => {
  const error = { reason: "QUEUE_FULL", retry_delay_seconds: 0.25 };
  const request = { input: { case: "prompt", value: script({ error }) } } as const;
  const full = await perform("Complete", complete.input, request, {}, { retry: false });
  assert.deepEqual(
    [full.messages, full.error?.code, full.error?.reason, full.error?.retry_delay_ms],
    [[], "RESOURCE_EXHAUSTED", "QUEUE_FULL", 250],
  );
  const late = { input: { case: "prompt", value: script({ text: "a" }, { delay_seconds: 60 }) } } as const;
  const deadline = await perform("StreamComplete", complete.input, late, { timeout_ms: 100 });
  assert.deepEqual([deadline.messages.length, deadline.error?.code], [2, "DEADLINE_EXCEEDED"]);
  const other = await perform("GatherStream", complete.input, late, {}, { default_timeout_ms: 50 });
  assert.equal(other.error?.code, "DEADLINE_EXCEEDED");
  const load = await perform("StreamLoad", ModelService.method.streamLoad.input, { model: "x" });
  assert.deepEqual(
    [load.error?.code, load.error?.violations.map(({ field }) => field)],
    ["INVALID_ARGUMENT", ["source"]],
  );
});

it("calls every method", async () => {
  const { embed, getModel, health, detokenize, listBackends } = InferenceService.method;
  const { load, unload } = ModelService.method;
  const [models] = decode(listModels.output, await perform("ListModels", listModels.input, {}));
  assert.equal(models?.defaultModel, "scripted");
  const [tokens] = decode(tokenize.output, await perform("Tokenize", tokenize.input, { text: "hi" }));
  assert.equal(tokens?.tokenIds.length, 2);
  const [joined] = decode(detokenize.output, await perform("Detokenize", detokenize.input, { tokenIds: [104] }));
  assert.deepEqual(Buffer.from(joined?.data ?? []).toString(), "h");
  for (const [method, schema, request] of [
    ["CountTokens", complete.input, { input: { case: "prompt", value: "a" } }],
    ["GetModel", getModel.input, { model: "scripted" }],
    ["Health", health.input, {}],
    ["ListBackends", listBackends.input, {}],
    ["Unload", unload.input, { model: "x" }],
  ] as const) {
    const answer = await perform(method, schema, request);
    assert.deepEqual([answer.messages.length, answer.error], [1, null]);
  }
  assert.equal((await perform("Embed", embed.input, { inputs: ["a"] })).error?.reason, "UNSUPPORTED_BY_BACKEND");
  assert.equal((await perform("Load", load.input, { model: "x" })).error?.code, "INVALID_ARGUMENT");
});

it("asks gRPC's own health service", async () => {
  const { check, watch } = Health.method;
  const [once] = decode(check.output, await perform("HealthCheck", check.input, { service: "model/scripted" }));
  assert.equal(once?.status, Status.SERVING);
  const [first] = decode(watch.output, await perform("HealthWatch", watch.input, {}, { cancel_after: 1 }));
  assert.equal(first?.status, Status.SERVING);
  assert.equal((await perform("HealthCheck", check.input, { service: "nope" })).error?.code, "NOT_FOUND");
});

it("answers a line that cannot be read with the fault", async () => {
  assert.ok((await say("no JSON")).fault);
  const where = { target: server.address };
  const unknown = await say(JSON.stringify({ id: "7", connect: where, call: { method: "Nope", request: "" } }));
  assert.deepEqual([unknown.id, typeof unknown.fault], ["7", "string"]);
  const garbage = await say(
    JSON.stringify({ id: "8", connect: where, call: { method: "Complete", request: "/////w==" } }),
  );
  assert.deepEqual([garbage.id, typeof garbage.fault], ["8", "string"]);
});
