"""Making a model package; loading one is ``stepwedge.manifest``."""
