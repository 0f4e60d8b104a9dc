"""Everything that speaks DICOM: receiving, keeping, decoding, reporting, delivering."""
