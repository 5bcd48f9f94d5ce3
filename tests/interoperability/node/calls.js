// Makes the calls that lines of JSON on its input describe, with @grpc/grpc-js and messages that @grpc/proto-loader reads
// from the contract's files while it runs: `node calls.js TARGET PROTO_FOLDER`. Answers each line with one, in order.
//
//     {"method": "StreamComplete", "request": {...}, "deadline_ms": 1, "cancel_after": 1}
//     {"messages": [...], "code": 0, "message": "", "details": "<base64 of grpc-status-details-bin>" or null}
import { createInterface } from "node:readline";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [target, folder] = process.argv.slice(2);
const contract = loader.loadSync(["inferwire/v1/inference.proto", "inferwire/v1/models.proto"], {
  includeDirs: [folder],
  keepCase: true,
  longs: Number,
  enums: String,
  oneofs: true,
});
const { inferwire } = grpc.loadPackageDefinition(contract);
const client = new inferwire.v1.InferenceService(target, grpc.credentials.createInsecure());

/** Returns what a call gave, and how it ended. */
function made({ method, request, deadline_ms, cancel_after }) {
  const options = deadline_ms ? { deadline: Date.now() + deadline_ms } : {};
  const messages = [];
  return new Promise((resolve) => {
    const end = ({ code, details, metadata }) => {
      const [bytes] = metadata.get("grpc-status-details-bin");
      resolve({ messages, code, message: details, details: bytes?.toString("base64") ?? null });
    };
    if (!client[method].responseStream) {
      const take = (error, answer) => answer && messages.push(answer);
      client[method](request, options, take).on("status", end);
      return;
    }
    const call = client[method](request, options);
    call.on("data", (message) => {
      messages.push(message);
      if (messages.length === cancel_after) call.cancel();
    });
    // The status event tells the same; without a listener an error ends the process.
    call.on("error", () => {});
    call.on("status", end);
  });
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await made(JSON.parse(line))));
}
client.close();
