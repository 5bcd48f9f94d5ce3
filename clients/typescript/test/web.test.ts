/** The way to a server by `fetch`, as a browser goes it; the server here is Connect's own. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import * as http from "node:http";
import type { AddressInfo } from "node:net";
import { after, afterEach, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";

import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { ConnectError, type HandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { Code, connect, InferwireError, textOf, type Client } from "inferwire/web";
import { InferenceService, type CompleteRequest } from "inferwire/v1/inference_pb";
import { ModelService } from "inferwire/v1/models_pb";

import { ErrorInfoSchema, RetryInfoSchema } from "../src/google/rpc/error_details_pb.js";
import { answer, completion, started, text, UNKNOWN_EVENT } from "./scripted.js";

async function failure(call: Promise<unknown>): Promise<InferwireError> {
  try {
    await call;
  } catch (error) {
    assert.ok(error instanceof InferwireError, String(error));
    return error;
  }
  assert.fail("the call did not fail");
}

/** Answers by the prompt; told apart by its first word. */
class Script {
  asked: string[] = [];
  headers = new Headers();
  tellGone = (): void => undefined;
  readonly gone = new Promise<void>((resolve) => (this.tellGone = resolve));

  async *streamComplete({ input }: CompleteRequest, context: HandlerContext) {
    const prompt = input.case === "prompt" ? input.value : "";
    this.asked.push(prompt);
    this.headers = context.requestHeader;
    switch (prompt) {
      case "unknown":
        yield* [UNKNOWN_EVENT, started(), text("a"), UNKNOWN_EVENT, completion()];
        break;
      case "truncated":
        yield* [started(), text("a")];
        break;
      case "hang":
        yield* [started(), text("a")];
        context.signal.addEventListener("abort", this.tellGone);
        await this.gone;
        break;
      case "late":
        yield* [started(), text("a")];
        throw refusal("ENGINE_CRASHED", Code.Aborted);
      case "busy":
        if (this.asked.length < 3) {
          throw refusal("QUEUE_FULL", Code.ResourceExhausted);
        }
        yield* answer("a");
        break;
      case "full":
        throw refusal("QUEUE_FULL", Code.ResourceExhausted);
      default:
        yield* answer("Hel", "lo");
    }
  }

  complete({ input }: CompleteRequest) {
    this.asked.push(input.case === "prompt" ? input.value : "");
    if (this.asked.length < 3 && input.value === "busy") {
      throw refusal("QUEUE_FULL", Code.ResourceExhausted);
    }
    return { message: { parts: [{ part: { case: "text" as const, value: "Hello" } }] } };
  }
}

function refusal(reason: string, code: Code): ConnectError {
  return new ConnectError("no", code, { "grpc-retry-pushback-ms": "1" }, [
    {
      desc: ErrorInfoSchema,
      value: create(ErrorInfoSchema, { reason, domain: "inferwire.dev", metadata: { model: "demo" } }),
    },
    { desc: RetryInfoSchema, value: create(RetryInfoSchema, { retryDelay: durationFromMs(1) }) },
  ]);
}

let script = new Script();
let server: http.Server;
let url: string;

before(async () => {
  server = http.createServer(
    connectNodeAdapter({
      routes: (router) =>
        router
          .service(InferenceService, {
            streamComplete: (request, context) => script.streamComplete(request, context),
            complete: (request) => script.complete(request),
          })
          .service(ModelService, {}),
    }),
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});

after(() => {
  server.closeAllConnections();
  server.close();
});

afterEach(() => {
  script = new Script();
});

for (const protocol of ["connect", "grpc-web"] as const) {
  describe(protocol, () => {
    let client: Client;

    before(() => {
      client = connect(url, { protocol, token: "secret" });
    });

    after(() => client.close());

    it("gives the whole answer, and the answer as it is made", async () => {
      assert.equal(textOf((await client.complete({ prompt: "Hi" })).message), "Hello");
      const stream = client.stream({ prompt: "Hi" }, { requestId: "mine" });
      assert.equal(textOf((await stream.gather()).message), "Hello");
      assert.ok(stream.completion);
      assert.equal(script.headers.get("authorization"), "Bearer secret");
      assert.equal(script.headers.get("x-request-id"), "mine");
      assert.ok(script.headers.get(protocol === "connect" ? "connect-timeout-ms" : "grpc-timeout"));
    });

    it("skips an arm that this version does not know", async () => {
      assert.equal(textOf((await client.stream({ prompt: "unknown" }).gather()).message), "a");
    });

    it("takes OK without a completion for STREAM_TRUNCATED", async () => {
      assert.equal((await failure(client.stream({ prompt: "truncated" }).gather())).reason, "STREAM_TRUNCATED");
    });

    it("cancels the call when its stream is left", async () => {
      for await (const { event } of client.stream({ prompt: "hang" })) {
        if (event.case === "text") {
          break;
        }
      }
      await script.gone;
    });

    it("ends at its deadline", async () => {
      const error = await failure(client.stream({ prompt: "hang" }, { timeoutMs: 50 }).gather());
      assert.equal(error.code, Code.DeadlineExceeded);
    });

    it("sends a refused call again while nothing has come", async () => {
      assert.equal(textOf((await client.stream({ prompt: "busy" }).gather()).message), "a");
      assert.equal(script.asked.length, 3);
      script = new Script();
      assert.equal(textOf((await client.complete({ prompt: "busy" })).message), "Hello");
      assert.equal(script.asked.length, 3);
    });

    it("tells a failure with its details, before the first event and after it", async () => {
      const early = await failure(client.stream({ prompt: "full" }).gather());
      assert.deepEqual(
        [early.code, early.reason, early.message, early.metadata, early.retryDelayMs],
        [Code.ResourceExhausted, "QUEUE_FULL", "no", { model: "demo" }, 1],
      );
      script = new Script();
      const late = await failure(client.stream({ prompt: "late" }).gather());
      assert.deepEqual([late.code, late.reason, script.asked.length], [Code.Aborted, "ENGINE_CRASHED", 1]);
    });

    it("tells an RPC that the server does not have", async () => {
      assert.equal((await failure(client.load({ model: "demo" }))).code, Code.Unimplemented);
    });

    it("is UNAVAILABLE when there is no server", async () => {
      const nobody = connect("http://127.0.0.1:1", { protocol, retry: false });
      assert.equal((await failure(nobody.listModels())).code, Code.Unavailable);
      assert.equal((await failure(nobody.stream({ prompt: "Hi" }).gather())).code, Code.Unavailable);
    });

    it("is UNAVAILABLE when its connection breaks", async () => {
      const stream = client.stream({ prompt: "hang" });
      await stream.next();
      server.closeAllConnections();
      assert.equal((await failure(stream.gather())).code, Code.Unavailable);
      script.tellGone();
    });

    it("is CANCELLED when its signal is aborted", async () => {
      const controller = new AbortController();
      const stream = client.stream({ prompt: "hang" }, { signal: controller.signal });
      await stream.next();
      const next = failure(stream.gather());
      controller.abort();
      assert.equal((await next).code, Code.Canceled);
    });
  });
}

it("what a browser loads imports nothing of Node", () => {
  const seen = new Set<string>();
  const visit = (file: URL): void => {
    if (seen.has(file.href)) {
      return;
    }
    seen.add(file.href);
    for (const [, name = ""] of readFileSync(file, "utf8").matchAll(/^(?:import|export)[^;]*? from "([^"]+)";$/gm)) {
      if (name.startsWith(".")) {
        visit(new URL(name, file));
      } else {
        assert.match(
          name,
          /^@(bufbuild\/protobuf|connectrpc\/connect|connectrpc\/connect-web)($|\/)/,
          fileURLToPath(file),
        );
      }
    }
  };
  visit(new URL(import.meta.resolve("inferwire/web")));
  visit(new URL(import.meta.resolve("inferwire")));
  assert.ok(seen.size > 5);
});
