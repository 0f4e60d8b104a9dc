"""Signatures: of packages by OpenSSF model-signing, of approvals by the same keys (ECDSA on P-256)."""
