/**
 * A chat in a page: shows an answer as it is made, and stops it.
 *
 * It calls the web port of ?server=..., or of this machine's port 8080.
 */
import { connect, InferwireError, user, type CompletionStream } from "inferwire/web";
import type { Message } from "inferwire/v1/inference_pb";

const server = new URLSearchParams(location.search).get("server") ?? "http://127.0.0.1:8080";
const client = connect(server);
const history: Message[] = [];
let answering: CompletionStream | undefined;

const messages = element("messages", HTMLElement);
const form = element("form", HTMLFormElement);
const text = element("text", HTMLTextAreaElement);
const model = element("model", HTMLSelectElement);
const send = element("send", HTMLButtonElement);
const stop = element("stop", HTMLButtonElement);

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!answering && text.value.trim()) {
    void answer(text.value.trim());
    text.value = "";
  }
});
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
stop.addEventListener("click", () => answering?.cancel());

await listModels();

async function listModels(): Promise<void> {
  try {
    const { models, defaultModel } = await client.listModels();
    model.replaceChildren(...models.map(({ name }) => new Option(name, name, false, name === defaultModel)));
  } catch (error) {
    show("note failed", `${server} cannot be asked: ${String(error)}`);
  }
}

async function answer(question: string): Promise<void> {
  show("message user", question);
  const bubble = show("message assistant writing", "");
  const asked = [...history, user(question)];
  const stream = client.stream({ model: model.value, chat: { messages: asked }, output: { message: true } });
  begin(stream);
  try {
    for await (const piece of stream.text()) {
      bubble.append(piece);
      messages.scrollTop = messages.scrollHeight;
    }
    const { message, usage } = stream.completion ?? {};
    if (message) {
      // Only a whole answer belongs to the conversation, and its question with it.
      history.push(user(question), message);
    }
    show("note", `${usage?.completionTokens ?? 0} tokens`);
  } catch (error) {
    if (!bubble.textContent) {
      bubble.remove();
    }
    const isStopped = error instanceof InferwireError && error.codeName === "CANCELLED";
    show(isStopped ? "note" : "note failed", isStopped ? "stopped" : String(error));
  } finally {
    bubble.classList.remove("writing");
    begin(undefined);
  }
}

function begin(stream: CompletionStream | undefined): void {
  answering = stream;
  send.disabled = stream !== undefined;
  stop.disabled = stream === undefined;
  text.focus();
}

/** Appends a line, as text: an answer is never read as HTML. */
function show(kind: string, line: string): HTMLElement {
  const shown = document.createElement("div");
  shown.className = kind;
  shown.textContent = line;
  messages.append(shown);
  messages.scrollTop = messages.scrollHeight;
  return shown;
}

function element<E extends HTMLElement>(id: string, kind: new () => E): E {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) {
    throw new Error(`the page has no ${id}`);
  }
  return found;
}
