"""Generated code of the engine protocol."""
