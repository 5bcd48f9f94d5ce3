/** Prints an answer as it is made: npm run example -- "Once upon a time" */
import { connect } from "inferwire/node";

const client = connect("127.0.0.1:50051");
const prompt = process.argv.slice(2).join(" ");
for await (const piece of client.stream({ prompt, sampling: { temperature: 0 }, stopping: { maxTokens: 64 } }).text()) {
  process.stdout.write(piece);
}
process.stdout.write("\n");
client.close();
