"""What runs in an engine process: one model, one thread that owns the llama context.

The gateway never imports this package, but for `engine.v1` (the messages) and `engine.detokenizer` (pure text).
"""
