"""The benchmark harness behind `make bench`: thinmap beside its user-space peers, in one run on the same backing."""
