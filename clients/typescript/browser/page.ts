/** What the tests' page holds: the client as a browser loads it, within reach of the test. */
import * as inferwire from "inferwire/web";

declare global {
  // Declared by `var`, or it would be no property of the page's window.
  var client: typeof inferwire;
}

globalThis.client = inferwire;
document.title = "ready";
