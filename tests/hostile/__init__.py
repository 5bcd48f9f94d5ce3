"""Inputs that want to do harm, one file per kind: what each test of the server that takes them runs."""
