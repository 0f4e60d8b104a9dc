"""Production inference for radiology that never stops proving it still works."""

__version__ = "0.1.0"
