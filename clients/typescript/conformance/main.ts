/**
 * Speaks for this client in the tests that hold all clients to one behaviour: reads one JSON line per call on its
 * input, makes the call, and answers one JSON line. Uses the package as anyone would.
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { fromBinary, toBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { InferwireError, connect, type CallOptions, type Client, type Stream } from "inferwire/node";
import { InferenceService } from "inferwire/v1/inference_pb";
import { ModelService } from "inferwire/v1/models_pb";

import { Health } from "./grpc/health/v1/health_pb.js";

interface Line {
  id: string;
  connect: Connect;
  call: {
    method: string;
    request: string;
    timeout_ms?: number;
    metadata?: Record<string, string>;
    cancel_after?: number;
  };
}

interface Connect {
  target: string;
  tls?: false | { ca?: string; cert?: string; key?: string; server_name?: string };
  token?: string;
  default_timeout_ms?: number;
  retry?: boolean;
}

/** What a call gave its caller. */
interface Outcome {
  messages: string[];
  error: InferwireError | null;
  leftEarly: boolean;
}

const clients = new Map<string, Client>();

for await (const line of createInterface({ input: process.stdin })) {
  let id: unknown = null;
  let answer: object;
  try {
    const read = JSON.parse(line) as Line;
    id = read.id;
    const { messages, error, leftEarly } = await perform(clientOf(read.connect), read.call);
    answer = { id, messages, error: error && describe(error), left_early: leftEarly };
  } catch (fault) {
    answer = { id, fault: String(fault) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
for (const client of clients.values()) {
  client.close();
}

function clientOf(where: Connect): Client {
  const key = JSON.stringify(where);
  let client = clients.get(key);
  if (!client) {
    const { tls } = where;
    client = connect(where.target, {
      tls: tls && {
        ca: contentsOf(tls.ca),
        cert: contentsOf(tls.cert),
        key: contentsOf(tls.key),
        serverName: tls.server_name,
      },
      token: where.token,
      defaultTimeoutMs: where.default_timeout_ms,
      retry: where.retry,
    });
    clients.set(key, client);
  }
  return client;
}

function contentsOf(path: string | undefined): Uint8Array | undefined {
  return path === undefined ? undefined : readFileSync(path);
}

function perform(client: Client, call: Line["call"]): Promise<Outcome> {
  const options: CallOptions = { timeoutMs: call.timeout_ms, headers: call.metadata };
  const request = Buffer.from(call.request, "base64");
  const inference = InferenceService.method;
  const models = ModelService.method;

  const unary = async <D extends DescMessage>(output: D, answer: Promise<MessageShape<D>>): Promise<Outcome> => {
    try {
      return { messages: [encode(output, await answer)], error: null, leftEarly: false };
    } catch (error) {
      return { messages: [], error: expected(error), leftEarly: false };
    }
  };

  const stream = async <D extends DescMessage>(output: D, answer: Stream<MessageShape<D>>): Promise<Outcome> => {
    const messages: string[] = [];
    if (call.cancel_after === 0) {
      await answer.return();
      return { messages, error: null, leftEarly: true };
    }
    try {
      for await (const message of answer) {
        messages.push(encode(output, message));
        if (messages.length === call.cancel_after) {
          return { messages, error: null, leftEarly: true };
        }
      }
      return { messages, error: null, leftEarly: false };
    } catch (error) {
      return { messages, error: expected(error), leftEarly: false };
    }
  };

  switch (call.method) {
    case "Complete":
      return unary(inference.complete.output, client.complete(fromBinary(inference.complete.input, request), options));
    case "StreamComplete":
      return stream(
        inference.streamComplete.output,
        client.stream(fromBinary(inference.streamComplete.input, request), options),
      );
    case "GatherStream":
      return unary(
        inference.complete.output,
        client.stream(fromBinary(inference.streamComplete.input, request), options).gather(),
      );
    case "Embed":
      return unary(inference.embed.output, client.embed(fromBinary(inference.embed.input, request), options));
    case "CountTokens":
      return unary(
        inference.countTokens.output,
        client.countTokens(fromBinary(inference.countTokens.input, request), options),
      );
    case "Tokenize":
      return unary(inference.tokenize.output, client.tokenize(fromBinary(inference.tokenize.input, request), options));
    case "Detokenize":
      return unary(
        inference.detokenize.output,
        client.detokenize(fromBinary(inference.detokenize.input, request), options),
      );
    case "ListModels":
      return unary(inference.listModels.output, client.listModels(options));
    case "GetModel":
      return unary(inference.getModel.output, client.getModel(fromBinary(inference.getModel.input, request), options));
    case "WatchModels":
      return stream(inference.watchModels.output, client.watchModels(options));
    case "ListBackends":
      return unary(inference.listBackends.output, client.listBackends(options));
    case "Health":
      return unary(inference.health.output, client.health(options));
    case "Load":
      return unary(models.load.output, client.load(fromBinary(models.load.input, request), options));
    case "StreamLoad":
      return stream(models.streamLoad.output, client.streamLoad(fromBinary(models.streamLoad.input, request), options));
    case "Unload":
      return unary(models.unload.output, client.unload(fromBinary(models.unload.input, request), options));
    case "HealthCheck":
      return unary(
        Health.method.check.output,
        client.call(Health.method.check, fromBinary(Health.method.check.input, request), options),
      );
    case "HealthWatch":
      return stream(
        Health.method.watch.output,
        client.watch(Health.method.watch, fromBinary(Health.method.watch.input, request), options),
      );
    default:
      throw new Error(`there is no method "${call.method}"`);
  }
}

function encode<D extends DescMessage>(schema: D, message: MessageShape<D>): string {
  return Buffer.from(toBinary(schema, message)).toString("base64");
}

/** Returns a failure that the package may tell. Throws any other. */
function expected(error: unknown): InferwireError {
  if (error instanceof InferwireError) {
    return error;
  }
  throw error;
}

function describe(error: InferwireError): object {
  return {
    code: error.codeName,
    reason: error.reason,
    message: error.message,
    metadata: error.metadata,
    retry_delay_ms: error.retryDelayMs ?? null,
    violations: error.violations,
    resource: error.resource,
  };
}
