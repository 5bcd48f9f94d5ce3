"""`python -m inferwire_server.cli`: the same as the command `inferwire`."""

from inferwire_server.cli import main

main()
