/** The client in a real browser, against a real server on another origin: Connect and gRPC-Web, and CORS at work. */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";

import type { Browser, Page } from "playwright-core";
import { connect, type Client } from "inferwire/node";

import { script, Server } from "../test/server.js";
import { launch, Site, skip } from "./chromium.js";

const PAGE = '<!doctype html><script type="module" src="/page.js"></script>';
const CHAT = new URL("../../examples/browser/index.html", import.meta.url);
const PICTURES = fileURLToPath(new URL("../pictures/", import.meta.url));

interface Task {
  url: string;
  protocol: "connect" | "grpc-web";
  prompt: string;
}

/** Waits until no stream holds a model. */
async function untilFree(client: Client): Promise<void> {
  while ((await client.health()).models.some(({ streamsInFlight }) => streamsInFlight > 0)) {
    await new Promise(setImmediate);
  }
}

describe("in Chromium", { skip }, () => {
  let site: Site;
  let stranger: Site;
  let chat: Site;
  let server: Server;
  let beside: Client;
  let browser: Browser;
  let page: Page;

  before(async () => {
    site = await Site.start(PAGE, "/page.js", "browser/page.ts");
    stranger = await Site.start(PAGE, "/page.js", "browser/page.ts");
    chat = await Site.start(readFileSync(CHAT, "utf8"), "/chat.js", "examples/browser/chat.ts");
    server = await Server.start({ origins: [site.origin, chat.origin] });
    beside = connect(server.address);
    browser = await launch();
    page = await open(site);
    mkdirSync(PICTURES, { recursive: true });
  });

  after(async () => {
    await browser?.close();
    beside?.close();
    await server?.stop();
    for (const each of [site, stranger, chat]) {
      each?.stop();
    }
  });

  async function open(on: Site): Promise<Page> {
    const opened = await browser.newPage();
    await opened.goto(on.origin);
    await opened.waitForFunction(() => document.title === "ready");
    return opened;
  }

  for (const protocol of ["connect", "grpc-web"] as const) {
    describe(`over ${protocol}`, () => {
      const task = (prompt: string): Task => ({ url: server.webUrl, protocol, prompt });

      it("gives the whole answer", async () => {
        const told = await page.evaluate(async ({ url, protocol, prompt }) => {
          const caller = client.connect(url, { protocol, token: "secret" });
          const answer = await caller.complete({ prompt }, { requestId: "from-a-page", headers: { traceparent: "x" } });
          return { id: answer.started?.id, text: client.textOf(answer.message), tokens: answer.completion?.usage };
        }, task(script({ text: "λόγος " }, { text: "🙂" })));
        assert.deepEqual([told.id, told.text, told.tokens?.completionTokens], ["from-a-page", "λόγος 🙂", 2]);
      });

      it("gives each event as it is made", async () => {
        const told = await page.evaluate(
          async ({ url, protocol, prompt }) => {
            const stream = client.connect(url, { protocol }).stream({ prompt });
            const cases: (string | undefined)[] = [];
            let isWholeAtFirstText: boolean | undefined;
            for await (const { event } of stream) {
              cases.push(event.case);
              isWholeAtFirstText ??= event.case === "text" ? stream.completion !== undefined : undefined;
            }
            return { cases, isWholeAtFirstText, isWhole: stream.completion !== undefined };
          },
          task(script({ text: "a" }, { delay_seconds: 0.3 }, { text: "b" })),
        );
        assert.deepEqual(told, {
          cases: ["started", "text", "text", "completion"],
          isWholeAtFirstText: false,
          isWhole: true,
        });
      });

      it("streams many events in their order", async () => {
        const told = await page.evaluate(
          async ({ url, protocol, prompt }) => {
            const stream = client.connect(url, { protocol }).stream({ prompt });
            return client.textOf((await stream.gather()).message);
          },
          task(script(...Array.from({ length: 500 }, (_, number) => ({ text: `${number} ` })))),
        );
        assert.equal(told, Array.from({ length: 500 }, (_, number) => `${number} `).join(""));
      });

      it("frees what a stream held when it is left, cancelled or its page is closed", async () => {
        const endless = task(script({ text: "a" }, { delay_seconds: 600 }));
        await page.evaluate(async ({ url, protocol, prompt }) => {
          for await (const { event } of client.connect(url, { protocol }).stream({ prompt })) {
            if (event.case === "text") {
              break;
            }
          }
        }, endless);
        await untilFree(beside);

        const code = await page.evaluate(async ({ url, protocol, prompt }) => {
          const controller = new AbortController();
          const stream = client.connect(url, { protocol }).stream({ prompt }, { signal: controller.signal });
          await stream.next();
          const ended = stream.gather().catch((error: unknown) => error);
          controller.abort();
          const error = await ended;
          return error instanceof client.InferwireError ? error.codeName : String(error);
        }, endless);
        assert.equal(code, "CANCELLED");
        await untilFree(beside);

        const second = await open(site);
        await second.evaluate(async ({ url, protocol, prompt }) => {
          await client.connect(url, { protocol }).stream({ prompt }).next();
        }, endless);
        assert.equal((await beside.health()).models[0]?.streamsInFlight, 1);
        await second.close();
        await untilFree(beside);
      });

      it("tells a failure with its details, before the first event and after it", async () => {
        const early = { reason: "QUEUE_FULL", message: "no room", metadata: { model: "é" }, retry_delay_seconds: 0.25 };
        for (const steps of [[{ error: early }], [{ text: "a" }, { error: { reason: "ENGINE_CRASHED" } }]]) {
          const [unary, streamed] = await page.evaluate(async ({ url, protocol, prompt }) => {
            const caller = client.connect(url, { protocol, retry: false });
            const tell = (error: unknown) => {
              if (!(error instanceof client.InferwireError)) {
                return String(error);
              }
              const { codeName, reason, message, metadata, retryDelayMs } = error;
              const pushback = error.headers?.get("grpc-retry-pushback-ms");
              return { codeName, reason, message, metadata, retryDelayMs, pushback };
            };
            return [
              await caller.complete({ prompt }).catch(tell),
              await caller.stream({ prompt }).gather().catch(tell),
            ];
          }, task(script(...steps)));
          if (steps.length === 1) {
            const expected = {
              codeName: "RESOURCE_EXHAUSTED",
              reason: "QUEUE_FULL",
              message: "no room",
              metadata: { model: "é" },
              retryDelayMs: 250,
              pushback: "250",
            };
            assert.deepEqual([unary, streamed], [expected, expected]);
          } else {
            assert.ok(streamed && typeof streamed === "object" && "reason" in streamed, String(streamed));
            assert.deepEqual(
              [streamed.codeName, streamed.reason, streamed.metadata],
              ["ABORTED", "ENGINE_CRASHED", { tokensEmitted: "1" }],
            );
          }
        }
      });

      it("sends a refused call again when the server says so", async () => {
        const begin = performance.now();
        const reason = await page.evaluate(
          async ({ url, protocol, prompt }) =>
            client
              .connect(url, { protocol })
              .complete({ prompt })
              .catch((error: unknown) => (error instanceof client.InferwireError ? error.reason : String(error))),
          task(script({ error: { reason: "QUEUE_FULL", retry_delay_seconds: 0.3 } })),
        );
        assert.equal(reason, "QUEUE_FULL");
        assert.ok(performance.now() - begin >= 600, "it was sent three times");
      });

      it("ends at its deadline", async () => {
        const code = await page.evaluate(
          async ({ url, protocol, prompt }) =>
            client
              .connect(url, { protocol })
              .stream({ prompt }, { timeoutMs: 200 })
              .gather()
              .catch((error: unknown) => (error instanceof client.InferwireError ? error.codeName : String(error))),
          task(script({ text: "a" }, { delay_seconds: 600 })),
        );
        assert.equal(code, "DEADLINE_EXCEEDED");
        await untilFree(beside);
      });

      it("is not let in from a page of another origin", async () => {
        const second = await open(stranger);
        const code = await second.evaluate(
          async ({ url, protocol, prompt }) =>
            client
              .connect(url, { protocol, retry: false })
              .complete({ prompt })
              .catch((error: unknown) => (error instanceof client.InferwireError ? error.codeName : String(error))),
          task("x"),
        );
        await second.close();
        // A browser tells a page no more than that it could not reach the server.
        assert.equal(code, "UNAVAILABLE");
      });
    });
  }

  describe("the example", () => {
    it("shows an answer as it is made, and stops it", async () => {
      const opened = await browser.newPage({ viewport: { width: 900, height: 700 } });
      const complaints: string[] = [];
      opened.on("pageerror", (error) => complaints.push(String(error)));
      opened.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
      await opened.goto(`${chat.origin}/?server=${encodeURIComponent(server.webUrl)}`);
      const answer = opened.locator(".assistant").last();

      await opened.getByRole("textbox").fill("Why is the sky blue?");
      await opened.getByRole("button", { name: "Send" }).click();
      await opened.getByText(/^5 tokens/).waitFor();
      assert.notEqual(await answer.textContent(), "");

      await opened.getByRole("textbox").fill(script({ text: "This goes on" }, { delay_seconds: 600 }));
      await opened.keyboard.press("Enter");
      await answer.getByText("This goes on").waitFor();
      assert.equal((await beside.health()).models[0]?.streamsInFlight, 1);
      await opened.screenshot({ path: `${PICTURES}streaming.png` });
      await opened.getByRole("button", { name: "Stop" }).click();
      await opened.getByText("stopped").waitFor();
      await untilFree(beside);

      await opened.getByRole("textbox").fill(script({ error: { reason: "CONTEXT_LENGTH_EXCEEDED", message: "too long" } }));
      await opened.getByRole("button", { name: "Send" }).click();
      await opened.getByText("CONTEXT_LENGTH_EXCEEDED: too long").waitFor();
      await opened.screenshot({ path: `${PICTURES}chat.png` });
      // The last call was refused, which browsers tell in the console.
      assert.deepEqual(complaints.filter((text) => !text.includes("status of 400")), []);
      await opened.close();
    });
  });
});
