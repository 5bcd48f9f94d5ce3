/** A server of inferwire as a process of its own, with answers by script. */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const PROGRAM = fileURLToPath(new URL("../../../../.venv/bin/inferwire", import.meta.url));

/** See the docstring of the server's backend "scripted". */
export interface Step {
  text?: string;
  reasoning?: string;
  tool_call?: { index?: number; id?: string; name?: string; arguments?: string };
  delay_seconds?: number;
  error?: { reason: string; message?: string; metadata?: Record<string, string>; retry_delay_seconds?: number };
  repeat?: number;
}

/** Returns the prompt that makes the server answer so. */
export function script(...events: Step[]): string {
  return JSON.stringify({ events });
}

/** A running server. */
export class Server {
  private constructor(
    readonly address: string,
    /** Where its web port is; empty without one. */
    readonly webUrl: string,
    readonly process: ChildProcess,
  ) {}

  /**
   * Starts the program of the environment variable INFERWIRE_SERVER, or that of the repository's own environment.
   *
   * @param web - has it open a web port, which pages of these origins may call.
   */
  static async start(web?: { origins: string[] }): Promise<Server> {
    // The server takes every variable INFERWIRE_... for a setting of its own.
    const { INFERWIRE_SERVER: program = PROGRAM, ...env } = process.env;
    if (program === PROGRAM && !existsSync(PROGRAM)) {
      throw new Error("there is no server to test with: run `make setup`, or set INFERWIRE_SERVER to a command line");
    }
    const flags = web ? "--web-address 127.0.0.1:0" : "";
    const server = spawn(`exec ${program} serve --scripted --address 127.0.0.1:0 --log-level warning ${flags}`, {
      shell: true,
      stdio: ["ignore", "pipe", "inherit"],
      env: { ...env, ...(web && { INFERWIRE_WEB_ORIGINS: web.origins.join(",") }) },
    });
    const told: string[] = [];
    await new Promise<void>((resolve, reject) => {
      // It goes on to read what the server prints, or the server would fail to print it.
      createInterface({ input: server.stdout })
        .on("line", (line) => {
          told.push(...(/(?:http:\/\/)?127\.0\.0\.1:\d+/.exec(line) ?? []));
          if (told.length >= (web ? 2 : 1)) {
            resolve();
          }
        })
        .on("close", () => reject(new Error("the server ended before it listened")));
    });
    return new Server(told[0] ?? "", told[1] ?? "", server);
  }

  async stop(): Promise<void> {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill("SIGKILL");
      await once(this.process, "exit");
    }
  }
}
