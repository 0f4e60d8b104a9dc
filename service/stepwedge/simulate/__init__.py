"""A simulated department: radiographs that belong to nobody, in DICOM objects as a department would send them."""

from stepwedge.simulate.children import Simulator, load_simulator, simulate
from stepwedge.simulate.header import to_dicom, wrap_image

__all__ = ["Simulator", "load_simulator", "simulate", "to_dicom", "wrap_image"]
