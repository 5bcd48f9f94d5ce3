"""Ways to answer a request; each is a `base.Backend`."""
