"""Prints an answer as it is made: python stream.py "Once upon a time" """

import sys

from inferwire import Client

with Client("127.0.0.1:50051") as client:
    for piece in client.stream(prompt=" ".join(sys.argv[1:]), max_tokens=64, temperature=0).text():
        print(piece, end="", flush=True)
print()
