/** The way to a server from Node: targets, TLS, keepalive; and what a status becomes. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { inspect } from "node:util";

import { Code, connect, ErrorReason, InferwireError, type Client } from "inferwire/node";

import { answer, Hang, Refusal, ScriptedServer, started } from "./scripted.js";

async function failure(call: Promise<unknown>): Promise<InferwireError> {
  try {
    await call;
  } catch (error) {
    assert.ok(error instanceof InferwireError, String(error));
    return error;
  }
  assert.fail("the call did not fail");
}

describe("a target", () => {
  for (const [target, isLocal] of [
    ["127.0.0.1:50051", true],
    ["localhost:50051", true],
    ["localhost", true],
    ["[::1]:50051", true],
    ["[0:0:0:0:0:0:0:1]:50051", true],
    ["::1", true],
    ["dns:///localhost:50051", true],
    ["dns:localhost:50051", true],
    ["ipv4:127.0.0.1:50051", true],
    ["ipv6:[::1]:50051", true],
    ["unix:/run/inferwire.sock", true],
    ["unix:///run/inferwire.sock", true],
    ["http://10.0.0.1:50051", true],
    ["10.0.0.1:50051", false],
    ["127.example:443", false],
    ["inferwire.example:443", false],
    ["localhost.example:443", false],
    ["dns:///inferwire.example:443", false],
    ["[2001:db8::1]:443", false],
    ["https://127.0.0.1:50051", false],
    ["https://inferwire.example", false],
  ] as const) {
    it(`${target} is called ${isLocal ? "in plain text" : "with TLS"} when nothing else is said`, () => {
      assert.equal(String(connect(target)), `<Client [${target} | ${isLocal ? "plain text" : "TLS"} | no token]>`);
    });
  }

  it("is called as the caller says", () => {
    assert.match(String(connect("10.0.0.1:50051", { tls: false })), /plain text/);
    assert.match(String(connect("127.0.0.1:50051", { tls: true })), /TLS/);
    assert.match(String(connect()), /127\.0\.0\.1:50051/);
  });

  for (const target of [
    "",
    ":50051",
    "a b:1",
    "host:port",
    "xds:///a",
    "dns://8.8.8.8/a:1",
    "ipv4:1.2.3.4:5,1.2.3.5:5",
    "a/b:1",
  ]) {
    it(`"${target}" is refused`, () => {
      assert.throws(() => connect(target), TypeError);
    });
  }

  it("may be a Unix socket, in plain text alone", async () => {
    assert.throws(() => connect("unix:/run/i.sock", { tls: true }), TypeError);
    const server = await ScriptedServer.start();
    const folder = mkdtempSync(join(tmpdir(), "inferwire-"));
    // A socket that leads to the server's port.
    const sockets: Socket[] = [];
    const { connect: dial } = await import("node:net");
    const bridge = createServer((socket) => {
      const other = dial(server.port, "127.0.0.1");
      sockets.push(
        socket.on("error", () => undefined),
        other.on("error", () => undefined),
      );
      socket.pipe(other).pipe(socket);
    });
    await new Promise<void>((resolve) => bridge.listen(join(folder, "i.sock"), resolve));
    const client = connect(`unix:${join(folder, "i.sock")}`);
    await client.listModels();
    client.close();
    sockets.forEach((socket) => socket.destroy());
    bridge.close();
    await server.stop();
    rmSync(folder, { recursive: true });
  });

  it("keeps its token to itself", () => {
    const client = connect("127.0.0.1:1", { token: "secret" });
    assert.equal(String(client), "<Client [127.0.0.1:1 | plain text | token]>");
    assert.ok(!inspect(client, { depth: 9 }).includes("secret"));
  });
});

describe("TLS", () => {
  let folder: string;
  let server: ScriptedServer;
  let strict: ScriptedServer;

  function pem(name: string): Buffer {
    return readFileSync(join(folder, name));
  }

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), "inferwire-"));
    const openssl = (...args: string[]): Buffer => execFileSync("openssl", args, { cwd: folder, stdio: "pipe" });
    const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    openssl("req", "-x509", ...curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test");
    for (const name of ["server", "client"]) {
      openssl("req", ...curve.slice(0, -2), "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
      writeFileSync(join(folder, `${name}.ext`), "subjectAltName=DNS:inferwire.example");
      const signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", `${name}.ext`];
      openssl("x509", "-req", "-in", `${name}.csr`, "-out", `${name}.pem`, ...signed);
    }
    const secure = { key: pem("server.key"), cert: pem("server.pem"), ca: pem("ca.pem") };
    server = await ScriptedServer.start(secure);
    strict = await ScriptedServer.start({ ...secure, requestCert: true, rejectUnauthorized: true });
  });

  after(async () => {
    await server.stop();
    await strict.stop();
    rmSync(folder, { recursive: true });
  });

  it("trusts whom it is told to", async () => {
    const client = connect(server.address, { tls: { ca: pem("ca.pem"), serverName: "inferwire.example" } });
    await client.listModels();
    client.close();
  });

  it("takes the authority's certificate as text too", async () => {
    const client = connect(server.address, { tls: { ca: pem("ca.pem").toString(), serverName: "inferwire.example" } });
    await client.listModels();
    client.close();
  });

  for (const [rule, options] of [
    ["nobody else", () => ({ tls: true })],
    ["nobody of another name", () => ({ tls: { ca: pem("ca.pem") } })],
  ] as const) {
    it(`trusts ${rule}`, async () => {
      const client = connect(server.address, { ...options(), retry: false });
      assert.equal((await failure(client.listModels())).code, Code.Unavailable);
      client.close();
    });
  }

  it("shows the client's certificate to a server that asks", async () => {
    const tls = { ca: pem("ca.pem"), serverName: "inferwire.example" };
    const client = connect(strict.address, { tls: { ...tls, cert: pem("client.pem"), key: pem("client.key") } });
    await client.listModels();
    client.close();
    const stranger = connect(strict.address, { tls, retry: false });
    assert.equal((await failure(stranger.listModels())).code, Code.Unavailable);
    stranger.close();
  });

  it("is UNAVAILABLE when one side speaks it and the other does not", async () => {
    const plain = connect(server.address, { tls: false, retry: false });
    assert.equal((await failure(plain.listModels())).code, Code.Unavailable);
    plain.close();
    const other = await ScriptedServer.start();
    const secure = connect(other.address, { tls: { ca: pem("ca.pem") }, retry: false });
    assert.equal((await failure(secure.listModels())).code, Code.Unavailable);
    secure.close();
    await other.stop();
  });
});

describe("keepalive", () => {
  const realSetTimeout = globalThis.setTimeout;
  let server: ScriptedServer;
  let client: Client;
  let pings: (() => void)[];

  beforeEach(async () => {
    server = await ScriptedServer.start();
    client = connect(server.address);
    pings = [];
    // A ping of half a minute's quiet comes when the test says so.
    globalThis.setTimeout = ((callback: () => void, ms?: number) => {
      if (ms === 30_000) {
        pings.push(callback);
      }
      return realSetTimeout(callback, ms);
    }) as typeof setTimeout;
  });

  afterEach(async () => {
    globalThis.setTimeout = realSetTimeout;
    client.close();
    await server.stop();
  });

  it("pings every 30 s, during a call and without any", async () => {
    await client.listModels();
    pings.at(-1)?.();
    await server.pinged;
    server.script("StreamComplete", [started(), new Hang()]);
    const stream = client.stream({ prompt: "Hi" });
    await stream.next();
    pings.at(-1)?.();
    await server.pinged;
    await stream.return();
  });

  it("does not ping a connection that is gone, which would end the process", async () => {
    const hang = new Hang();
    server.script("StreamComplete", [started(), hang]);
    const stream = client.stream({ prompt: "Hi" });
    await stream.next();
    server.hangUp();
    await failure(stream.next());
    await hang.gone;
    pings.forEach((ping) => ping());
  });
});

describe("a status", () => {
  let server: ScriptedServer;
  let client: Client;

  beforeEach(async () => {
    server = await ScriptedServer.start();
    client = connect(server.address, { retry: false });
  });

  afterEach(async () => {
    client.close();
    await server.stop();
  });

  /** Returns the failure that a status becomes, when it comes alone and when it ends a stream. */
  async function failures(refusal: Refusal): Promise<InferwireError[]> {
    server.script("ListModels", [refusal]);
    server.script("StreamComplete", [refusal], [...answer("a"), refusal]);
    return [
      await failure(client.listModels()),
      await failure(client.stream({ prompt: "Hi" }).gather()),
      await failure(client.stream({ prompt: "Hi" }).gather()),
    ];
  }

  it("says all that the server said", async () => {
    const refusal = new Refusal(Code.NotFound, "no such modél: 100 %", {
      reason: "MODEL_NOT_FOUND",
      metadata: { model: "nope" },
      retryDelayMs: 1500,
      violations: [{ field: "model", description: "is unknown" }],
      resource: "nope",
    });
    for (const error of await failures(refusal)) {
      assert.equal(error.code, Code.NotFound);
      assert.equal(error.reason, "MODEL_NOT_FOUND");
      assert.equal(error.knownReason, ErrorReason.MODEL_NOT_FOUND);
      assert.equal(error.message, "no such modél: 100 %");
      assert.deepEqual(error.metadata, { model: "nope" });
      assert.equal(error.retryDelayMs, 1500);
      assert.deepEqual(error.violations, [{ field: "model", description: "is unknown" }]);
      assert.equal(error.resource, "nope");
      assert.equal(error.headers?.get("grpc-retry-pushback-ms"), "1500");
      assert.equal(String(error), "MODEL_NOT_FOUND: no such modél: 100 %; model: is unknown");
    }
  });

  it("keeps a reason that this version does not know", async () => {
    for (const reason of ["SOLAR_FLARE", "5", "toString", "UNSPECIFIED"]) {
      const [error] = await failures(new Refusal(Code.Aborted, "", { reason }));
      assert.deepEqual([error?.reason, error?.knownReason], [reason, undefined]);
    }
  });

  const details = "grpc-status-details-bin";
  for (const [what, refusal] of [
    ["absent", new Refusal(Code.Internal, "plain")],
    ["garbage", new Refusal(Code.Internal, "plain", { trailers: { [details]: "/////w" } })],
    ["no base64", new Refusal(Code.Internal, "plain", { trailers: { [details]: "%%%" } })],
    ["empty", new Refusal(Code.Internal, "plain", { trailers: { [details]: "" } })],
    ["of another code", new Refusal(Code.Internal, "plain", { trailers: { [details]: "CAUSBW90aGVy" } })],
    ["of another domain", new Refusal(Code.Internal, "plain", { reason: "PROXY_SAYS_NO", domain: "proxy.example" })],
    [
      "of a known type, but garbage",
      new Refusal(Code.Internal, "plain", {
        trailers: { [details]: "CA0SBXBsYWluGjIKKHR5cGUuZ29vZ2xlYXBpcy5jb20vZ29vZ2xlLnJwYy5FcnJvckluZm8SBv///////w==" },
      }),
    ],
  ] as const) {
    it(`whose details are ${what} leaves code and message`, async () => {
      for (const error of await failures(refusal)) {
        assert.deepEqual(
          [error.code, error.message, error.reason, error.knownReason],
          [Code.Internal, "plain", "", undefined],
        );
        assert.deepEqual(
          [error.metadata, error.retryDelayMs, error.violations, error.resource],
          [{}, undefined, [], ""],
        );
        assert.equal(String(error), "INTERNAL: plain");
      }
    });
  }

  it("of no known code is UNKNOWN", async () => {
    const refusal = new Refusal(99 as Code, "odd", { reason: "ODD" });
    for (const error of await failures(refusal)) {
      assert.deepEqual([error.codeName, error.message, error.reason], ["UNKNOWN", "odd", "ODD"]);
    }
  });

  it("has a message even if that is escaped wrongly", async () => {
    const [error] = await failures(new Refusal(Code.Internal, "", { trailers: { "grpc-message": "100%" } }));
    assert.deepEqual([error?.code, error?.message], [Code.Internal, "100%"]);
  });

  it("has the name that gRPC gives its code", async () => {
    const names = Array.from({ length: 16 }, (_, index) => new InferwireError((index + 1) as Code, "").codeName);
    assert.deepEqual(names, [
      "CANCELLED",
      "UNKNOWN",
      "INVALID_ARGUMENT",
      "DEADLINE_EXCEEDED",
      "NOT_FOUND",
      "ALREADY_EXISTS",
      "PERMISSION_DENIED",
      "RESOURCE_EXHAUSTED",
      "FAILED_PRECONDITION",
      "ABORTED",
      "OUT_OF_RANGE",
      "UNIMPLEMENTED",
      "INTERNAL",
      "UNAVAILABLE",
      "DATA_LOSS",
      "UNAUTHENTICATED",
    ]);
  });

  it("that the server calls CANCELLED is so", async () => {
    const [error] = await failures(new Refusal(Code.Canceled, "by the server"));
    assert.deepEqual([error?.codeName, error?.message], ["CANCELLED", "by the server"]);
  });
});
