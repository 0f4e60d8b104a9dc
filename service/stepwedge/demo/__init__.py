"""The main job, once, on this machine: studies in by C-STORE, reports back, and the promises checked.

It plays the PACS at both ends. The real DICOM comes from the package pydicom-data, the children from a simulated
department. Every promise that is broken is named, and the exit status says so.
"""

from stepwedge.demo.main_job import run

__all__ = ["run"]
