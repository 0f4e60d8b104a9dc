"""The monitoring sidecar: compares what a model sees and answers with the baseline that it was accepted on."""
