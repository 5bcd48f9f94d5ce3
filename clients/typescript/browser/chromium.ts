/** A headless Chromium and the pages that it loads, each from an origin of its own. */
import { once } from "node:events";
import { existsSync } from "node:fs";
import * as http from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";
import { chromium, type Browser } from "playwright-core";

const PROGRAMS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** The program to run: that of the variable CHROMIUM, or the system's; undefined where there is none. */
export const program = process.env["CHROMIUM"] ?? PROGRAMS.find((path) => existsSync(path));

/** Why the tests are skipped, or false. Where everything must be there they fail instead. */
export const skip =
  program === undefined && process.env["CI"] !== "true" ? "there is no Chromium; CHROMIUM may say where it is" : false;

/** Starts the browser. It asks nobody on the network for anything. */
export function launch(): Promise<Browser> {
  if (program === undefined) {
    throw new Error("there is no Chromium: install it, or say by CHROMIUM where it is");
  }
  return chromium.launch({
    executablePath: program,
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}

/** A server of two files on a port of its own, which makes an origin of its own. */
export class Site {
  private constructor(
    readonly origin: string,
    private readonly server: http.Server,
  ) {}

  /** Serves `html`, and as `script` the bundle of a TypeScript file, whose path is from this package's folder. */
  static async start(html: string, script: string, entryPoint: string): Promise<Site> {
    const bundle = await build({
      absWorkingDir: fileURLToPath(new URL("../../", import.meta.url)),
      entryPoints: [entryPoint],
      bundle: true,
      format: "esm",
      write: false,
      logLevel: "error",
    });
    const code = bundle.outputFiles[0]?.text ?? "";
    const server = http.createServer((request, response) => {
      const path = new URL(request.url ?? "/", "http://localhost").pathname;
      const type = path === script ? "text/javascript" : "text/html";
      response.setHeader("content-type", `${type}; charset=utf-8`).end(path === script ? code : html);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return new Site(`http://localhost:${(server.address() as AddressInfo).port}`, server);
  }

  stop(): void {
    this.server.closeAllConnections();
    this.server.close();
  }
}
