import { OptionDefaults } from "typedoc";

/** @type {Partial<import("typedoc").TypeDocOptions>} */
export default {
  entryPoints: ["src/index.ts", "src/node.ts", "src/web.ts", "src/v1/*.ts"],
  out: "docs",
  // Of the generated code; it says where in the contract a thing stands.
  blockTags: [...OptionDefaults.blockTags, "@generated"],
  excludeTags: [...OptionDefaults.excludeTags, "@generated"],
  excludeInternal: true,
  disableSources: true,
  treatWarningsAsErrors: true,
};
