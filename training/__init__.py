"""How the embedded demo model is made: text, tokenizer, training, GGUF file, check."""
